"""Arms for the tests of the benchmarks' harness: they do next to nothing."""

import time


def sleeping(case, *, seconds):
    """Sleeps in each step, and prints, which must not come among the answers."""
    print("I was made.")

    def run(steps):
        print("I run.")
        time.sleep(seconds * steps)

    return run


def in_tens(case):
    """Does ten steps where one is asked for."""
    return lambda steps: time.sleep(0.02 * steps) or 10 * steps


def without_module(case):
    """Needs what is not there."""
    import keras_wsl_of_the_future  # noqa: F401


def breaking(case):
    """Breaks off in its turn, after the warm-up."""

    def run(steps):
        if steps > 1:
            raise ValueError("no more")

    return run


def dying(case):
    """Ends in its turn without a word."""

    def run(steps):
        if steps > 1:
            raise SystemExit

    return run

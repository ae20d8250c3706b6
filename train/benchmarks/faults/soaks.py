"""Many calls of `fit` in one process: what is left behind of memory, threads and open files."""

from benchmarks import soak
from benchmarks.faults.fault import classify, fault

CALLS = 2000
GROWTH = 0.02


def classify_samples(samples):
    """Return the attempt of a soak from its samples, as `soak.measure` returns them."""
    first, last, growth = samples[0], samples[-1], soak.growth(samples)
    left = {name: last[name] - first[name] for name in ("threads", "files") if last[name] is not None}
    note = (
        f"{growth:+.2%} of memory from call {first['calls']} ({first['mib']:.1f} MiB) to {last['calls']} "
        f"({last['mib']:.1f} MiB); {last['objects'] - first['objects']:+d} objects"
    )
    return classify(
        note, memory_grows_by_less_than_2_percent=growth < GROWTH, **{f"no_{n}": k <= 0 for n, k in left.items()}
    )


@fault(
    f"{CALLS} calls of fit of two steps with one Distiller and all callbacks",
    "memory grows by less than 2 %, no thread or file stays open",
)
def many_calls_of_fit(bench):
    """Train again and again."""
    yield classify_samples(soak.measure("one distiller", CALLS))


@fault(
    "30 calls of fit, each with new networks and a new Distiller",
    "reported next to Keras alone, which keeps every traced graph",
)
def new_distillers(bench):
    """Build again and again, and compare with Keras's own models."""
    ours, keras_alone = (soak.measure(kind, 30) for kind in ("new distillers", "new Keras models"))
    note = f"memory {soak.growth(ours):+.1%}, of Keras's models {soak.growth(keras_alone):+.1%}"
    yield classify(note, no_threads=ours[0]["threads"] >= ours[-1]["threads"])

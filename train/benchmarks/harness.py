"""Arms of a benchmark that take turns, each in a process of its own, and the ratios of their times."""

import contextlib
import dataclasses
import json
import random
import statistics
import subprocess
import tempfile
import threading
import time

from benchmarks import child
from benchmarks.case import Case


@dataclasses.dataclass(frozen=True)
class Arm:
    """What runs in a process of its own: its name in tables, and the function that makes it.

    Args:
        name: String.
        make: `"module:function"`; the function takes a `Case` and the settings, and gives a function of steps.
        settings: Dict of what JSON can hold.
        environment: Dict of environment variables.
        case: `Case`.
    """

    name: str
    make: str
    config: dict = dataclasses.field(default_factory=dict)
    environment: dict = dataclasses.field(default_factory=dict)
    case: Case = dataclasses.field(default_factory=Case)


class ArmError(RuntimeError):
    """An arm could not be made, or broke off; `missing` where a module that it needs is not there."""

    def __init__(self, text, missing=False):
        super().__init__(text)
        self.missing = missing


class Process:
    """A running arm, warmed up.

    Args:
        arm: `Arm`.
        patience: Seconds within which each answer has to come.

    Raises:
        ArmError: If it cannot be made.
    """

    def __init__(self, arm, patience=600):
        self.patience = patience
        self.errors = tempfile.TemporaryFile("w+")
        wanted = {**dataclasses.asdict(arm), "asked": time.monotonic()}
        self.process = subprocess.Popen(
            **child("benchmarks.arm", json.dumps(wanted), **arm.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.first_step_seconds = self._answer()["first_step_seconds"]
        except ArmError:
            self.kill()
            raise

    def run(self, steps):
        """Seconds of a step, and what happened since the last: `wall`, `cpu`, `idle_wall`, `idle_cpu`."""
        with contextlib.suppress(BrokenPipeError):  # It has ended: the answer says why.
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self._answer()

    def stop(self):
        """Ends the process; the most memory that it held, MiB."""
        self.process.stdin.close()
        peak = self._answer()["peak_mib"]
        self.kill()
        return peak

    def kill(self):
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _answer(self):
        timer = threading.Timer(self.patience, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines()
            raise ArmError(
                f"ended without an answer within {self.patience} s; last it said {(said or ['nothing'])[-1]}"
            )
        answer = json.loads(line)
        if "failed" in answer:
            raise ArmError(answer["failed"], answer["missing"])
        return answer


@dataclasses.dataclass
class Measured:
    """What an arm's process showed: a dict of `Process.run` for each turn, or why there is none."""

    turns: list = dataclasses.field(default_factory=list)
    first_step_seconds: float | None = None
    peak_mib: float | None = None
    failed: str = ""
    missing: bool = False

    def median(self, clock):
        """The median of a step's seconds by `"wall"` or `"cpu"`."""
        return statistics.median(turn[clock] for turn in self.turns)

    def idle_share(self):
        """CPU seconds a second while others had their turns; between turns an arm should do nothing."""
        return sum(turn["idle_cpu"] for turn in self.turns) / sum(turn["idle_wall"] for turn in self.turns)


def measure(arms, *, rounds, steps, seed=0, patience=600, say=print):
    """Run arms in turns. An arm that fails does not stop the others.

    The arms start one after the other, so that none disturbs another's start. In each round every arm runs the steps
    once, in a random order.

    Args:
        arms: List of `Arm`, whose names differ.
        rounds: Integer.
        steps: Integer, in a turn.
        seed: Integer, of the orders.
        patience: Seconds within which an arm has to answer.
        say: Function of a line of text, that tells how far it has come.

    Returns:
        Dict of arms' names to `Measured`.
    """
    measured = {arm.name: Measured() for arm in arms}
    processes = {}

    def start(arm):
        processes[arm.name] = process = Process(arm, patience)
        measured[arm.name].first_step_seconds = process.first_step_seconds
        say(f"  {arm.name}: first step after {process.first_step_seconds:.1f} s")

    def turn(arm):
        measured[arm.name].turns.append(processes[arm.name].run(steps))

    def stop(arm):
        measured[arm.name].peak_mib = processes[arm.name].stop()

    def each(work, some):
        for arm in some:
            try:
                work(arm)
            except ArmError as error:
                measured[arm.name].failed, measured[arm.name].missing = str(error), error.missing
                say(f"  {arm.name}: {error}")
                if arm.name in processes:
                    processes.pop(arm.name).kill()

    def running():
        return [arm for arm in arms if arm.name in processes]

    try:
        each(start, arms)
        generator = random.Random(seed)
        for _ in range(rounds):
            each(turn, generator.sample(running(), len(processes)))
        each(stop, running())
    finally:
        for process in processes.values():
            process.kill()
    return measured


def ratios(one, other, clock):
    """Quartiles of the ratios of two arms' turns of the same rounds, `(lower, median, upper)`.

    The machine's speed may drift and jump: turns of one round are near each other, and the median leaves out jumps.

    Args:
        one: List of turns, dicts of seconds by clock.
        other: As many turns of the reference.
        clock: `"wall"` or `"cpu"`.
    """
    found = [a[clock] / b[clock] for a, b in zip(one, other, strict=True)]
    if len(found) == 1:
        return (found[0],) * 3
    return tuple(statistics.quantiles(found, n=4, method="inclusive"))

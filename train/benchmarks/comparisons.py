"""The arms of each group, what is compared with what, and the rows that come of it."""

import dataclasses
from typing import NamedTuple

from benchmarks import harness, limits
from benchmarks.case import PRODUCT
from benchmarks.harness import Arm
from keras_wsl import models

START_SECONDS = 20  # To the first step of `START_PAIR`.
START_PAIR = "wrn_40_2:wrn_16_2"


def _keras(name, make, **config):
    return Arm(name, f"benchmarks.keras_arms:{make}", config)


ARMS = {
    "step": [
        _keras("Distiller, WSL", "distiller"),
        _keras("by hand", "handwritten"),
        _keras("by hand, fused normalization", "handwritten", fused=True),
        Arm("PyTorch", "benchmarks.torch_arms:wsl"),
        # As it comes, its threads wait for each other busily: on a machine that others use, that is all they do.
        Arm("PyTorch, passive threads", "benchmarks.torch_arms:wsl", environment={"OMP_WAIT_POLICY": "PASSIVE"}),
        _keras("matrix product", "product"),
    ],
    "kd": [
        _keras("Distiller, KD", "kd"),
        _keras("Keras's, KD", "keras_kd"),
        _keras("Distiller, cached KD", "cached"),
    ],
    "feature": [
        _keras(f"{whose}, {layer}", make, layer=layer)
        for layer in ("block2", "block3")
        for whose, make in (("Distiller", "feature"), ("Keras's", "keras_feature"))
    ],
    "evaluate": [
        _keras("distiller.evaluate", "evaluate", whole=True),
        _keras("student.evaluate", "evaluate", whole=False),
    ],
    "pipeline": [_keras("input pipeline", "pipeline"), _keras("student.fit", "student")],
    "cache": [_keras("cache writing", "cache_writing"), _keras("teacher.predict", "teacher_forward")],
    "variants": [
        _keras("Distiller, WSL", "distiller"),
        _keras("jit_compile", "distiller", jit_compile=True),
        _keras("mixed_bfloat16", "distiller", dtype="mixed_bfloat16"),
        _keras("steps_per_execution=8", "distiller", steps_per_execution=8),
        Arm("without oneDNN", "benchmarks.keras_arms:distiller", environment={"TF_ENABLE_ONEDNN_OPTS": "0"}),
        _keras("teacher's BatchNorm folded", "distiller", folded=True),
        _keras("Keras's batch normalization", "distiller", fused=False),
        _keras("Keras's, and the teacher's folded", "distiller", folded=True, fused=False),
        _keras("deterministic operations", "distiller", deterministic=True),
        _keras("teacher compiled by XLA", "distiller", kind="compiled_teacher"),
        _keras("nothing logged", "distiller", kind="quiet"),
        _keras("no prefetch", "distiller", prefetch=0),
    ],
}
TENSORFLOW_ONLY = {
    "without oneDNN",
    "PyTorch",
    "PyTorch, passive threads",
    "steps_per_execution=8",
    "by hand, fused normalization",
    "Keras's batch normalization",
    "Keras's, and the teacher's folded",
    "teacher compiled by XLA",
    "deterministic operations",
    "no prefetch",
}


class Comparison(NamedTuple):
    """An arm against its reference, and the ratio that is wanted, or `None`."""

    text: str
    arm: str
    reference: str
    target: float | None = None


COMPARISONS = {
    "step": [
        Comparison("Distiller.fit with WSL against the step by hand", "Distiller, WSL", "by hand", 1.03),
        Comparison(
            "Distiller.fit with WSL against the step by hand, with our batch normalization",
            "Distiller, WSL",
            "by hand, fused normalization",
            1.03,
        ),
        Comparison("Distiller.fit with WSL against PyTorch", "Distiller, WSL", "PyTorch", 1.00),
        Comparison(
            "Distiller.fit with WSL against PyTorch, passive threads",
            "Distiller, WSL",
            "PyTorch, passive threads",
            1.00,
        ),
    ],
    "kd": [
        Comparison("KD against Keras's Distiller", "Distiller, KD", "Keras's, KD", 1.00),
        Comparison("cached soft labels against Keras's live KD", "Distiller, cached KD", "Keras's, KD", 0.65),
    ],
    "feature": [
        # Keras runs the student a second time: back through two thirds of it from block2, through all from block3.
        Comparison("a loss on block2 against Keras's Distiller", "Distiller, block2", "Keras's, block2", 0.70),
        Comparison("a loss on block3 against Keras's Distiller", "Distiller, block3", "Keras's, block3", 0.70),
    ],
    "evaluate": [Comparison("evaluate against the student's", "distiller.evaluate", "student.evaluate", 1.02)],
    "pipeline": [Comparison("input pipeline against the student's step", "input pipeline", "student.fit", 0.05)],
    "cache": [Comparison("cache writing against the bare teacher", "cache writing", "teacher.predict", 1.05)],
    "variants": [Comparison(arm.name, arm.name, "Distiller, WSL") for arm in ARMS["variants"][1:]],
}


def arms(group, case, backend):
    """The `Arm`s of a group on a backend, for the networks and batches of a `Case`."""
    there = (arm for arm in ARMS[group] if backend == "tensorflow" or arm.name not in TENSORFLOW_ONLY)
    return [dataclasses.replace(arm, case=case) for arm in there]


def compared(comparison, measured):
    """The row of a comparison: quartiles of its ratios, and whether both medians are within the target.

    Args:
        comparison: `Comparison`.
        measured: Dict of arms' names to `harness.Measured`.

    Returns:
        Dict of columns; without ratios but with a `note` where an arm did not run.
    """
    row = {"comparison": comparison.text, "target": comparison.target}
    one, other = measured[comparison.arm], measured[comparison.reference]
    if failed := one.failed or other.failed:
        return {**row, "note": f"not run: {failed}"}
    for clock in ("wall", "cpu"):
        values = harness.ratios(one.turns, other.turns, clock)
        row.update(zip((f"{clock}_low", f"{clock}_ratio", f"{clock}_high"), values))
    if comparison.target is not None:
        row["met"] = met(row["wall_ratio"] <= comparison.target and row["cpu_ratio"] <= comparison.target)
    return row


def met(reached):
    """The word for it."""
    return "yes" if reached else "no"


def rows(group, pair, case, measured):
    """The rows of a group whose arms have had their turns.

    Args:
        group: A key of `ARMS`.
        pair: `"teacher:student"`.
        case: `Case`.
        measured: Dict of arms' names to `harness.Measured`.
    """
    found = [compared(c, measured) for c in COMPARISONS[group] if {c.arm, c.reference} <= set(measured)]
    return found if group == "variants" else found + single_numbers(pair, case, measured)


def single_numbers(pair, case, measured):
    """Rows of what is no ratio of times: memory, start, and a whole run against the limit.

    Args:
        pair: `"teacher:student"`.
        case: `Case`.
        measured: Dict of arms' names to `harness.Measured`.
    """
    there = {name: one for name, one in measured.items() if not one.failed}
    found = []
    if {"Distiller, KD", "Keras's, KD"} <= set(there):
        ours, theirs = (there[name].peak_mib for name in ("Distiller, KD", "Keras's, KD"))
        row = {"comparison": "peak memory with KD against Keras's Distiller", "target": 1.00, "value": ours / theirs}
        found.append({**row, "met": met(ours <= theirs), "note": f"{ours:.0f} MiB against {theirs:.0f} MiB"})
    if "Distiller, WSL" in there:
        seconds = there["Distiller, WSL"].first_step_seconds
        row = {"comparison": "seconds from the start of Python to the end of the first step", "value": seconds}
        wanted = {"target": START_SECONDS, "met": met(seconds < START_SECONDS)} if pair == START_PAIR else {}
        found.append({**row, **wanted})
    if {"Distiller, WSL", "matrix product"} <= set(there):
        found.append(_whole_run(case, there["Distiller, WSL"].median("wall"), there["matrix product"].median("wall")))
    return found


def _whole_run(case, step_seconds, product_seconds):
    """240 epochs at the step's time, against their multiplications at the rate of a matrix product."""
    teacher, student = (
        limits.macs(models.build(name, case.classes, input_shape=case.shape)) for name in (case.teacher, case.student)
    )
    rate = 2 * PRODUCT**3 / product_seconds
    hours = limits.run_hours(step_seconds / case.batch_size)
    least = limits.run_hours(limits.least_seconds(teacher, student, rate))
    return {
        "comparison": "240 epochs of 50,000 examples against their multiplications alone",
        "value": hours / least,
        "note": f"{hours:.2f} h against {least:.2f} h at {rate / 1e9:.0f} GFLOP/s, the rate of a float32 product",
    }


def arm_rows(measured):
    """What each arm took: rows of milliseconds a step, start, memory, and what it did between its turns."""
    return [
        {
            "arm": name,
            "wall_milliseconds": round(1000 * one.median("wall"), 2),
            "cpu_milliseconds": round(1000 * one.median("cpu"), 2),
            "first_step_seconds": round(one.first_step_seconds, 1),
            "peak_memory_mib": round(one.peak_mib),
            "idle_cpu_share": round(one.idle_share(), 4),
        }
        for name, one in measured.items()
        if not one.failed
    ]

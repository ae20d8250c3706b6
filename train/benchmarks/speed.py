"""What a step costs against every alternative, what would make it faster, and how it grows.

    python train/benchmark.py --suite=speed
    python train/benchmark.py --suite=speed --only=step,kd --pairs=resnet56:resnet20 --rounds=5
    KERAS_BACKEND=jax python train/benchmark.py --suite=speed

Arms of a group take turns, each in a process of its own: medians of the ratios of neighbouring turns, by wall time and
by CPU time. Prints its tables and writes `benchmarks.md`, `benchmarks.csv`, `benchmarks_arms.csv`,
`benchmarks_growth.csv` and `benchmarks_growth.png` to --results (`benchmarks_jax` and so on for another backend); with
--only nothing is written unless --results is named.
"""

import math
import os
import pathlib

from absl import flags

from benchmarks import comparisons, growth, harness
from benchmarks.case import Case
from keras_wsl.training import artifacts
from reproduction.markdown import format_table

RESULTS = pathlib.Path(__file__).parent.parent / "results"
GROUPS = (*comparisons.ARMS, "growth")
# Several processes share an accelerator: none may take all of its memory.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
RATIOS = ("networks", "comparison", "target", "wall ratio (quartiles)", "CPU ratio (quartiles)", "met", "note")
NUMBERS = ("networks", "comparison", "target", "measured", "met", "note")


def up(value):
    """Three decimals, rounded up: nothing is shown as smaller than it is."""
    return f"{math.ceil(1000 * value - 1e-9) / 1000:.3f}"


def shown(row):
    """A row of `comparisons` as cells of text."""

    def cell(clock):
        if f"{clock}_ratio" not in row:
            return ""
        low, median, high = (up(row[f"{clock}_{name}"]) for name in ("low", "ratio", "high"))
        return f"{median} ({low} to {high})"

    target = row.get("target")
    return {
        "networks": row["pair"].replace(":", " to "),
        "comparison": row["comparison"],
        "target": "" if target is None else f"{target:g}",
        "measured": up(row["value"]) if "value" in row else "",
        "wall ratio (quartiles)": cell("wall"),
        "CPU ratio (quartiles)": cell("cpu"),
        "met": row.get("met", ""),
        "note": row.get("note", "").replace("|", "/"),
    }


def page(rows, arms, environment, how):
    """The page of results.

    Args:
        rows: Of `comparisons`, with `pair` and `group`.
        arms: Rows of `comparisons.arm_rows`, with the same.
        environment: `record.environment()`.
        how: A sentence on batches, rounds and steps.
    """
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    parts = [
        "# Speed\n",
        "Made by `make bench`. Arms take turns, each in a process of its own: medians, and quartiles in brackets, of\n"
        "the ratios of the turns of one round. A target is met if both medians are within it. Rounded up.\n",
        f"{how} {environment['device']}, {processor()}; {environment['backend']}, Python {environment['python']},\n"
        f"{versions}; commit\n{environment['commit']}.\n",
    ]
    single = [row for row in rows if "value" in row]
    ratios = [row for row in rows if "value" not in row]
    for title, some, columns in (
        ("Against the alternatives", [row for row in ratios if row["group"] != "variants"], RATIOS),
        ("Memory, start and a whole run", single, NUMBERS),
        ("Variants of the step against itself", [row for row in ratios if row["group"] == "variants"], RATIOS),
    ):
        if some:
            parts.append(f"## {title}\n\n{format_table([shown(row) for row in some], columns)}")
    if arms:
        cells = [{name: str(value) for name, value in row.items()} for row in arms]
        parts.append(f"## The arms\n\n{format_table(cells, list(arms[0]))}")
    return "\n".join(parts)


def processor():
    """The processor's name, where Linux tells it."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def define_flags():
    """Define the flags of this suite."""
    flags.DEFINE_list("pairs", [comparisons.START_PAIR, "resnet56:resnet20"], "teacher:student; variants of the first.")
    flags.DEFINE_list("only", [], f"Groups, of {', '.join(GROUPS)}; all by default.")
    flags.DEFINE_integer("rounds", 6, "In each of which every arm has a turn.", lower_bound=1)
    flags.DEFINE_integer("steps", 4, "Of a turn.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 64, "Examples in a step.", lower_bound=1)
    flags.DEFINE_integer("size", 32, "Height and width of the images.", lower_bound=8)
    flags.DEFINE_integer("seed", 0, "Of the order in a round.")
    flags.DEFINE_integer("patience", 600, "Seconds within which an arm has to answer.", lower_bound=1)
    flags.DEFINE_string("results", "", "Folder of the files; train/results by default.")


def main():
    """Measures the groups, prints the tables, and writes the files after each group."""
    values = flags.FLAGS
    if unknown := sorted(set(values.only) - set(GROUPS)):
        raise ValueError(f"There are no groups {unknown}. Expected --only of {', '.join(GROUPS)}.")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    environment = artifacts.environment()
    backend = environment["backend"]
    if backend not in ("tensorflow", "jax"):
        raise ValueError(f"There are no arms for KERAS_BACKEND={backend}. Expected tensorflow or jax.")
    results = pathlib.Path(values.results) if values.results else None if values.only else RESULTS
    if results:
        results.mkdir(parents=True, exist_ok=True)
    stem = "benchmarks" if backend == "tensorflow" else f"benchmarks_{backend}"
    how = f"Batches of {values.batch_size}; {values.rounds} rounds of {values.steps} steps."
    config = {"rounds": values.rounds, "steps": values.steps, "seed": values.seed, "patience": values.patience}
    rows, arms, whole = [], [], True

    def keep():
        if results:
            artifacts.write_csv(results / f"{stem}.csv", [{**row, "commit": environment["commit"]} for row in rows])
            artifacts.write_csv(results / f"{stem}_arms.csv", arms)
            artifacts.write_text(results / f"{stem}.md", page(rows, arms, environment, how))

    for pair in values.pairs:
        teacher, student = pair.split(":")
        case = Case(teacher, student, values.batch_size, values.size)
        for group in comparisons.ARMS:
            if group not in (values.only or GROUPS) or (group == "variants" and pair != values.pairs[0]):
                continue
            print(f"{pair} {group}", flush=True)
            measured = harness.measure(comparisons.arms(group, case, backend), **config)
            named = {"pair": pair, "group": group}
            rows += [{**named, **row} for row in comparisons.rows(group, pair, case, measured)]
            arms += [{**named, **row} for row in comparisons.arm_rows(measured)]
            whole &= all(one.missing or not one.failed for one in measured.values())
            keep()
    if rows:
        print(page(rows, arms, environment, how))
    if "growth" in (values.only or GROUPS):
        whole &= growth.run(Case(size=values.size), results and results / f"{stem}_growth", config)
    return 0 if whole else 1

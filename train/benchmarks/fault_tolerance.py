"""Faults done to runs, files and inputs, and what happens: the tables of `train/results/fault_tolerance.md`.

    python train/benchmark.py --suite=faults --output_dir=runs/faults
    python train/benchmark.py --suite=faults --output_dir=runs/faults --only=disks,sigterm

An attempt is survived if what should happen happens; it is lost if data or work are; else it ended wrongly, in a
traceback, a hang or a silent mistake. `fault_tolerance.csv` and `fault_tolerance.md` in --results are written after
each fault. Stopped and started again with the same --output_dir, the suite keeps the faults that it has finished. Full
and read-only disks are real ones, of memory, for which Linux asks for root.
"""

import os
import pathlib
import shutil
import textwrap
import time

from absl import flags

from benchmarks import faults
from benchmarks.faults.fault import LOST, SURVIVED, WRONG, Attempt, describe
from keras_wsl.training import artifacts
from reproduction.markdown import format_table

RESULTS = pathlib.Path(__file__).parent.parent / "results"
COUNTS = ("attempts", SURVIVED, LOST, WRONG)
COLUMNS = ("fault", "method", *COUNTS, "outcome", "seconds")
CELL = 100  # Characters of a cell on the page; the CSV file has all.


def make_row(fault, attempts, seconds):
    """Return the row of a fault in the CSV file, a dict.

    Args:
        fault: `faults.Fault`.
        attempts: List of `Attempt`.
        seconds: Float, of all attempts together.
    """
    bad = [attempt for attempt in attempts if attempt.state != SURVIVED]
    notes = [attempt.note for attempt in bad] or [attempt.note for attempt in attempts][:1]
    outcome = "; ".join(dict.fromkeys(note for note in notes if note)) if bad else fault.expected
    return {
        "group": fault.group,
        "fault": fault.name,
        "method": fault.method,
        "expected": fault.expected,
        "attempts": len(attempts),
        **{state: sum(attempt.state == state for attempt in attempts) for state in COUNTS[1:]},
        "outcome": one_line(outcome),
        "example": one_line(notes[0] if notes else ""),
        "seconds": round(seconds, 1),
        "seconds_to_end": _range([attempt.seconds for attempt in attempts if attempt.seconds is not None]),
    }


def _range(seconds):
    bounds = dict.fromkeys(f"{bound:.1f}" for bound in (min(seconds), max(seconds))) if seconds else ()
    return " to ".join(bounds)


def one_line(text):
    """Return a text without line breaks and without the marks that end a cell."""
    return " ".join(str(text).split()).replace("|", "/").replace("`", "'")


def attempt_all(fault, bench):
    """Make the attempts of a fault, and return its row.

    An exception of the fault itself is an attempt that ended wrongly, after those that were made before it.
    """
    began, attempts = time.monotonic(), []
    try:
        for attempt in fault.attempts(bench):
            attempts.append(Attempt(*attempt))
    except faults.UnsupportedFault as reason:
        if not attempts:
            return {**make_row(fault, [], 0.0), "outcome": one_line(f"not done here: {reason}")}
    except Exception as error:
        attempts.append(Attempt(WRONG, describe(error)))
    return make_row(fault, attempts, time.monotonic() - began)


def page(rows, environment):
    """Return the page of results.

    Args:
        rows: Rows of the CSV file, dicts whose values may be text.
        environment: `record.environment()`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    totals = {name: sum(int(row[name]) for row in rows) for name in COUNTS}
    parts = [
        "# Fault tolerance\n\n"
        "Made by `python train/benchmark.py --suite=faults`. *Survived*: what should happen happened. *Lost*: data or\n"
        "work are gone, or a resumed run differs. *Wrong*: a traceback, a hang, or a silent mistake.\n\n"
        f"{format_table([{name: str(value) for name, value in totals.items()}], COUNTS)}\n"
        f"{os.cpu_count()} CPU cores; {environment['backend']}, Python {environment['python']}, {versions};\n"
        f"commits {', '.join(sorted({str(row['commit'])[:9] for row in rows}))}.\n\n"
        "Whole runs are those of `train/cifar100.py` in processes of their own: WSL from ResNet-8 to ResNet-8 on the\n"
        "digits, 3 epochs of 22 steps, a backup every second step, deterministic operations. *The same result*:\n"
        "weights, logs, counts and best score to the bit, and no other files. Other work ran while seconds were\n"
        "measured.\n"
    ]
    for group in dict.fromkeys(row["group"] for row in rows):
        cells = [
            {column: textwrap.shorten(str(row[column]), CELL, placeholder=" ...") for column in COLUMNS}
            | {"fault": row["fault"].replace("_", " ")}
            for row in rows
            if row["group"] == group
        ]
        parts.append(f"## {group.capitalize()}\n\n{format_table(cells, COLUMNS)}")
    if missing := [fault.name for fault in faults.FAULTS if fault.name not in {row["fault"] for row in rows}]:
        parts.append(f"## Not run\n\n{textwrap.fill(', '.join(missing).replace('_', ' '), CELL)}.\n")
    examples = [f"- {row['fault'].replace('_', ' ')}: `{row['example']}`" for row in rows if row["example"]]
    parts.append("## Examples\n\nHow one attempt of each fault ended.\n\n" + "\n".join(examples) + "\n")
    return "\n".join(parts)


def selected(only):
    """Return the faults whose names or groups are listed, or all.

    Raises:
        ValueError: If a name is unknown.
    """
    groups = {fault.group for fault in faults.FAULTS}
    if unknown := sorted(set(only) - groups - {fault.name for fault in faults.FAULTS}):
        raise ValueError(
            f"--only={','.join(only)} names unknown faults {unknown}. Expected groups, of {', '.join(sorted(groups))}, "
            "or names of faults, as in fault_tolerance.csv."
        )
    return [fault for fault in faults.FAULTS if not only or {fault.name, fault.group} & set(only)]


def define_flags():
    """Define the flags of this suite."""
    flags.DEFINE_string("output_dir", None, "Folder of the runs. Finished faults in it are kept.", required=True)
    flags.DEFINE_list("only", [], "Names or groups of faults; all by default. These are done again.")
    flags.DEFINE_string("results", str(RESULTS), "Folder of the tables.")
    flags.DEFINE_integer("seed", 0, "Seed of all that is random.")


def main():
    """Do the faults, and write the tables after each."""
    values, environment = flags.FLAGS, artifacts.environment()
    results, out = pathlib.Path(values.results), pathlib.Path(values.output_dir).absolute()
    order = [fault.name for fault in faults.FAULTS]
    finished, table = out / "finished.csv", results / "fault_tolerance.csv"
    chosen = selected(values.only)
    rows = {
        row["fault"]: row for row in (artifacts.read_texts(table) if table.exists() else []) if row["fault"] in order
    }
    done = {row["fault"] for row in artifacts.read_texts(finished)} if finished.exists() else set()
    for fault in chosen:
        if fault.name in done and not values.only:
            continue
        folder = out / fault.group.replace(" ", "_") / fault.name
        shutil.rmtree(folder, ignore_errors=True)  # Of an attempt that was interrupted.
        row = attempt_all(fault, faults.Bench(folder, values.seed, out / "runs"))
        row = {name: value.replace(str(out), "OUT") if isinstance(value, str) else value for name, value in row.items()}
        shutil.rmtree(folder, ignore_errors=True)
        print(*(f"{name} {row[name]}" for name in ("fault", *COUNTS, "seconds")), sep=", ", flush=True)
        rows[fault.name] = {**row, "backend": environment["backend"], "commit": environment["commit"]}
        artifacts.write_csv(table, sorted(rows.values(), key=lambda row: order.index(row["fault"])))
        text = page(artifacts.read_texts(table), environment)
        artifacts.write_text(results / "fault_tolerance.md", text)
        done.add(fault.name)
        artifacts.write_csv(finished, [{"fault": name} for name in sorted(done)])
    return 0 if all(int(rows[f.name][state]) == 0 for f in chosen for state in (LOST, WRONG)) else 1

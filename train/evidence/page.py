"""The page of a study: the paper's numbers beside ours, its claims with a test of significance, and what was cut."""

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

import report
from evidence.paper import EXAMPLES

SAMPLES = "regularization samples"
_TESTED = (
    "Differences in points; runs of a seed share initial weights and batches, and are compared as pairs (Student's t, "
    "two-sided; Holm's correction over the claims of one table that are measured).\n"
)


class Line(NamedTuple):
    """The finished runs of one arm: its `paper.Arm`, `(teacher, student)` here, and a dict of seeds to their rows."""

    arm: object
    pair: tuple
    rows: dict

    def values(self, what="accuracy"):
        """A dict of seeds to percent: the last epoch's `accuracy`, the `best` epoch's, or another column of a table."""
        column, factor = {
            "accuracy": ("test_accuracy", 100),
            "best": ("best_accuracy", 100),
            "best epoch": ("best_epoch", 1),
            "mismatched": ("mismatched_accuracy", 100),
            SAMPLES: ("regularization_sample_rate", 100),
        }[what]
        return {
            seed: factor * row[column]
            for seed, row in self.rows.items()
            if row.get(column) is not None and math.isfinite(row[column])
        }


class Difference(NamedTuple):
    """What one arm has more than another, in points, over the seeds that both have.

    Args:
        mean: Mean difference.
        low: Lower end of its 95 % confidence interval, by Student's t; NaN of one seed.
        high: Upper end.
        p: Two-sided, of the paired t-test; NaN of one seed.
        seeds: How many.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def difference(one, other):
    """The paired difference of two dicts of seeds to values: a `Difference`, or `None` where they share no seed.

    Runs of a seed start from the same weights and see the same batches, so that they are pairs.
    """
    shared = sorted(set(one) & set(other))
    if not shared:
        return None
    differences = np.array([one[seed] - other[seed] for seed in shared])
    mean, count = float(differences.mean()), len(shared)
    spread = float(differences.std(ddof=1)) if count > 1 else math.nan
    if count < 2:
        return Difference(mean, math.nan, math.nan, math.nan, count)
    if spread == 0:  # All differ alike: the test has nothing to divide by.
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    half = float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    return Difference(mean, mean - half, mean + half, p, count)


def holm(values):
    """Holm's correction of p-values for their number: a list in the same order; NaN stays and does not count."""
    known = sorted((p, i) for i, p in enumerate(values) if not math.isnan(p))
    corrected, largest = list(values), 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def _spread(values, digits=2):
    """`mean ± standard deviation` of a dict's values."""
    numbers = list(values.values())
    if not numbers:
        return ""
    text = f"{np.mean(numbers):.{digits}f}"
    return f"{text} ± {np.std(numbers, ddof=1):.{digits}f}" if len(numbers) > 1 else text


def _number(value, form=".2f"):
    return "" if value is None else f"{value:{form}}"


def table(lines, study):
    """The rows of a study's table: dicts of strings.

    Args:
        lines: List of `Line`.
        study: `paper.Study`.
    """
    counted = any(line.arm.samples for line in lines)
    mismatched = any(line.values("mismatched") for line in lines)
    shown = []
    for line in lines:
        base = next((one for one in lines if (one.arm.name, one.pair) == (study.over, line.pair)), None)
        ours, of_base = line.values(), base.values() if base else {}
        over = difference(ours, of_base) if base and base is not line else None
        known = base and base is not line and None not in (line.arm.paper, base.arm.paper)
        row = {
            "student of": " → ".join(line.pair),
            "arm": line.arm.name,
            "paper": _number(line.arm.paper),
            "ours, last epoch": _spread(ours),
            "best epoch": f"{_spread(line.values('best'))} ({_spread(line.values('best epoch'), 0)})" if ours else "",
            "n": str(len(ours)),
            "ours - paper": _number(np.mean(list(ours.values())) - line.arm.paper, "+.2f")
            if ours and line.arm.paper is not None
            else "",
            f"over {study.over}: paper": _number(line.arm.paper - base.arm.paper, "+.2f") if known else "",
            f"over {study.over}: ours": _number(over.mean, "+.2f") if over else "",
        }
        if mismatched:
            row["ours, mismatched"] = _spread(line.values("mismatched"))
        if counted:
            row["samples, %: paper"] = _number(line.arm.samples and 100 * line.arm.samples / EXAMPLES, ".1f")
            row["samples, %: ours"] = _spread(line.values(SAMPLES), 1)
        row["runs"] = _runs(line.rows)
        shown.append(row)
    return shown


class Tested(NamedTuple):
    """A claim of a study and what was measured of it.

    Args:
        pair: Teacher and student here.
        claim: `paper.Claim`.
        paper: The paper's difference in points, or `None`.
        measured: `Difference`.
        p: Its p-value after Holm's correction over the claims of the study; NaN of one seed.
    """

    pair: tuple
    claim: object
    paper: float | None
    measured: Difference
    p: float

    @property
    def text(self):
        """The claim as a line."""
        what = f", in {self.claim.what}" if self.claim.what != "accuracy" else ""
        return f"{self.claim.better} > {self.claim.worse}{what}"

    @property
    def verdict(self):
        """Whether it holds: a phrase."""
        return verdict(self.measured.mean, self.p)


def tested(lines, study):
    """The claims of a study of which both arms have finished runs: a list of `Tested`.

    Args:
        lines: List of `Line`.
        study: `paper.Study`.
    """
    found = []
    for pair in dict.fromkeys(line.pair for line in lines):
        arms = {line.arm.name: line for line in lines if line.pair == pair}
        for claim in study.claims:
            if claim.better in arms and claim.worse in arms:
                better, worse = arms[claim.better], arms[claim.worse]
                paper = _paper(better.arm, worse.arm, claim.what)
                measured = difference(better.values(claim.what), worse.values(claim.what))
                if measured:
                    found.append((pair, claim, paper, measured))
    corrected = holm([measured.p for *_, measured in found])
    return [Tested(*one, p) for one, p in zip(found, corrected)]


def claims(found):
    """The rows of a table of claims: dicts of strings.

    Args:
        found: List of `Tested`.
    """
    return [
        {
            "student of": " → ".join(one.pair),
            "claim": one.text,
            "paper": _number(one.paper, "+.2f"),
            "ours": f"{one.measured.mean:+.2f}",
            "95 % interval": "" if one.measured.seeds < 2 else f"{one.measured.low:+.2f} to {one.measured.high:+.2f}",
            "n": str(one.measured.seeds),
            "p, Holm": "" if math.isnan(one.p) else "< 0.001" if one.p < 0.001 else f"{one.p:.3f}",
            "so": one.verdict,
        }
        for one in found
    ]


def overview(found):
    """A table of the claims of several studies, in which each links to its page.

    Args:
        found: Dict of what a study is called to its list of `Tested`.
    """
    rows = [
        {"page": f"[{name}]({name.replace(' ', '')}.md)", **row} for name, ones in found.items() for row in claims(ones)
    ]
    return f"{report.markdown(rows, tuple(rows[0]))}\n{_TESTED}"


def _runs(rows):
    """Return the names of runs that differ in the seed, in the notation of a shell: `NAME-{0,1,2}`."""
    seeds = sorted(rows)
    names = [rows[seed]["run"] for seed in seeds]
    stems = {name.removesuffix(f"-{seed}") for name, seed in zip(names, seeds)}
    return f"`{stems.pop()}-{{{','.join(map(str, seeds))}}}`" if len(seeds) > 1 else f"`{names[0]}`"


def _paper(better, worse, what):
    of = (lambda arm: arm.paper) if what == "accuracy" else (lambda arm: arm.samples and 100 * arm.samples / EXAMPLES)
    return None if None in (of(better), of(worse)) else of(better) - of(worse)


def _judged(lines):
    """Which epoch counts, and by what the best one was chosen."""
    (chosen,) = {row.get("eval_split") or "the test set" for line in lines for row in line.rows.values()}
    if chosen == "the test set":
        return "The last epoch counts; the best one was chosen by the test set."
    return f"The last epoch counts, on the test set; the best one was chosen by {chosen}, and its accuracy is theirs."


def verdict(mean, p, level=0.05):
    """What a difference says of a claim that it is positive."""
    if math.isnan(p):
        return "one seed: no test"
    if p >= level:
        return "not told apart"
    return "holds" if mean > 0 else "the opposite holds"


def markdown(study, budget, lines, cuts, facts):
    """The page's part on one budget.

    Args:
        study: `paper.Study`.
        budget: Its name.
        lines: List of `Line`.
        cuts: As of `budgets.Scale`.
        facts: Dict of what else is to be known, such as the teachers' accuracies.
    """
    shown, told = table(lines, study), claims(tested(lines, study))
    text = f"## Budget `{budget}`\n\n"
    if cuts:
        rows = [dict(zip(("cut", "here", "the paper's recipe"), row)) for row in cuts]
        text += f"{report.markdown(rows, tuple(rows[0]))}\n"
    text += "".join(f"{what}: {value}.\n" for what, value in facts.items()) + "\n"
    text += f"{report.markdown(shown, tuple(shown[0]))}\n"
    text += f"Accuracies in percent, mean ± standard deviation over n seeds. {_judged(lines)}\n"
    text += "`python train/tables.py --show_flags=RUN` prints the flags of a run.\n"
    if told:
        text += f"\n{report.markdown(told, tuple(told[0]))}\n{_TESTED}"
    return text

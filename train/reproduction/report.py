"""Sections of pages on studies: the paper's numbers, the measured ones, and tests of the claims."""

import math
from typing import NamedTuple

import numpy as np

from reproduction.markdown import format_table
from reproduction.paper_results import EXAMPLES
from reproduction.statistics import Difference, format_mean, get_verdict, holm, paired_difference

SAMPLES = "regularization samples"
TEST_NOTE = (
    "Differences in points. Runs of a seed share initial weights and batches and are compared as pairs (Student's t, "
    "two-sided; Holm's correction over the measured claims of one table)."
)
_METRICS = {  # Column of a run's row, and factor.
    "accuracy": ("test_accuracy", 100),
    "best": ("best_accuracy", 100),
    "best epoch": ("best_epoch", 1),
    "mismatched": ("mismatched_accuracy", 100),
    SAMPLES: ("regularization_sample_rate", 100),
}


class VariantResult(NamedTuple):
    """The finished runs of one variant.

    Args:
        variant: `variants.Variant`.
        pair: Names of teacher and student here.
        rows: Dict of seeds to rows. See `run_store.RunRecord.row`.
    """

    variant: object
    pair: tuple
    rows: dict

    def values(self, metric="accuracy"):
        """Return a dict of seeds to percent: `accuracy` of the last epoch, of the `best` one, or another metric."""
        column, factor = _METRICS[metric]
        return {
            seed: factor * row[column]
            for seed, row in self.rows.items()
            if row.get(column) is not None and math.isfinite(row[column])
        }

    @property
    def run_names(self):
        """Names of the runs, which differ in the seed, in the notation of a shell: `NAME-{0,1,2}`."""
        seeds = sorted(self.rows)
        names = [self.rows[seed]["run"] for seed in seeds]
        if len(seeds) == 1:
            return names[0]
        return f"{names[0].removesuffix(f'-{seeds[0]}')}-{{{','.join(map(str, seeds))}}}"


def result_rows(results, study):
    """Return the rows of a study's table: dicts of strings.

    Args:
        results: List of `VariantResult`.
        study: `variants.Study`.
    """
    has_samples = any(result.variant.samples for result in results)
    has_mismatched = any(result.values("mismatched") for result in results)
    rows = []
    for result in results:
        variant, accuracies = result.variant, result.values()
        baseline = next((r for r in results if (r.variant.name, r.pair) == (study.baseline, result.pair)), None)
        if baseline is result:
            baseline = None
        gain = paired_difference(accuracies, baseline.values()) if baseline else None
        paper_gain = _subtract(variant.paper, baseline and baseline.variant.paper)
        mean = float(np.mean(list(accuracies.values()))) if accuracies else None
        best = f"{format_mean(result.values('best'))} ({format_mean(result.values('best epoch'), 0)})"
        row = {
            "teacher → student": " → ".join(result.pair),
            "variant": variant.name,
            "paper": _format(variant.paper),
            "ours, last epoch": format_mean(accuracies),
            "best epoch": best if accuracies else "",
            "n": str(len(accuracies)),
            "ours - paper": _format(_subtract(mean, variant.paper), "+.2f"),
            f"over {study.baseline}: paper": _format(paper_gain, "+.2f"),
            f"over {study.baseline}: ours": _format(gain and gain.mean, "+.2f"),
        }
        if has_mismatched:
            row["ours, mismatched"] = format_mean(result.values("mismatched"))
        if has_samples:
            row["samples, %: paper"] = _format(_sample_rate(variant), ".1f")
            row["samples, %: ours"] = format_mean(result.values(SAMPLES), 1)
        rows.append({**row, "runs": f"`{result.run_names}`"})
    return rows


class ClaimResult(NamedTuple):
    """A claim of a study and its measurement.

    Args:
        pair: Names of teacher and student here.
        claim: `variants.Claim`.
        paper: The paper's difference in points, or `None`.
        measured: `Difference`.
        p: Its p-value after Holm's correction over the claims of the study; NaN for one seed.
    """

    pair: tuple
    claim: object
    paper: float | None
    measured: Difference
    p: float

    @property
    def text(self):
        """The claim in one line."""
        metric = f", in {self.claim.metric}" if self.claim.metric != "accuracy" else ""
        return f"{self.claim.better} > {self.claim.worse}{metric}"

    @property
    def verdict(self):
        """Whether it holds: a phrase."""
        return get_verdict(self.measured.mean, self.p)


def evaluate_claims(results, study):
    """Return a `ClaimResult` for each claim of a study if both variants have finished runs.

    Args:
        results: List of `VariantResult`.
        study: `variants.Study`.
    """
    measurements = []
    for pair in dict.fromkeys(result.pair for result in results):
        by_name = {result.variant.name: result for result in results if result.pair == pair}
        for claim in study.claims:
            if claim.better in by_name and claim.worse in by_name:
                better, worse = by_name[claim.better], by_name[claim.worse]
                paper = _paper_difference(better.variant, worse.variant, claim.metric)
                measured = paired_difference(better.values(claim.metric), worse.values(claim.metric))
                if measured:
                    measurements.append((pair, claim, paper, measured))
    corrected = holm([measured.p for *_, measured in measurements])
    return [ClaimResult(*measurement, p) for measurement, p in zip(measurements, corrected)]


def claim_rows(results):
    """Return the rows of a table of claims: dicts of strings.

    Args:
        results: List of `ClaimResult`.
    """
    return [
        {
            "teacher → student": " → ".join(result.pair),
            "claim": result.text,
            "paper": _format(result.paper, "+.2f"),
            "ours": f"{result.measured.mean:+.2f}",
            "95 % interval": f"{result.measured.low:+.2f} to {result.measured.high:+.2f}"
            if result.measured.seeds > 1
            else "",
            "n": str(result.measured.seeds),
            "p, Holm": "" if math.isnan(result.p) else "< 0.001" if result.p < 0.001 else f"{result.p:.3f}",
            "verdict": result.verdict,
        }
        for result in results
    ]


def format_claims(results_by_study, links):
    """Format a table of the claims of several studies.

    Args:
        results_by_study: Dict of display names of studies to lists of `ClaimResult`.
        links: Dict of display names of studies to links.
    """
    rows = [
        {"study": f"[{name}]({links[name]})", **row}
        for name, results in results_by_study.items()
        for row in claim_rows(results)
    ]
    return f"{format_table(rows)}\n{TEST_NOTE}\n"


def format_study(study, results, deviations, facts):
    """Format the section of a study at one scale.

    Args:
        study: `variants.Study`.
        results: List of `VariantResult`.
        deviations: Rows `(what, here, the paper's)` of this study. See `presets.get_deviations`.
        facts: Dict of further facts, such as the teachers' accuracies.
    """
    parts = ["".join(f"- {name}: {value}.\n" for name, value in facts.items())] if facts else []
    parts += [format_deviations(deviations)] if deviations else []
    parts += [format_table(result_rows(results, study))]
    claims = claim_rows(evaluate_claims(results, study))
    return "\n".join([*parts, *([format_table(claims)] if claims else [])])


def format_deviations(rows):
    """Format rows `(what, here, the paper's)` as a table."""
    return format_table([dict(zip(("deviation", "here", "the paper's recipe"), row)) for row in rows])


def describe_evaluation(results):
    """Describe which epoch is reported, and on which examples the best one was selected."""
    splits = {row.get("eval_split") or "the test set" for result in results for row in result.rows.values()}
    text = f"The main result is the last epoch's, on the test set. The best epoch was selected on {', '.join(splits)}"
    return f"{text}." if splits == {"the test set"} else f"{text}, and its accuracy is on them."


def _paper_difference(better, worse, metric):
    if metric == "accuracy":
        return _subtract(better.paper, worse.paper)
    return _subtract(_sample_rate(better), _sample_rate(worse))


def _sample_rate(variant):
    return variant.samples and 100 * variant.samples / EXAMPLES


def _subtract(first, second):
    return None if None in (first, second) else first - second


def _format(value, form=".2f"):
    return "" if value is None else f"{value:{form}}"

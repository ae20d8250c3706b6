"""The pages of all studies, one per data set, rendered from the records of finished runs."""

import pathlib

from keras_wsl.training import artifacts
from reproduction import plots, report, studies
from reproduction.presets import SCALES, get_deviations
from reproduction.run_store import RunStore
from reproduction.study_runner import RECORDS, StudyRunner
from reproduction.variants import CIFAR100, IMAGENET, MULTINLI

MAX_SEEDS = 20  # Seeds that a page looks for.
TITLES = {CIFAR100: "CIFAR-100", IMAGENET: "ImageNet", MULTINLI: "MultiNLI"}
NOTES = (
    "Accuracies are in percent, mean ± standard deviation over n seeds. `python train/reproduce.py --show_flags=RUN` "
    f"prints the flags of a run. {report.TEST_NOTE}"
)


def display_name(name):
    """Return the name of a study in texts: `table 6`, or `online`."""
    return f"table {name}" if name[0].isdigit() else name


def page_link(name):
    """Return the link of a study's section: `cifar100.md#table-6`."""
    return f"{studies.STUDIES[name].data}.md#{display_name(name).replace(' ', '-')}"


def write_pages(output_dir, results_dir, preset, scale_names):
    """Write the page of each data set with a finished run, since studies share runs, and that of all claims.

    Args:
        output_dir: Directory of the runs.
        results_dir: Directory of the pages.
        preset: Preset of MultiNLI's networks; if runs of others are recorded and none of this one, theirs.
        scale_names: Names of the scales that have a part on the pages.
    """
    results_dir, claims = pathlib.Path(results_dir), {}
    preset = _recorded_preset(RunStore(results_dir / RECORDS), preset)
    for data, title in TITLES.items():
        parts = []
        for scale_name in scale_names:
            scale = SCALES[scale_name](preset)[data]
            collected = {}  # Results and facts by name of the study.
            for name, study in studies.STUDIES.items():
                if study.data == data:
                    results, facts = StudyRunner(study, scale, MAX_SEEDS, output_dir, results_dir).get_results()
                    if results:
                        collected[name] = results, facts
                        evaluated = report.evaluate_claims(results, study)
                        claims.setdefault(scale_name, {})[name] = evaluated
            if collected:
                image = f"{data}_accuracies_{scale_name}.png"
                by_study = {display_name(name): results for name, (results, _) in collected.items()}
                plots.plot_accuracies(by_study, f"{title}, scale {scale_name}", results_dir / image)
                suffix = f" at scale {scale_name}" if parts else ""  # Headings are anchors.
                parts.append(_format_scale(scale_name, scale, collected, image, suffix))
        if parts:
            text = f"# {title}\n\nMade by `train/reproduce.py`. {NOTES}\n\n" + "\n".join(parts)
            artifacts.write_text(results_dir / f"{data}.md", text)
    _write_claims(claims, results_dir)


def _format_scale(scale_name, scale, collected, image, suffix):
    """Format the part of a page on one scale: deviations of all studies, then a section per study."""
    results = [result for results, _ in collected.values() for result in results]
    parts = [f"Scale `{scale_name}`: {report.describe_evaluation(results)}\n"]
    parts += [report.format_deviations(scale.deviations)] if scale.deviations else []
    for name, (results, facts) in collected.items():
        study = studies.STUDIES[name]
        parts.append(
            f"## {display_name(name).capitalize()}{suffix}\n\n**{study.title}.** {study.notes}".rstrip() + "\n"
        )
        deviations = get_deviations(study, scale)[len(scale.deviations) :]
        parts.append(report.format_study(study, results, deviations, facts))
    return "\n".join([*parts, f"## Accuracies{suffix}\n\n![Accuracies]({image})\n"])


def _recorded_preset(store, preset):
    students = {pathlib.PurePath(row["student"]).name for row in store.rows() if "--sequence_length=" in row["flags"]}
    return preset if not students or pathlib.PurePath(preset).name in students else min(students)


def _write_claims(claims, results_dir):
    """Write `claims.md`, the claims of all studies and whether they hold, if anything is measured."""
    parts = []
    for scale_name, by_name in claims.items():
        if any(by_name.values()):
            image = f"claims_{scale_name}.png"
            results = {display_name(name): results for name, results in by_name.items()}
            links = {display_name(name): page_link(name) for name in by_name}
            plots.plot_claims(results, f"Claims, scale {scale_name}", results_dir / image)
            parts.append(
                f"## Scale `{scale_name}`\n\n{report.format_claims(results, links)}\n![Differences]({image})\n"
            )
    if parts:
        text = "# Claims of the papers\n\nMade by `train/reproduce.py`.\n\n" + "\n".join(parts)
        artifacts.write_text(results_dir / "claims.md", text)

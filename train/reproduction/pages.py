"""The pages of all studies, rendered from the records of finished runs."""

import pathlib

from keras_wsl.training import artifacts
from reproduction import plots, report, studies
from reproduction.presets import SCALES, get_deviations
from reproduction.run_store import RunStore
from reproduction.study_runner import RECORDS, StudyRunner

MAX_SEEDS = 20  # Seeds that a page looks for.


def display_name(name):
    """Return the name of a study in texts: `table 6`, or `online`."""
    return f"table {name}" if name[0].isdigit() else name


def page_name(name):
    """Return the name of the file of a study's page, without its suffix: `table6`."""
    return display_name(name).replace(" ", "")


def page_title(name):
    """Return the title of a study's page: `Table 4: ImageNet`, or the study's title."""
    title = studies.STUDIES[name].title
    return f"{display_name(name).capitalize()}: {title}" if name[0].isdigit() else title


def write_pages(output_dir, results_dir, preset, scale_names):
    """Write the pages of all studies with a finished run, since studies share runs, and that of all claims.

    Args:
        output_dir: Directory of the runs.
        results_dir: Directory of the pages.
        preset: Preset of MultiNLI's networks; if runs of others are recorded and none of this one, theirs.
        scale_names: Names of the scales that have a part on the pages.
    """
    results_dir, claims = pathlib.Path(results_dir), {scale_name: {} for scale_name in scale_names}
    preset = _recorded_preset(RunStore(results_dir / RECORDS), preset)
    for name, study in studies.STUDIES.items():
        parts, title, file_name = [], page_title(name), page_name(name)
        for scale_name in scale_names:
            scale = SCALES[scale_name](preset)[study.data]
            results, facts = StudyRunner(study, scale, MAX_SEEDS, output_dir, results_dir).get_results()
            if results:
                image = f"{file_name}_{scale_name}.png"
                plots.plot_accuracies(results, f"{title}, scale {scale_name}", results_dir / image)
                text = report.format_study(study, scale_name, results, get_deviations(study, scale), facts)
                parts.append(f"{text}\n![Accuracies]({image})\n")
                claims[scale_name][display_name(name)] = report.evaluate_claims(results, study)
        if parts:
            notes = [study.notes] if study.notes else []
            head = [f"# {title}", f"Made by `train/reproduce.py --table={name}`.", *notes]
            artifacts.write_text(results_dir / f"{file_name}.md", "\n\n".join([*head, "\n".join(parts)]))
    _write_claims(claims, results_dir)


def _recorded_preset(store, preset):
    students = {pathlib.PurePath(row["student"]).name for row in store.lookup() if "--sequence_length=" in row["flags"]}
    return preset if not students or pathlib.PurePath(preset).name in students else min(students)


def _write_claims(claims, results_dir):
    """Write `claims.md`, the claims of all studies and whether they hold, if anything is measured."""
    parts = []
    for scale_name, results_by_study in claims.items():
        if any(results_by_study.values()):
            image = f"claims_{scale_name}.png"
            plots.plot_claims(results_by_study, f"Claims, scale {scale_name}", results_dir / image)
            parts.append(
                f"## Scale `{scale_name}`\n\n{report.format_claims(results_by_study)}\n![Differences]({image})\n"
            )
    if parts:
        text = "# Claims of the papers\n\nMade by `train/reproduce.py`.\n\n" + "\n".join(parts)
        artifacts.write_text(results_dir / "claims.md", text)

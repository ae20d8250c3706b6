"""Plans and records of runs that several tests share."""

from keras_wsl.training import artifacts
from reproduction import presets, studies
from reproduction.run_store import RunStore
from reproduction.variants import CIFAR100

SMOKE, CPU, FULL = (make("preset") for make in (presets.smoke, presets.cpu, presets.full))
FLAGS = "--student=resnet8\n--teacher=\n--soft_labels=\n--epochs=2\n"


def make_paths(tmp_path):
    """Return the flags of a study that are paths, below a directory."""
    (tmp_path / "results").mkdir(exist_ok=True)
    names = {"output_dir": "runs", "results": "results", "data_dir": "images.npz"}
    return {flag: str(tmp_path / name) for flag, name in names.items()}


def finish_run(folder, flags=FLAGS, **changes):
    """Write the files of a finished run."""
    result = {"student": "resnet8", "test_accuracy": 0.5, "seconds": 20.0, "train_examples": 100, "epochs": 2}
    artifacts.write_text(folder / "run.flags", flags)
    artifacts.write_csv(folder / "epochs.csv", [{"epoch": 1, "val_accuracy": 0.5}])
    artifacts.write_json(folder / "result.json", {**result, "device": artifacts.environment()["device"], **changes})


def record_run(results, name, flags=FLAGS, **changes):
    """Add a finished run to the tables in a directory of results."""
    finish_run(results / "finished" / name, flags, **changes)
    RunStore(results / "records").add(results / "finished" / name, CIFAR100)


def plan(name, scales, seeds=1):
    """Return the teachers and the students of a study."""
    study = studies.STUDIES[name]
    return presets.plan_runs(study, scales[study.data], seeds)

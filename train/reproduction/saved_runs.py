"""Saved students: their files, networks and teachers, and the data on which they are evaluated."""

import collections.abc
import dataclasses
import pathlib

from absl import flags

import cifar100
import imagenet
import multinli
from keras_wsl import data, models
from keras_wsl.files import sha256
from keras_wsl.models import keras_nlp_backbones
from keras_wsl.models.weights import read_network
from keras_wsl.training import artifacts, config
from reproduction.run_store import RunRecord


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """A data set on which students are evaluated.

    Args:
        config: Class of its runs' `Config`.
        load: Function of a `Config` and parsed flags that returns `data.Splits`.
        data_settings: Names of the settings that it depends on.
        build: Function that builds a network. See `runner.run`.
        check: Function of a `Config` and a network that raises an error if it was trained on other inputs.
    """

    config: type
    load: collections.abc.Callable
    data_settings: tuple = ()
    build: collections.abc.Callable = models.build
    check: collections.abc.Callable = lambda settings, model: None


DATASETS = {
    "digits": DatasetSpec(config.Config, lambda settings, values: data.digits()),
    "cifar100": DatasetSpec(config.Config, cifar100.load_splits),
    "imagenet": DatasetSpec(
        config.ImageNetConfig, imagenet.load_splits, ("image_size", "resize", "max_corrupt_images")
    ),
    "multinli": DatasetSpec(
        config.MultiNLIConfig,
        multinli.load_splits,
        ("student", "vocabulary", "lowercase", "sequence_length"),
        keras_nlp_backbones.build,
        multinli.check_network,
    ),
}
# Settings with a flag: for files; all but the first two also override those of a run.
FLAGS = (
    "student",
    "student_layers",
    "teacher",
    "teacher_weights",
    "teacher_layers",
    "max_train_examples",
    "image_size",
    "resize",
    "max_corrupt_images",
    "vocabulary",
    "lowercase",
    "sequence_length",
)


@dataclasses.dataclass(frozen=True)
class Network:
    """A file of weights, and the network that is built for it; `name` is empty for a `.keras` file."""

    path: pathlib.Path
    name: str = ""
    options: tuple = ()
    dtype_policy: str = "float32"

    @property
    def label(self):
        """Name in tables."""
        return pathlib.PurePath(self.name or self.path.name).name


@dataclasses.dataclass(frozen=True)
class Student:
    """A student to evaluate.

    Args:
        path: Path that the user passed.
        data: Key of `DATASETS`.
        config: `Config` of its run, or the default one, with the values of flags.
        network: `Network`.
        teacher: `Network`, or `None`.
        run: Pairs of a run's columns and their values.
        test_examples: Integer, the size of the test set of its run, or `None`.
    """

    path: pathlib.Path
    data: str
    config: config.Config
    network: Network
    teacher: Network | None
    run: tuple = ()
    test_examples: int | None = None


def read(path, values):
    """Read the student of a path.

    Args:
        path: A run's directory or a file of weights.
        values: The parsed flags.

    Returns:
        `Student`.

    Raises:
        FileNotFoundError: If there is no such file, no finished run, or no file of the teacher.
        ValueError: If a file is of another type, or flags are missing or do not fit.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _read_run(path, values)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Expected the directory of a run, a .keras file or a .weights.h5 file."
        )
    if not values.data:
        raise ValueError(f"{path} does not record its data set. Pass --data, one of {', '.join(DATASETS)}.")
    settings = override(get_dataset(values.data).config(), values, FLAGS)
    name = ""
    if path.suffix != ".keras":
        name = _name_for(path, "student", values.student)
    network = Network(path, name, _hashable(settings.student_options()))
    return Student(path, values.data, settings, network, _teacher(settings))


def _read_run(folder, values):
    row = RunRecord.read(folder).row
    result = artifacts.read_result(folder, "test_examples")
    settings = override(_read_config(folder), values, FLAGS[2:])
    path = folder / "student.keras"
    name = values.data or _get_dataset_name(settings, path)
    if get_dataset(name).config is not type(settings):
        raise ValueError(
            f"{folder} is a run of {type(settings).__name__}, which does not fit --data={name}. Omit --data."
        )
    teacher = _teacher(settings)
    recorded = result.get("teacher_sha256")
    if teacher and recorded and values.teacher_weights is None and sha256(teacher.path) != recorded:
        raise ValueError(
            f"{teacher.path} is not the teacher of {folder}: its SHA-256 differs. Pass the teacher's file by "
            "--teacher_weights, or --teacher=none."
        )
    run = tuple((column, row[column]) for column in ("method", "weighting", "seed"))
    return Student(folder, name, settings, Network(path), teacher, run, result["test_examples"])


def _read_config(folder):
    """Return the `Config` of a run, of the class that has all of its settings."""
    path = folder / "run.flags"
    lines = config.read_lines(path)
    names = {line.removeprefix("--").partition("=")[0] for line in lines}
    kind = config.ImageNetConfig if "image_size" in names else config.Config
    kind = config.MultiNLIConfig if "sequence_length" in names else kind
    return config.read(path, kind)


def _get_dataset_name(settings, path):
    """Return the name of a run's data set. Digits and CIFAR-100 have the same `Config`; their images differ."""
    names = [name for name, dataset in DATASETS.items() if dataset.config is type(settings)]
    if len(names) == 1:
        return names[0]
    return "digits" if load_network(path).input_shape[1:] == (8, 8, 1) else "cifar100"


def get_dataset(name):
    """Return the `DatasetSpec` of `--data`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in DATASETS:
        raise ValueError(f"--data must be one of {', '.join(DATASETS)}. Received: --data={name}.")
    return DATASETS[name]


def define_flags(names, values=flags.FLAGS):
    """Define flags for settings of these names, of all data sets, with default `None`; and for the data."""
    known = {field.name: field for dataset in DATASETS.values() for field in dataclasses.fields(dataset.config)}
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_bool}
    for name in names:
        define[known[name].type](name, None, known[name].metadata["help"], flag_values=values)
    flags.DEFINE_string("data", "", f"The data set: {', '.join(DATASETS)}.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Path of the data. See the script of the data set.", flag_values=values)
    flags.DEFINE_bool("download", False, "Whether TFDS may download the data.", flag_values=values)


def override(settings, values, names):
    """Return a `Config` with the settings of these names replaced by flags that are set."""
    given = {name: getattr(values, name) for name in names if getattr(values, name) is not None}
    if unknown := [name for name in given if not hasattr(settings, name)]:
        raise ValueError(f"--{unknown[0]} does not apply to this data set. Omit it.")
    return dataclasses.replace(settings, **given)


def _teacher(settings):
    """Return the teacher's `Network`, or `None`."""
    if settings.teacher == "none" or not (settings.teacher or settings.teacher_weights):
        return None
    if not settings.teacher_weights:
        raise ValueError(f"--teacher={settings.teacher} has no weights. Pass their file by --teacher_weights.")
    path = pathlib.Path(settings.teacher_weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"The teacher's file {path} does not exist. Pass it by --teacher_weights, or pass --teacher=none."
        )
    name = settings.teacher
    if path.suffix != ".keras":
        name = _name_for(path, "teacher", name)
    return Network(path, name, _hashable(settings.teacher_options()), settings.dtype_policy)


def _name_for(path, role, name):
    """Return the name of the network of a `.weights.h5` file."""
    if not path.name.endswith(".weights.h5"):
        raise ValueError(f"{path} is not a network. Expected a .keras file or a .weights.h5 file.")
    if not name:
        raise ValueError(f"{path} has only weights. Pass their network by --{role}, such as --{role}=resnet8.")
    return name


def _hashable(options):
    return tuple(options.items())


def load_network(path):
    """Return the network of a `.keras` file; of a `Distiller`, its student.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or has layers that are unknown or contain code.
    """
    model = read_network(path)
    return getattr(model, "student", model)

"""What saved students are: their files, networks and teachers, and the data by which they are judged."""

import collections.abc
import dataclasses
import pathlib

from absl import flags

import cifar100
import imagenet
import multinli
from evidence.run_store import RunRecord
from keras_wsl import data, models
from keras_wsl.files import sha256
from keras_wsl.models import keras_nlp_backbones
from keras_wsl.models.weights import read_network
from keras_wsl.training import artifacts, config


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set by which students are judged.

    Args:
        settings: The kind of its runs' settings.
        splits: Function of settings and parsed flags that reads it.
        reads: Names of the settings that it depends on.
        build: As of `trainer.run`.
        check: Function of settings and a network that refuses one which was trained on other inputs.
    """

    config: type
    splits: collections.abc.Callable
    reads: tuple = ()
    build: collections.abc.Callable = models.build
    check: collections.abc.Callable = lambda wanted, model: None


SOURCES = {
    "digits": Source(config.Config, lambda wanted, values: data.digits()),
    "cifar100": Source(config.Config, cifar100.splits),
    "imagenet": Source(config.ImageNet, imagenet.splits, ("image_size", "resize", "max_corrupt_images")),
    "multinli": Source(
        config.MultiNLI,
        multinli.splits,
        ("student", "vocabulary", "lowercase", "sequence_length"),
        keras_nlp_backbones.build,
        multinli.check,
    ),
}
# The settings that are flags here too: of files, and in place of a run's own but for the first two.
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
    """A file of weights, and the network that is built for it: `name` is empty where a `.keras` file says all."""

    path: pathlib.Path
    name: str = ""
    options: tuple = ()
    dtype_policy: str = "float32"

    @property
    def label(self):
        """What it is called in tables."""
        return pathlib.PurePath(self.name or self.path.name).name


@dataclasses.dataclass(frozen=True)
class Student:
    """What is judged.

    Args:
        path: As the user named it.
        data: Key of `SOURCES`.
        settings: Those of its run, or defaults; with what flags say.
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
    """The student that a path stands for.

    Args:
        path: A run's folder or a file of weights.
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
            f"There is no student {path}. Expected the folder of a run, a .keras file or a .weights.h5 file."
        )
    if not values.data:
        raise ValueError(f"{path} does not say what it was trained on. Pass --data, one of {', '.join(SOURCES)}.")
    wanted = with_flags(source(values.data).config(), values, FLAGS)
    name = ""
    if path.suffix != ".keras":
        name = _name_for(path, "student", values.student)
    network = Network(path, name, _hashable(wanted.student_options()))
    return Student(path, values.data, wanted, network, _teacher(wanted))


def _read_run(folder, values):
    row = RunRecord.read(folder).row
    result = artifacts.read_result(folder, "test_examples")
    wanted = with_flags(_run_settings(folder), values, FLAGS[2:])
    path = folder / "student.keras"
    name = values.data or _data_of(wanted, path)
    if source(name).config is not type(wanted):
        raise ValueError(
            f"{folder} is a run of {type(wanted).__name__}, whose data is not --data={name}. Leave --data out."
        )
    teacher = _teacher(wanted)
    recorded = result.get("teacher_sha256")
    if teacher and recorded and values.teacher_weights is None and sha256(teacher.path) != recorded:
        raise ValueError(
            f"{teacher.path} is not the file that taught {folder}: its SHA-256 is another. Name the teacher's file by "
            "--teacher_weights, or pass --teacher=none."
        )
    run = tuple((column, row[column]) for column in ("method", "weighting", "seed"))
    return Student(folder, name, wanted, Network(path), teacher, run, result["test_examples"])


def _run_settings(folder):
    """The settings of a run, of the kind that has all of them."""
    path = folder / "run.flags"
    lines = config.read_lines(path)
    names = {line.removeprefix("--").partition("=")[0] for line in lines}
    kind = config.ImageNet if "image_size" in names else config.Config
    kind = config.MultiNLI if "sequence_length" in names else kind
    return config.read(path, kind)


def _data_of(wanted, path):
    """What a run was trained on. The settings of digits and CIFAR-100 are of one kind; their images differ."""
    own = [name for name, source in SOURCES.items() if source.config is type(wanted)]
    if len(own) == 1:
        return own[0]
    return "digits" if saved(path).input_shape[1:] == (8, 8, 1) else "cifar100"


def source(name):
    """The data set of `--data`.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in SOURCES:
        raise ValueError(f"--data={name} is unknown. Expected one of {', '.join(SOURCES)}.")
    return SOURCES[name]


def define_flags(names, values=flags.FLAGS):
    """Defines flags for settings of these names, of whatever data set, that are none by default; and for the data."""
    known = {field.name: field for source in SOURCES.values() for field in dataclasses.fields(source.config)}
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_bool}
    for name in names:
        define[known[name].type](name, None, known[name].metadata["help"], flag_values=values)
    flags.DEFINE_string("data", "", f"The data set: {', '.join(SOURCES)}.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Where it lies, as of the script of that name.", flag_values=values)
    flags.DEFINE_bool("download", False, "Whether TFDS may download it.", flag_values=values)


def with_flags(wanted, values, names):
    """The settings, with those of these names that are given as flags."""
    given = {name: getattr(values, name) for name in names if getattr(values, name) is not None}
    if unknown := [name for name in given if not hasattr(wanted, name)]:
        raise ValueError(f"--{unknown[0]} is no setting of this data. Leave it out.")
    return dataclasses.replace(wanted, **given)


def _teacher(wanted):
    """The teacher's `Network`, or `None`."""
    if wanted.teacher == "none" or not (wanted.teacher or wanted.teacher_weights):
        return None
    if not wanted.teacher_weights:
        raise ValueError(f"--teacher={wanted.teacher} has no weights: name their file by --teacher_weights.")
    path = pathlib.Path(wanted.teacher_weights)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path} of the teacher. Name it by --teacher_weights, or pass --teacher=none."
        )
    name = wanted.teacher
    if path.suffix != ".keras":
        name = _name_for(path, "teacher", name)
    return Network(path, name, _hashable(wanted.teacher_options()), wanted.dtype_policy)


def _name_for(path, role, name):
    """The network of a `.weights.h5` file."""
    if not path.name.endswith(".weights.h5"):
        raise ValueError(f"{path} is no network: expected a .keras file or a .weights.h5 file.")
    if not name:
        raise ValueError(f"{path} holds weights alone. Name their network by --{role}, such as --{role}=resnet8.")
    return name


def _hashable(options):
    return tuple(options.items())


def saved(path):
    """The network of a `.keras` file; of a distiller's, its student.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or its layers are unknown here or code.
    """
    model = read_network(path)
    return getattr(model, "student", model)

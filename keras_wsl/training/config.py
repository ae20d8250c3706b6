"""The settings of a run: the source of its flags, of `run.flags`, and of what is compared on resume."""

import dataclasses
import math

from absl import flags

from keras_wsl import untrusted
from keras_wsl.backend.tensorflow import multi_worker

LARGEST_FILE = 2**20  # Bytes of a flagfile.


OPTIMIZER_HELP = "sgd (coupled weight decay) or adamw (no decay of biases and normalization)."
SCHEDULE_HELP = "steps (divide by ten at --decay_epochs) or linear (warmup, then decay to 0)."
DECAY_HELP = "Epochs after which --schedule=steps divides the learning rate by ten."


def _field(default, text, **kwargs):
    return dataclasses.field(default=default, metadata={"help": text, **kwargs})


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run.

    The defaults are the CIFAR-100 recipe of CRD's code, which the WSL paper's CIFAR-100 results use: SGD with momentum
    0.9 and weight decay 5e-4, 240 epochs of batches of 64, learning rate 0.05, divided by ten after epochs 150, 180
    and 210.
    """

    teacher: str = _field("", "Teacher network; empty for --method=none.")
    teacher_weights: str = _field("", "Teacher weights, a .weights.h5 or .keras file.")
    online: bool = _field(False, "Distill from the teacher's checkpoints, in the order in which it was trained.")
    teacher_update_epochs: int = _field(1, "Student epochs per teacher checkpoint, with --online.", lower_bound=1)
    teacher_checkpoints: str = _field("", "Directory of teacher checkpoints; by default next to the weights.")
    soft_labels: str = _field("", "Directory of cached teacher logits (cache_soft_labels.py), in place of --teacher.")
    student: str = _field("wrn_16_2", "Student network.")
    student_weights: str = _field("", "Initial student weights, a .weights.h5 or .keras file.")
    method: str = _field("wsl", "Distillation method; none trains on labels only.")
    extra_losses: tuple = _field((), "Methods whose published losses are added to the --method's, such as wsl,at.")
    temperature: float | None = _field(None, "Temperature of the soft labels.")
    alpha: float | None = _field(None, "Weight of the distillation loss.")
    student_loss_weight: float | None = _field(None, "Weight of the cross-entropy with the labels.")
    weighting: str = _field("", "Per-example weighting, such as wsl or wsl*teacher_correct; the loss's own if empty.")
    keep_probability: float = _field(0.0, "Probability of keeping an example that the weighting would drop.")
    loss_kwargs: tuple = _field((), "Other arguments of the loss, such as beta=8,standardize=True.")
    warmup_epochs: int | None = _field(None, "Epochs of linear warmup of the distillation loss.", lower_bound=0)
    pretrain_epochs: int = _field(30, "Epochs of the pretraining stage (ab, ft, fsp).", lower_bound=1)
    epochs: int = _field(240, "Number of epochs.", lower_bound=1)
    batch_size: int = _field(64, "Examples per step; the last batch of an epoch may be smaller.", lower_bound=1)
    optimizer: str = _field("sgd", OPTIMIZER_HELP)
    learning_rate: float = _field(0.05, "Peak learning rate.", lower_bound=0.0)
    schedule: str = _field("steps", SCHEDULE_HELP)
    decay_epochs: tuple = _field((150, 180, 210), DECAY_HELP)
    lr_warmup_fraction: float = _field(0.1, "Fraction of all steps in which --schedule=linear warms up.")
    momentum: float = _field(0.9, "SGD momentum.")
    nesterov: bool = _field(False, "Use Nesterov momentum.")
    weight_decay: float = _field(5e-4, "Weight decay.", lower_bound=0.0)
    global_clipnorm: float = _field(0.0, "Maximum norm of the gradient over all weights; 0 disables.", lower_bound=0.0)
    label_smoothing: float = _field(0.0, "Label smoothing in the student's cross-entropy.", lower_bound=0.0)
    teacher_batch_statistics: bool = _field(False, "Use batch statistics in the teacher's batch normalization.")
    seed: int = _field(0, "Seed of initial weights, shuffling and augmentation.", lower_bound=0)
    padding_mode: str = _field("constant", "Padding of random crops: constant (zeros) or reflect.")
    num_views: int = _field(0, "Epochs after which augmentations repeat; 0 for never.", lower_bound=0)
    max_train_examples: int = _field(0, "Train on a class-balanced subset of this size; 0 for all.", lower_bound=0)
    validation_examples: int = _field(0, "Training examples held out for validation; 0 validates on the test set.")
    eval_every: int = _field(1, "Epochs between evaluations; the last epoch is always evaluated.", lower_bound=1)
    dtype_policy: str = _field("float32", "Keras dtype policy, such as mixed_float16.")
    strategy: str = _field("none", "Distribution: none, mirrored, multi_worker (reads TF_CONFIG) or tpu.")
    steps_per_execution: int = _field(1, "Training steps per call of the compiled step.", lower_bound=1)
    backup_every_steps: int = _field(0, "Steps between backups within an epoch; 0 for none.", lower_bound=0)
    checkpoint_every: int = _field(0, "Epochs between weight files in checkpoints/; 0 for none.", lower_bound=0)
    deterministic: bool = _field(True, "Use deterministic operations, so that a run repeats bit for bit.")

    # No annotations: these are not settings of a run.
    clean_examples = 2000  # Size of the class-balanced unaugmented training subset that is evaluated each epoch.
    eval_batch_size = 500  # Examples per forward pass in evaluation.

    def teacher_options(self):
        """Return further arguments for the function that builds the teacher."""
        return {}

    def student_options(self):
        """Return further arguments for the function that builds the student."""
        return {}


@dataclasses.dataclass(frozen=True)
class ImageNetConfig(Config):
    """The settings of a run on ImageNet.

    The defaults are the recipe of the code of Overhaul and of WSL: SGD with Nesterov momentum 0.9 and weight decay
    1e-4, batches of 256, learning rate 0.1, divided by ten after epochs 30, 60 and 90.
    """

    student: str = _field("imagenet_resnet18", "Student network.")
    epochs: int = _field(100, "Number of epochs.", lower_bound=1)
    batch_size: int = _field(256, "Images per step; the last batch of an epoch may be smaller.", lower_bound=1)
    learning_rate: float = _field(0.1, "Peak learning rate.", lower_bound=0.0)
    decay_epochs: tuple = _field((30, 60, 90), DECAY_HELP)
    nesterov: bool = _field(True, "Use Nesterov momentum.")
    weight_decay: float = _field(1e-4, "Weight decay.", lower_bound=0.0)
    image_size: int = _field(224, "Height and width of the network inputs.", lower_bound=1)
    resize: int = _field(0, "Shorter side of a test image before the center crop; 0 for image_size * 256 / 224.")
    max_corrupt_images: int = _field(100, "Maximum number of unreadable images to skip.", lower_bound=0)

    eval_batch_size = 100


@dataclasses.dataclass(frozen=True)
class MultiNLIConfig(Config):
    """The settings of a run on MultiNLI.

    The defaults are the recipe of PKD's code: AdamW with learning rate 5e-5, weight decay 0.01 and gradients clipped
    to norm 1, 4 epochs of batches of 32, linear warmup over a tenth of the steps and linear decay to 0.
    """

    student: str = _field("bert_base_cased", "Student network, or a keras-nlp preset (name or directory).")
    student_layers: int = _field(0, "Keep this many of the student's first layers; 0 for all.", lower_bound=0)
    epochs: int = _field(4, "Number of epochs.", lower_bound=1)
    batch_size: int = _field(32, "Pairs per step; the last batch of an epoch may be smaller.", lower_bound=1)
    optimizer: str = _field("adamw", OPTIMIZER_HELP)
    learning_rate: float = _field(5e-5, "Peak learning rate.", lower_bound=0.0)
    schedule: str = _field("linear", SCHEDULE_HELP)
    decay_epochs: tuple = _field((), DECAY_HELP)
    weight_decay: float = _field(0.01, "Weight decay.", lower_bound=0.0)
    global_clipnorm: float = _field(1.0, "Maximum norm of the gradient over all weights; 0 disables.", lower_bound=0.0)
    teacher_layers: int = _field(0, "Keep this many of the teacher's first layers; 0 for all.", lower_bound=0)
    vocabulary: str = _field("", "WordPiece vocabulary, a file with a token per line; the student preset's if empty.")
    lowercase: bool = _field(False, "Convert text to lower case for --vocabulary; a preset sets this itself.")
    sequence_length: int = _field(128, "Maximum tokens per pair; longer pairs are truncated.", lower_bound=5)

    eval_batch_size = 128

    def teacher_options(self):
        """Return the number of layers of the teacher."""
        return {"layers": self.teacher_layers or None}

    def student_options(self):
        """Return the number of layers of the student."""
        return {"layers": self.student_layers or None}


# Changes that turn the settings of a run with a teacher into those of a run on labels only.
WITHOUT_TEACHER = {
    "method": "none",
    "teacher": "",
    "teacher_weights": "",
    "extra_losses": (),
    "temperature": None,
    "alpha": None,
    "loss_kwargs": (),
    "weighting": "",
    "keep_probability": 0.0,
}


def define_flags(flag_values=flags.FLAGS, config_class=Config):
    """Define a flag for each setting of a run, and for where and how a run starts.

    Args:
        flag_values: `absl.flags.FlagValues`.
        config_class: `Config` or a subclass.
    """
    for field in dataclasses.fields(config_class):
        text, default = field.metadata["help"], field.default
        options = {key: value for key, value in field.metadata.items() if key != "help"}
        options["flag_values"] = flag_values
        if isinstance(default, tuple):
            flags.DEFINE_list(field.name, [str(item) for item in default], text, **options)
        elif isinstance(default, bool):
            flags.DEFINE_bool(field.name, default, text, **options)
        elif isinstance(default, str):
            flags.DEFINE_string(field.name, default, text, **options)
        elif field.type in (int, int | None):
            flags.DEFINE_integer(field.name, default, text, **options)
        else:
            flags.DEFINE_float(field.name, default, text, **options)
    flags.DEFINE_string(
        "output_dir", "", "Directory of the results; created if it is missing.", flag_values=flag_values
    )
    flags.DEFINE_bool("resume", False, "Resume the run in --output_dir from its last backup.", flag_values=flag_values)
    flags.DEFINE_float(
        "worker_timeout",
        multi_worker.TIMEOUT,
        "Seconds to wait for the other workers of --strategy=multi_worker.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "logical_devices",
        None,
        "Logical CPU devices, to try --strategy=mirrored without GPUs.",
        lower_bound=1,
        flag_values=flag_values,
    )


def from_flags(values, config_class=Config):
    """Return the settings given by parsed flags.

    Args:
        values: `absl.flags.FlagValues`.
        config_class: `Config` or a subclass.

    Raises:
        ValueError: If an entry of `--decay_epochs` is not an integer.
    """
    config = {field.name: values[field.name].value for field in dataclasses.fields(config_class)}
    try:
        config["decay_epochs"] = tuple(int(epoch) for epoch in config["decay_epochs"])
    except ValueError as error:
        raise ValueError(
            f"`--decay_epochs` must be integers. Received: --decay_epochs={','.join(config['decay_epochs'])}."
        ) from error
    config |= {name: tuple(config[name]) for name in ("extra_losses", "loss_kwargs")}
    return config_class(**config)


def read(path, config_class=Config):
    """Read settings from a `run.flags`. A setting that the file does not have gets its default.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or has flags of another class of settings.
    """
    lines = read_lines(path)
    try:
        return parse(lines, config_class)
    except flags.Error as error:
        raise ValueError(f"{path} must contain only flags of a {config_class.__name__}. Received: {error}.") from error


def parse(lines, config_class=Config):
    """Return settings from the lines of a `run.flags`.

    Raises:
        absl.flags.Error: If the lines have flags of another class of settings.
        ValueError: If an entry of `--decay_epochs` is not an integer.
    """
    values = flags.FlagValues()
    define_flags(values, config_class)
    values(["run", *lines])
    return from_flags(values, config_class)


def read_lines(path):
    """Return the lines of a `run.flags` without comments and empty lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged: not a text file of at most 1 MiB with a flag on each line.
    """
    lines = [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    invalid = [line for line in lines if not line.startswith("--") or line.startswith(("--flagfile", "--undefok"))]
    if invalid or not lines:
        received = f"the line {invalid[0][:60]!r}" if invalid else "no flags"
        raise ValueError(
            f"{path} must have a flag on each line. Received: {received}. The file is damaged: restore it from "
            '"config" in result.json, or choose another --output_dir.'
        )
    return lines


def read_text(path):
    """Return the text of a flagfile.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a regular file, larger than 1 MiB, or not text.
    """
    try:
        text = untrusted.read_bytes(path, LARGEST_FILE).decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} must be a text file of flags. Received: bytes that are not text.")
    return text


def parse_floats(name, items):
    """Return the items of a list flag as floats.

    Args:
        name: Name of the flag, for errors.
        items: List of strings.

    Raises:
        ValueError: If an item is not a finite number.
    """
    try:
        values = [float(item) for item in items]
    except ValueError as error:
        raise ValueError(f"--{name}={','.join(items)} must be numbers, such as --{name}=1,4.") from error
    if not all(map(math.isfinite, values)):
        raise ValueError(f"--{name}={','.join(items)} must be finite numbers, such as --{name}=1,4.")
    return values


def to_lines(config):
    """Return the settings as lines of a flagfile."""
    lines = []
    for name, value in dataclasses.asdict(config).items():
        if value is None:
            continue
        if isinstance(value, bool):
            lines.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, tuple):
            lines.append(f"--{name}={','.join(str(item) for item in value)}")
        else:
            lines.append(f"--{name}={value}")
    return lines

"""What a run is: one list of settings, from which come the flags, `run.flags` and what is compared on resume."""

import dataclasses
import math

from absl import flags

from keras_wsl import untrusted
from keras_wsl.backend.tensorflow import multi_worker

LARGEST_FILE = 2**20  # Bytes of a flagfile.


def _field(default, text, **kwargs):
    return dataclasses.field(default=default, metadata={"help": text, **kwargs})


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a run. Defaults are the paper's for CIFAR-100: methods.md 1.1 and 1.2 name their sources."""

    teacher: str = _field("", "The teacher's network; none for --method=none.")
    teacher_weights: str = _field("", "A .weights.h5 or .keras file of the teacher.")
    online: bool = _field(False, "Whether the teacher's own checkpoints teach, one after the other as it trained.")
    teacher_update_epochs: int = _field(1, "Epochs of the student that one checkpoint teaches.", lower_bound=1)
    teacher_checkpoints: str = _field("", "Their folder; checkpoints/ beside --teacher_weights by default.")
    soft_labels: str = _field("", "A folder of cache_soft_labels.py, whose logits teach: no teacher is built.")
    student: str = _field("wrn_16_2", "The student's network.")
    student_weights: str = _field("", "A .weights.h5 or .keras file with which the student starts.")
    method: str = _field("wsl", "How to train: one of recipes.METHODS; none is labels alone.")
    extra_losses: tuple = _field((), "Methods whose losses, as published, are added to the --method's, such as wsl,at.")
    temperature: float | None = _field(None, "Temperature of the soft labels; the method's published one by default.")
    alpha: float | None = _field(None, "Weight of the distillation loss; the method's published one by default.")
    student_loss_weight: float | None = _field(None, "Weight of the labels' loss; the published one by default.")
    weighting: str = _field("", "Weights of examples, such as wsl or wsl*teacher_correct; the loss's own by default.")
    keep_probability: float = _field(0.0, "With which exclude_ and only_regularization_samples keep what they drop.")
    loss_kwargs: tuple = _field((), "Other settings of the loss: name=value, such as beta=8,standardize=True.")
    warmup_epochs: int | None = _field(
        None, "Epochs over which the loss's weight grows; the published ones by default.", lower_bound=0
    )
    pretrain_epochs: int = _field(30, "Epochs of the stage that some methods have before the main one.", lower_bound=1)
    epochs: int = _field(240, "Epochs.", lower_bound=1)
    batch_size: int = _field(64, "Examples in a step; the last batch of an epoch may be smaller.", lower_bound=1)
    optimizer: str = _field("sgd", "sgd, whose weight decay is coupled; or adamw, whose spares biases and norms.")
    learning_rate: float = _field(0.05, "The highest learning rate.", lower_bound=0.0)
    schedule: str = _field("steps", "How the learning rate falls: in steps, or linear to 0 after a linear warm-up.")
    decay_epochs: tuple = _field((150, 180, 210), "Epochs after which --schedule=steps divides it by ten.")
    lr_warmup_fraction: float = _field(0.1, "The part of all steps in which --schedule=linear rises.")
    momentum: float = _field(0.9, "Momentum of sgd.")
    nesterov: bool = _field(False, "Nesterov's momentum of sgd.")
    weight_decay: float = _field(5e-4, "Weight decay.", lower_bound=0.0)
    global_clipnorm: float = _field(0.0, "The longest gradient, over all weights; 0 for any.", lower_bound=0.0)
    label_smoothing: float = _field(0.0, "Smoothing of the labels in the student's own loss.", lower_bound=0.0)
    teacher_batch_statistics: bool = _field(
        False, "Whether the teacher's batch normalization uses the batch's statistics."
    )
    seed: int = _field(0, "Seed of initial weights, order, crops and flips.", lower_bound=0)
    padding_mode: str = _field(
        "constant", "What a crop sees beyond an image's border: constant (zeros), or reflect, the image mirrored."
    )
    num_views: int = _field(0, "Epochs after which crops and flips come again; 0 for never.", lower_bound=0)
    max_train_examples: int = _field(0, "Training examples, every class alike; 0 for all.", lower_bound=0)
    validation_examples: int = _field(
        0, "Training examples held out: each epoch is judged on them, the test set at the end."
    )
    eval_every: int = _field(
        1,
        "Epochs between evaluations on the test set or --validation_examples; the last is always judged.",
        lower_bound=1,
    )
    dtype_policy: str = _field("float32", "Keras's dtype policy, such as mixed_float16.")
    strategy: str = _field("none", "Devices: none, mirrored, multi_worker (as TF_CONFIG says) or tpu.")
    steps_per_execution: int = _field(1, "Steps in one call of the compiled step.", lower_bound=1)
    backup_every_steps: int = _field(0, "Steps between backups inside an epoch; 0 for none.", lower_bound=0)
    checkpoint_every: int = _field(0, "Epochs between weight files in checkpoints/, for --online.", lower_bound=0)
    deterministic: bool = _field(True, "Whether operations are deterministic, so that a run repeats to the bit.")

    # Without annotations, so no settings of a run.
    clean_examples = 2000  # Clean training examples, every class alike, that are judged after each epoch.
    eval_batch_size = 500  # Examples in a forward pass of an evaluation.

    def teacher_options(self):
        """What is said of the teacher's network beside its name and weights, for what builds it."""
        return {}

    def student_options(self):
        """Likewise of the student's."""
        return {}


@dataclasses.dataclass(frozen=True)
class ImageNet(Config):
    """The settings of a run on ImageNet; defaults are the recipe of Overhaul's and WSL's code: methods.md 1.3."""

    student: str = _field("imagenet_resnet18", "The student's network.")
    epochs: int = _field(100, "Epochs.", lower_bound=1)
    batch_size: int = _field(256, "Images in a step; the last batch of an epoch may be smaller.", lower_bound=1)
    learning_rate: float = _field(0.1, "The highest learning rate.", lower_bound=0.0)
    decay_epochs: tuple = _field((30, 60, 90), "Epochs after which --schedule=steps divides it by ten.")
    nesterov: bool = _field(True, "Nesterov's momentum of sgd.")
    weight_decay: float = _field(1e-4, "Weight decay.", lower_bound=0.0)
    image_size: int = _field(224, "Height and width of what the networks see.", lower_bound=1)
    resize: int = _field(0, "Shorter side of a test image before its centre is cut out; 0 for 256 / 224 of the size.")
    max_corrupt_images: int = _field(100, "So many images that cannot be read are left out.", lower_bound=0)

    eval_batch_size = 100


@dataclasses.dataclass(frozen=True)
class MultiNLI(Config):
    """The settings of a run on MultiNLI; defaults are the recipe of PKD's code: methods.md 1.4."""

    student: str = _field("bert_base_cased", "A network's name, or a preset of keras-nlp: its name or its folder.")
    student_layers: int = _field(0, "The student has the first layers of it alone; 0 for all.", lower_bound=0)
    epochs: int = _field(4, "Epochs.", lower_bound=1)
    batch_size: int = _field(32, "Pairs in a step; the last batch of an epoch may be smaller.", lower_bound=1)
    optimizer: str = _field(
        "bert_adamw", "sgd, whose weight decay is coupled; or adamw, whose spares biases and norms."
    )
    learning_rate: float = _field(5e-5, "The highest learning rate.", lower_bound=0.0)
    schedule: str = _field("linear", "How the learning rate falls: in steps, or linear to 0 after a linear warm-up.")
    decay_epochs: tuple = _field((), "Epochs after which --schedule=steps divides it by ten.")
    weight_decay: float = _field(0.01, "Weight decay.", lower_bound=0.0)
    global_clipnorm: float = _field(1.0, "The longest gradient, over all weights; 0 for any.", lower_bound=0.0)
    teacher_layers: int = _field(0, "The teacher has the first layers of its network alone; 0 for all.", lower_bound=0)
    vocabulary: str = _field("", "A file of WordPiece's tokens, a line each; those of the student's preset by default.")
    lowercase: bool = _field(False, "Whether --vocabulary is of lower-case tokens; a preset's says so itself.")
    sequence_length: int = _field(128, "Tokens of a pair; longer ones are truncated, and counted.", lower_bound=5)

    eval_batch_size = 128

    def teacher_options(self):
        """How many layers the teacher has."""
        return {"layers": self.teacher_layers or None}

    def student_options(self):
        """How many layers the student has."""
        return {"layers": self.student_layers or None}


# Of a run on labels alone, beside others of the same settings that have a teacher.
ALONE = {
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


def define_flags(flag_values=flags.FLAGS, kind=Config):
    """Defines a flag for each setting of a kind of `Config`, and for where and how a run is started."""
    for field in dataclasses.fields(kind):
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
        "output_dir", "", "Folder of the run's results; made if it is missing.", flag_values=flag_values
    )
    flags.DEFINE_bool(
        "resume", False, "Go on with the run in --output_dir, from its last backup.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "worker_timeout",
        multi_worker.TIMEOUT,
        "Seconds that --strategy=multi_worker waits for the other workers to start.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "logical_devices",
        None,
        "Devices into which the processor is divided, to try --strategy=mirrored without GPUs.",
        lower_bound=1,
        flag_values=flag_values,
    )


def from_flags(values, kind=Config):
    """The settings of a kind that the parsed flags give.

    Raises:
        ValueError: If an epoch of --decay_epochs is no number.
    """
    config = {field.name: values[field.name].value for field in dataclasses.fields(kind)}
    try:
        config["decay_epochs"] = tuple(int(epoch) for epoch in config["decay_epochs"])
    except ValueError as error:
        raise ValueError(f"--decay_epochs={','.join(config['decay_epochs'])} must be whole numbers.") from error
    config |= {name: tuple(config[name]) for name in ("extra_losses", "loss_kwargs")}
    return kind(**config)


def read(path, kind=Config):
    """Read the settings of a kind from a `run.flags`; settings that are newer than the file get their defaults.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or of another kind.
    """
    lines = read_lines(path)
    try:
        return parse(lines, kind)
    except flags.Error as error:
        raise ValueError(f"{path} must have only flags that these scripts know. Received: {error}.") from error


def parse(lines, kind=Config):
    """Return the settings of a kind from the lines of a `run.flags`.

    Raises:
        absl.flags.Error: If they are of another kind.
        ValueError: If an epoch of --decay_epochs is no number.
    """
    values = flags.FlagValues()
    define_flags(values, kind)
    values(["run", *lines])
    return from_flags(values, kind)


def read_lines(path):
    """Return the lines of a `run.flags` that are flags, without its comments.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged: not a small text file with a flag on each line.
    """
    lines = [line.strip() for line in read_text(path).split("\n")]
    lines = [line for line in lines if line and not line.startswith("#")]
    wrong = [line for line in lines if not line.startswith("--") or line.startswith(("--flagfile", "--undefok"))]
    if wrong or not lines:
        received = f"the line {wrong[0][:60]!r}" if wrong else "no flags"
        raise ValueError(
            f"{path} must have a flag of the run on each line. Received: {received}. The file is damaged: restore it "
            'from "config" in result.json, or choose another --output_dir.'
        )
    return lines


def read_text(path):
    """Return the text of a flagfile.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a regular file, too large, or not text.
    """
    try:
        text = untrusted.read_bytes(path, LARGEST_FILE).decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{path} must be a text file of flags. Received: bytes that are not text.")
    return text


def numbers(name, items):
    """The floats that a flag of this name lists.

    Raises:
        ValueError: If one is no finite number.
    """
    try:
        found = [float(item) for item in items]
    except ValueError as error:
        raise ValueError(f"--{name}={','.join(items)} must be numbers, such as --{name}=1,4.") from error
    if not all(map(math.isfinite, found)):
        raise ValueError(f"--{name}={','.join(items)} must be finite numbers, such as --{name}=1,4.")
    return found


def to_lines(config):
    """The settings as a flagfile's lines."""
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

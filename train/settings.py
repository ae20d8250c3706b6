"""What a run is: one list of settings, from which come the flags, `run.flags` and what is compared on resume."""

import dataclasses

from absl import flags


def _field(default, text, **kwargs):
    return dataclasses.field(default=default, metadata={"help": text, **kwargs})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run. Defaults are the paper's for CIFAR-100: methods.md 1.1 and 1.2 name their sources."""

    teacher: str = _field("", "The teacher's network; none for --method=none.")
    teacher_weights: str = _field("", "A .weights.h5 or .keras file of the teacher.")
    student: str = _field("wrn_16_2", "The student's network.")
    method: str = _field("wsl", "How to train: one of recipes.METHODS; none is labels alone.")
    temperature: float | None = _field(None, "Temperature of the soft labels; the method's published one by default.")
    alpha: float | None = _field(None, "Weight of the distillation loss; the method's published one by default.")
    student_loss_weight: float | None = _field(None, "Weight of the labels' loss; the published one by default.")
    weighting: str = _field("", "Weights of examples in the distillation loss, such as wsl; its own by default.")
    weighting_probability: float = _field(0.0, "With which exclude_ and only_regularization keep what they drop.")
    loss_settings: tuple = _field((), "Other settings of the loss: name=value, such as beta=8,standardize=True.")
    warm_up_epochs: int | None = _field(
        None, "Epochs over which the loss's weight grows; the published ones by default."
    )
    stage_epochs: int = _field(30, "Epochs of the stage that some methods have before the main one.", lower_bound=1)
    epochs: int = _field(240, "Epochs.", lower_bound=1)
    batch_size: int = _field(64, "Examples in a step; the last batch of an epoch may be smaller.", lower_bound=1)
    learning_rate: float = _field(0.05, "Learning rate of the first epoch.", lower_bound=0.0)
    decay_epochs: tuple = _field((150, 180, 210), "Epochs after which the learning rate is divided by ten.")
    momentum: float = _field(0.9, "Momentum.")
    nesterov: bool = _field(False, "Nesterov's momentum.")
    weight_decay: float = _field(5e-4, "Weight decay, coupled, of all weights.", lower_bound=0.0)
    label_smoothing: float = _field(0.0, "Smoothing of the labels in the student's own loss.", lower_bound=0.0)
    teacher_training: bool = _field(False, "Whether the teacher's batch normalization uses the batch's statistics.")
    seed: int = _field(0, "Seed of initial weights, order, crops and flips.", lower_bound=0)
    train_limit: int = _field(0, "Training examples, every class alike; 0 for all.", lower_bound=0)
    holdout: int = _field(0, "Training examples held out: each epoch is judged on them, the test set at the end.")
    precision: str = _field("float32", "Keras's dtype policy, such as mixed_float16.")
    strategy: str = _field("none", "Devices: none, mirrored or tpu.")
    steps_per_execution: int = _field(1, "Steps in one call of the compiled step.", lower_bound=1)
    backup_steps: int = _field(0, "Steps between backups inside an epoch; 0 for none.", lower_bound=0)
    deterministic: bool = _field(True, "Whether operations are deterministic, so that a run repeats to the bit.")


def define_flags(flag_values=flags.FLAGS):
    """Defines a flag for each setting, and for where the results are."""
    for field in dataclasses.fields(Settings):
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
    flags.DEFINE_string("out", "", "Folder of the run's results; made if it is missing.", flag_values=flag_values)
    flags.DEFINE_bool("resume", False, "Go on with the run in --out, from its last backup.", flag_values=flag_values)


def from_flags(values):
    """The settings that the parsed flags give.

    Raises:
        ValueError: If an epoch of --decay_epochs is no number.
    """
    settings = {field.name: values[field.name].value for field in dataclasses.fields(Settings)}
    try:
        settings["decay_epochs"] = tuple(int(epoch) for epoch in settings["decay_epochs"])
    except ValueError as error:
        raise ValueError(f"--decay_epochs={','.join(settings['decay_epochs'])} must be whole numbers.") from error
    settings["loss_settings"] = tuple(settings["loss_settings"])
    return Settings(**settings)


def to_lines(settings):
    """The settings as a flagfile's lines."""
    lines = []
    for name, value in dataclasses.asdict(settings).items():
        if value is None:
            continue
        if isinstance(value, bool):
            lines.append(f"--{name}" if value else f"--no{name}")
        elif isinstance(value, tuple):
            lines.append(f"--{name}={','.join(str(item) for item in value)}")
        else:
            lines.append(f"--{name}={value}")
    return lines

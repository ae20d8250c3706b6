"""Scales of reproduction: `smoke`, `cpu` or `paper`. They turn a variant of the paper into the settings of a run."""

import dataclasses
import hashlib
import pathlib
from types import MappingProxyType
from typing import NamedTuple

from keras_wsl.training.build_losses import build_main_losses
from keras_wsl.training.config import WITHOUT_TEACHER, Config, ImageNetConfig, MultiNLIConfig, to_lines
from keras_wsl.training.recipes import get_extra_recipes, get_recipe
from reproduction import studies
from reproduction.variants import BERT, CIFAR100, IMAGENET, MULTINLI, TO_LENET, Variant

LIGHT_NETWORKS = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")  # Trained at a lower learning rate.
LABEL_SMOOTHING = 0.1


class Schedule(NamedTuple):
    """How long students are trained.

    Args:
        changes: Dict of settings.
        deviations: Tuple of rows `(what, here, the paper's)`.
    """

    changes: dict = MappingProxyType({})
    deviations: tuple = ()


class Scale(NamedTuple):
    """The settings of a data set at a scale.

    Args:
        recipe: `Config` of a student; networks and method are those of the variant.
        teacher: Dict of the teachers' settings that differ from it.
        substitute_pairs: Dict of the paper's pairs of networks to those of this scale. Pairs that are not in it are
            left out. `None` for the paper's own.
        methods: Names of the methods that are run; `None` for all.
        method_settings: Dict of names of methods to dicts of their settings at this scale.
        schedule: `Schedule` of studies.
        short_schedule: `Schedule` of studies with `short_schedule`.
        cache_logits: Whether methods on logits use cached soft labels, which all runs of a seed share.
        deviations: Tuple of rows `(what, here, the paper's)`.
        method_deviations: Dict of names of methods to such a row.
    """

    recipe: Config
    teacher: dict = MappingProxyType({})
    substitute_pairs: dict | None = None
    methods: tuple | None = None
    method_settings: dict = MappingProxyType({})
    schedule: Schedule = Schedule()
    short_schedule: Schedule = Schedule()
    cache_logits: bool = False
    deviations: tuple = ()
    method_deviations: dict = MappingProxyType({})


class Run(NamedTuple):
    """One run that a study needs.

    Args:
        name: Name of its directory, the same for the same settings in every table.
        config: `Config`, without the files of a teacher.
        variant: The `variants.Variant`; `None` for a teacher.
        pair: Names of teacher and student here. A student on labels alone has a pair too: it is compared with the
            students of that teacher.
        teacher: Name of the teacher's run; `None` if there is none.
        uses_cached_logits: Whether it reads the teacher's logits from a file of soft labels.
    """

    name: str
    config: Config
    variant: Variant | None = None
    pair: tuple | None = None
    teacher: str | None = None
    uses_cached_logits: bool = False


def run_name(config, **more):
    """Return the name of a run: its networks, its method, and a digest of its settings without seed and paths.

    Settings that have their default do not change the digest, so that a new setting leaves names as they are.

    Args:
        config: `Config`.
        **more: What else distinguishes runs, such as the teacher's name.
    """
    networks = {key: pathlib.PurePath(getattr(config, key)).name for key in ("teacher", "student")}
    files = dict.fromkeys(("teacher_weights", "teacher_checkpoints", "soft_labels"), "")
    lines = to_lines(dataclasses.replace(config, seed=0, **networks, **files))
    defaults = set(to_lines(type(config)()))
    extra = [f"{key}={value}" for key, value in more.items()]
    kind = type(config).__name__.removesuffix("Config") or "Config"
    text = "\n".join([kind, *(line for line in lines if line not in defaults), *extra])
    words = [*networks.values(), config.method, *config.extra_losses, config.weighting.replace("*", "_")]
    stem = "-".join(word for word in words if word)
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def plan_runs(study, scale, num_seeds):
    """Return the runs of a study: a dict of names to the `Run` of each teacher, and a list of the students' `Run`.

    Students are in the order of seeds, so that the first results cover all variants.

    Args:
        study: `variants.Study`.
        scale: `Scale` of its data set.
        num_seeds: Integer.
    """
    teachers, students = {}, {}
    recipe = dataclasses.replace(scale.recipe, **_get_schedule(study, scale).changes)
    for variant in study.variants:
        pair = _get_pair(variant, scale)
        if pair is None or (scale.methods is not None and variant.changes["method"] not in scale.methods):
            continue
        if (pair, variant.name) not in students:  # Two pairs of the paper may have one substitute; the first is used.
            students[pair, variant.name] = _plan_student(variant, pair, recipe, scale, teachers)
    return teachers, [_with_seed(run, seed) for seed in range(num_seeds) for run in students.values()]


def _with_seed(run, seed):
    return run._replace(name=f"{run.name}-{seed}", config=dataclasses.replace(run.config, seed=seed))


def get_deviations(study, scale):
    """Return rows `(what, here, the paper's)` of how a study deviates from the paper's recipe."""
    methods = {variant.changes["method"] for variant in study.variants}
    of_methods = (row for method, row in scale.method_deviations.items() if method in methods)
    return [*scale.deviations, *_get_schedule(study, scale).deviations, *of_methods]


def _get_schedule(study, scale):
    return scale.short_schedule if study.short_schedule else scale.schedule


def _get_pair(variant, scale):
    """Return teacher and student here; `None` if the scale has no substitute for the paper's."""
    return variant.pair if scale.substitute_pairs is None else scale.substitute_pairs.get(variant.pair)


def _plan_student(variant, pair, recipe, scale, teachers):
    """Return the `Run` of a variant's student, without a seed, and add its teacher to `teachers`."""
    teacher, student = pair
    light = {"learning_rate": 0.01} if student in LIGHT_NETWORKS else {}
    changes = {**light, **scale.method_settings.get(variant.changes["method"], {}), **variant.changes}
    config = dataclasses.replace(recipe, student=student, **changes)
    names = _display_pair(pair, config)
    if not get_recipe(config).needs_teacher:
        return Run(run_name(config), config, variant, names)
    teacher_run = _plan_teacher(teacher, scale, variant.label_smoothed_teacher)
    teachers[teacher_run.name] = teacher_run
    config = dataclasses.replace(config, teacher=teacher)
    # The file that the runs of a seed share has the crops of the recipe.
    cached = scale.cache_logits and supports_cached_logits(config) and config.padding_mode == recipe.padding_mode
    return Run(run_name(config, teacher=teacher_run.name), config, variant, names, teacher_run.name, cached)


def _display_pair(pair, config):
    """Return the names of teacher and student, without directories."""
    teacher, student = (pathlib.PurePath(name).name for name in pair)
    layers = getattr(config, "student_layers", 0)
    return teacher, f"{student}, {layers} layers" if layers else student


def _plan_teacher(name, scale, label_smoothing):
    """Return the `Run` of a teacher, which keeps its checkpoints if a study uses them."""
    plain = dataclasses.replace(scale.recipe, student=name, **WITHOUT_TEACHER)
    keep = not label_smoothing and name in _online_teachers(scale)
    smoothing = LABEL_SMOOTHING if label_smoothing else 0.0
    config = dataclasses.replace(
        plain, **{**scale.teacher, "label_smoothing": smoothing, "checkpoint_every": int(keep)}
    )
    return Run(f"teacher-{run_name(config)}", config)


def _online_teachers(scale):
    variants = [v for study in studies.STUDIES.values() for v in study.variants if v.changes.get("online")]
    return {pair[0] for variant in variants if (pair := _get_pair(variant, scale))}


def supports_cached_logits(config):
    """Return whether cached soft labels can replace the teacher."""
    recipe, extra = get_recipe(config), get_extra_recipes(config)
    if recipe.stage or recipe.teacher_batch_statistics or config.teacher_batch_statistics or config.online:
        return False
    if any(item.data_dependent_kwargs for item in (recipe, *extra)):
        return False
    return not any(loss.teacher_layers for loss in build_main_losses(config, None))


_DECAY_EPOCHS = (150, 180, 210)  # Of 240 epochs.


def scale_decay_epochs(epochs):
    """Return the epochs after which the learning rate is divided by ten, in proportion to those of the recipe."""
    return tuple(dict.fromkeys(max(1, round(epoch * epochs / 240)) for epoch in _DECAY_EPOCHS if epochs > 1))


_DIGITS = ("data", "1,797 digits of 8 x 8 pixels, of which 128 train", "CIFAR-100")


def smoke(preset):
    """Return the settings of runs of a few steps, which test that everything works.

    Args:
        preset: Name or directory of a keras-nlp preset, for MultiNLI.
    """
    plain = Config(epochs=1, decay_epochs=(), max_train_examples=128, pretrain_epochs=1)
    pairs = dict.fromkeys(_paper_pairs(CIFAR100), ("resnet8", "resnet8"))
    small = ImageNetConfig(epochs=1, decay_epochs=(), max_train_examples=64, batch_size=32, image_size=64)
    short = MultiNLIConfig(
        epochs=1, max_train_examples=64, validation_examples=32, sequence_length=32, student_layers=1
    )
    return {
        CIFAR100: Scale(
            plain,
            substitute_pairs=pairs,
            method_settings=_crd_settings(64),
            cache_logits=True,
            deviations=(_DIGITS, ("epochs", "1", "240")),
        ),
        IMAGENET: Scale(
            small,
            substitute_pairs=dict.fromkeys(_paper_pairs(IMAGENET), ("imagenet_resnet18", "imagenet_mobilenet_v1")),
            methods=("none", "kd", "wsl"),
            deviations=(("steps", "2", "500,000"),),
        ),
        MULTINLI: Scale(
            short,
            teacher={"student_layers": 0},
            substitute_pairs={BERT: (preset, preset)},
            deviations=(("steps", "2", "49,088"),),
        ),
    }


def cpu(preset):
    """Return the settings of small networks and few epochs on real data: two hours per table on two cores.

    Args:
        preset: Name or directory of a keras-nlp preset, for MultiNLI.
    """
    epochs, longer = 8, 32
    images = Config(
        epochs=epochs, decay_epochs=scale_decay_epochs(epochs), eval_every=epochs // 2, max_train_examples=5000
    )
    pairs = dict.fromkeys(_paper_pairs(CIFAR100), ("resnet20", "resnet8"))
    pairs[TO_LENET] = ("resnet20", "lenet5x8")
    jpegs = ImageNetConfig(epochs=epochs, decay_epochs=(5, 7), batch_size=50, learning_rate=0.02, image_size=64)
    sentences = MultiNLIConfig(
        epochs=3,
        max_train_examples=5000,
        validation_examples=500,
        learning_rate=2e-4,
        sequence_length=48,
        student_layers=3,
    )
    return {
        CIFAR100: Scale(
            images,
            teacher={"max_train_examples": 0},
            substitute_pairs=pairs,
            methods=("none", "kd", "masked_kd", "wsl", "at", "sp", "rkd", "crd", "dkd", "dist", "lskd", "fitnet"),
            method_settings={**_crd_settings(4096), "dkd": {"warmup_epochs": 1}},
            schedule=Schedule(
                {
                    "epochs": longer,
                    "decay_epochs": scale_decay_epochs(longer),
                    "eval_every": longer // 4,
                    "num_views": epochs,
                },
                (
                    ("epochs", f"students {longer}, teachers {epochs}; decays in proportion", "240"),
                    ("evaluation", f"every {longer // 4} epochs", "every epoch"),
                    ("crops and flips", f"repeat after {epochs} epochs", "new in every epoch"),
                ),
            ),
            short_schedule=Schedule(
                {},
                (
                    ("epochs", f"{epochs}; decays in proportion", "240"),
                    ("evaluation", f"every {epochs // 2} epochs", "every epoch"),
                ),
            ),
            cache_logits=True,
            deviations=(
                (
                    "networks",
                    "ResNet-20 to ResNet-8, LeNet-5x8 in the online comparison",
                    "WRN-40-2 to WRN-16-2 and others",
                ),
                ("images", "students 5,000, stratified, drawn per seed; teachers all", "50,000"),
            ),
            method_deviations={
                "crd": ("CRD's negatives", "4,096", "16,384"),
                "dkd": ("DKD's warm-up", "1 epoch", "20"),
            },
        ),
        IMAGENET: Scale(
            jpegs,
            teacher={"epochs": longer, "decay_epochs": (20, 28), "learning_rate": 0.05},
            substitute_pairs=dict.fromkeys(_paper_pairs(IMAGENET), ("imagenet_resnet18", "imagenet_mobilenet_v1")),
            methods=("none", "kd", "at", "wsl"),
            deviations=(
                ("images", "1,000 of ten classes, 500 for the test, at 64 pixels", "1.28 million of 1,000, at 224"),
                ("networks", "ResNet-18 to MobileNet-v1", "ResNet-34 to ResNet-18, ResNet-50 to MobileNet-v1"),
                ("epochs", f"students {epochs}, teacher {longer}", "100"),
                ("batch, learning rate", "50, students 0.02 in proportion, teacher 0.05", "256, 0.1"),
            ),
        ),
        MULTINLI: Scale(
            sentences,
            teacher={"max_train_examples": 10_000, "epochs": 2, "learning_rate": 5e-5, "student_layers": 0},
            substitute_pairs={BERT: (preset, preset)},
            deviations=(
                ("networks", f"{pathlib.PurePath(preset).name} to its first three layers", "BERT-12 to BERT-3"),
                ("training pairs", "students 5,000, teacher 10,000", "392,702"),
                ("tokens of a pair", "48", "128"),
                ("epochs", "students 3, teacher 2", "4"),
            ),
        ),
    }


def full(preset):
    """Return the recipes of the papers.

    Args:
        preset: Name or directory of a keras-nlp preset, for MultiNLI.
    """
    return {
        CIFAR100: Scale(Config()),
        IMAGENET: Scale(ImageNetConfig()),
        MULTINLI: Scale(
            MultiNLIConfig(student_layers=3),
            teacher={"learning_rate": 2e-5, "student_layers": 0},
            substitute_pairs={BERT: (preset, preset)},
        ),
    }


def _crd_settings(count):
    """Return CRD's settings with this number of negatives, below the number of examples of other classes."""
    return {"crd": {"loss_kwargs": (f"negatives={count}",)}}


def _paper_pairs(data):
    return {variant.pair for study in studies.STUDIES.values() if study.data == data for variant in study.variants}


SCALES = {"smoke": smoke, "cpu": cpu, "paper": full}
NUM_SEEDS = {"smoke": 1, "cpu": 3, "paper": 5}

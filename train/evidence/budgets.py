"""What a study costs: `smoke`, `cpu` or `paper`. An arm of the paper becomes the settings of a run here."""

import dataclasses
import hashlib
import pathlib
from types import MappingProxyType
from typing import NamedTuple

from evidence import paper
from keras_wsl.training import build_losses, config, recipes

LIGHT = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")  # Which the recipe trains at a lower learning rate.
SMOOTHING = 0.1


class Length(NamedTuple):
    """How long the students of some studies are trained: dict of settings, and rows of what that cuts."""

    changes: dict = MappingProxyType({})
    cuts: tuple = ()


class Scale(NamedTuple):
    """What a data set is given at a budget.

    Args:
        recipe: `Config` of a student, whose networks and method are not those of an arm.
        teacher: Dict of the settings in which the teachers' differ from them.
        stand_ins: Dict of the paper's pairs to those of this budget; pairs that are not there are left out. `None` for
            the paper's own.
        methods: Names of the methods that are run; `None` for all.
        of_methods: Dict of names of methods to dicts of the settings that they have at this budget alone.
        usual: `Length` of the studies that are not large.
        large: `Length` of those that are.
        replay: Whether methods on logits have the teacher's soft labels from a file, which all runs of a seed share.
        cuts: Tuple of rows `(what, here, the paper's)`.
        cuts_of: Dict of names of methods to such rows, of that method alone.
    """

    recipe: config.Config
    teacher: dict = MappingProxyType({})
    stand_ins: dict | None = None
    methods: tuple | None = None
    of_methods: dict = MappingProxyType({})
    usual: Length = Length()
    large: Length = Length()
    replay: bool = False
    cuts: tuple = ()
    cuts_of: dict = MappingProxyType({})


class Run(NamedTuple):
    """One run that a study needs.

    Args:
        name: Of its folder, the same for the same settings in every table.
        wanted: `Config`, without the files of a teacher.
        arm: The `paper.Arm`; `None` of a teacher.
        pair: What teacher and student here are called, also of a student on labels alone, which is compared with that
            teacher's.
        teacher: Name of the teacher's run; `None` where there is none.
        replays: Whether it hears the teacher from a file of soft labels.
    """

    name: str
    wanted: config.Config
    arm: paper.Arm | None = None
    pair: tuple | None = None
    teacher: str | None = None
    replays: bool = False


def name_of(wanted, **more):
    """A name for a run: what it trains and how, and a digest of its settings but the seed and the places of files.

    Of settings that have their defaults the digest knows nothing, so that a new one leaves the names as they are.

    Args:
        wanted: `Config`.
        **more: What else tells runs apart, such as the teacher's name.
    """
    networks = {key: pathlib.PurePath(getattr(wanted, key)).name for key in ("teacher", "student")}
    files = dict.fromkeys(("teacher_weights", "teacher_checkpoints", "soft_labels"), "")
    lines = config.to_lines(dataclasses.replace(wanted, seed=0, **networks, **files))
    usual = set(config.to_lines(type(wanted)()))
    others = [f"{key}={value}" for key, value in more.items()]
    kind = type(wanted).__name__.removesuffix("Config") or "Config"  # As in the names of recorded runs.
    told = "\n".join([kind, *(line for line in lines if line not in usual), *others])
    words = [*networks.values(), wanted.method, *wanted.extra_losses, wanted.weighting.replace("*", "_")]
    plain = "-".join(word for word in words if word)
    return f"{plain}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"


def plan(study, scale, seeds):
    """The runs of a study: teachers, by name; and students, seed by seed, so that early ones tell something.

    Args:
        study: `paper.Study`.
        scale: `Scale` of its data set.
        seeds: Integer.

    Returns:
        Dict of names to the `Run` of each teacher, and a list of `Run`.
    """
    teachers, students = {}, {}
    recipe = dataclasses.replace(scale.recipe, **_length(study, scale).changes)
    for arm in study.arms:
        pair = _pair(arm, scale)
        if pair is None or (scale.methods is not None and arm.changes["method"] not in scale.methods):
            continue
        if (pair, arm.name) not in students:  # Two pairs of the paper may have one stand-in: the first is shown.
            students[pair, arm.name] = _student(arm, pair, recipe, scale, teachers)
    return teachers, [_of_seed(run, seed) for seed in range(seeds) for run in students.values()]


def _of_seed(run, seed):
    return run._replace(name=f"{run.name}-{seed}", wanted=dataclasses.replace(run.wanted, seed=seed))


def cuts(study, scale):
    """Rows `(what, here, the paper's)` of what is cut in a study."""
    methods = {arm.changes["method"] for arm in study.arms}
    own = (row for method, row in scale.cuts_of.items() if method in methods)
    return [*scale.cuts, *_length(study, scale).cuts, *own]


def _length(study, scale):
    return scale.large if study.large else scale.usual


def _pair(arm, scale):
    """Teacher and student here; `None` where the budget has no stand-in for the paper's."""
    return arm.pair if scale.stand_ins is None else scale.stand_ins.get(arm.pair)


def _student(arm, pair, recipe, scale, teachers):
    """The run of an arm's student, of whatever seed."""
    teacher, student = pair
    light = {"learning_rate": 0.01} if student in LIGHT else {}
    changes = {**light, **scale.of_methods.get(arm.changes["method"], {}), **arm.changes}
    wanted = dataclasses.replace(recipe, student=student, **changes)
    called = _called(pair, wanted)
    if not recipes.get_recipe(wanted).needs_teacher:
        return Run(name_of(wanted), wanted, arm, called)
    taught_by = _teacher(teacher, scale, arm.smoothed)
    teachers[taught_by.name] = taught_by
    wanted = dataclasses.replace(wanted, teacher=teacher)
    # The file that a seed's runs share has the crops of the recipe.
    replays = scale.replay and hears_logits_alone(wanted) and wanted.padding_mode == recipe.padding_mode
    return Run(name_of(wanted, teacher=taught_by.name), wanted, arm, called, taught_by.name, replays)


def _called(pair, wanted):
    """The names of teacher and student, without folders."""
    teacher, student = (pathlib.PurePath(name).name for name in pair)
    layers = getattr(wanted, "student_layers", 0)
    return teacher, f"{student}, {layers} layers" if layers else student


def _teacher(name, scale, smoothed):
    """The run of a teacher, which keeps its checkpoints if some study hears them."""
    plain = dataclasses.replace(scale.recipe, student=name, **config.WITHOUT_TEACHER)
    keeps = not smoothed and name in _heard_online(scale)
    changes = {**scale.teacher, "label_smoothing": SMOOTHING if smoothed else 0.0, "checkpoint_every": int(keeps)}
    wanted = dataclasses.replace(plain, **changes)
    return Run(f"teacher-{name_of(wanted)}", wanted)


def _heard_online(scale):
    arms = [arm for study in paper.STUDIES.values() for arm in study.arms if arm.changes.get("online")]
    return {pair[0] for arm in arms if (pair := _pair(arm, scale))}


def hears_logits_alone(wanted):
    """Whether soft labels in a file can take the teacher's place."""
    recipe, others = recipes.get_recipe(wanted), recipes.get_extra_recipes(wanted)
    if recipe.stage or recipe.teacher_batch_statistics or wanted.teacher_batch_statistics or wanted.online:
        return False
    if any(one.data_dependent_kwargs for one in (recipe, *others)):
        return False
    return not any(loss.teacher_layers for loss in build_losses.build_main_losses(wanted, None))


_DECAYS = (150, 180, 210)  # Of 240 epochs.


def shortened(epochs):
    """The epochs after which a run of so many divides its learning rate by ten, where the recipe's does."""
    return tuple(dict.fromkeys(max(1, round(epoch * epochs / 240)) for epoch in _DECAYS if epochs > 1))


_DIGITS = ("data", "1,797 digits of 8 x 8 pixels, of which 128 train", "CIFAR-100")


def smoke(preset):
    """A run is a few steps: whether everything works, and nothing of how well.

    Args:
        preset: Of MultiNLI's networks.
    """
    plain = config.Config(epochs=1, decay_epochs=(), max_train_examples=128, pretrain_epochs=1)
    pairs = dict.fromkeys(_pairs(paper.CIFAR100), ("resnet8", "resnet8"))
    small = config.ImageNetConfig(epochs=1, decay_epochs=(), max_train_examples=64, batch_size=32, image_size=64)
    short = config.MultiNLIConfig(
        epochs=1, max_train_examples=64, validation_examples=32, sequence_length=32, student_layers=1
    )
    return {
        paper.CIFAR100: Scale(
            plain, stand_ins=pairs, of_methods=_negatives(64), replay=True, cuts=(_DIGITS, ("epochs", "1", "240"))
        ),
        paper.IMAGENET: Scale(
            small,
            stand_ins=dict.fromkeys(_pairs(paper.IMAGENET), ("imagenet_resnet18", "imagenet_mobilenet_v1")),
            methods=("none", "kd", "wsl"),
            cuts=(("steps", "2", "500,000"),),
        ),
        paper.MULTINLI: Scale(
            short,
            teacher={"student_layers": 0},
            stand_ins={paper.BERT: (preset, preset)},
            cuts=(("steps", "2", "49,088"),),
        ),
    }


def cpu(preset):
    """Real data, small networks and few epochs: planned for two hours a table on two cores, beside its teachers.

    Args:
        preset: Of MultiNLI's networks.
    """
    epochs, longer = 8, 32
    images = config.Config(
        epochs=epochs, decay_epochs=shortened(epochs), eval_every=epochs // 2, max_train_examples=5000
    )
    pairs = dict.fromkeys(_pairs(paper.CIFAR100), ("resnet20", "resnet8"))
    pairs[paper.TO_LENET] = ("resnet20", "lenet5x8")
    jpegs = config.ImageNetConfig(epochs=epochs, decay_epochs=(5, 7), batch_size=50, learning_rate=0.02, image_size=64)
    sentences = config.MultiNLIConfig(
        epochs=3,
        max_train_examples=5000,
        validation_examples=500,
        learning_rate=2e-4,
        sequence_length=48,
        student_layers=3,
    )
    return {
        paper.CIFAR100: Scale(
            images,
            teacher={"max_train_examples": 0},
            stand_ins=pairs,
            methods=("none", "kd", "masked_kd", "wsl", "at", "sp", "rkd", "crd", "dkd", "dist", "lskd", "fitnet"),
            of_methods={**_negatives(4096), "dkd": {"warmup_epochs": 1}},
            usual=Length(
                {"epochs": longer, "decay_epochs": shortened(longer), "eval_every": longer // 4, "num_views": epochs},
                (
                    ("epochs", f"students {longer}, teachers {epochs}; decays at the same parts", "240"),
                    ("judged", f"every {longer // 4} epochs", "every one"),
                    ("crops and flips", f"come again after {epochs} epochs", "always others"),
                ),
            ),
            large=Length(
                {},
                (
                    ("epochs", f"{epochs}, decays at the same parts, for so many runs", "240"),
                    ("judged", f"every {epochs // 2} epochs", "every one"),
                ),
            ),
            replay=True,
            cuts=(
                (
                    "networks",
                    "ResNet-20 to ResNet-8, LeNet-5x8 in the online comparison",
                    "WRN-40-2 to WRN-16-2 and others",
                ),
                ("images", "students 5,000, every class alike, others for each seed; teachers all", "50,000"),
            ),
            cuts_of={"crd": ("CRD's negatives", "4,096", "16,384"), "dkd": ("DKD's warm-up", "1 epoch", "20")},
        ),
        paper.IMAGENET: Scale(
            jpegs,
            teacher={"epochs": longer, "decay_epochs": (20, 28), "learning_rate": 0.05},
            stand_ins=dict.fromkeys(_pairs(paper.IMAGENET), ("imagenet_resnet18", "imagenet_mobilenet_v1")),
            methods=("none", "kd", "at", "wsl"),
            cuts=(
                ("images", "1,000 of ten classes, 500 for the test, at 64 pixels", "1.28 million of 1,000, at 224"),
                ("networks", "ResNet-18 to MobileNet-v1", "ResNet-34 to ResNet-18, ResNet-50 to MobileNet-v1"),
                ("epochs", f"students {epochs}, teacher {longer}", "100"),
                ("batch, learning rate", "50, students 0.02 in proportion, teacher 0.05", "256, 0.1"),
            ),
        ),
        paper.MULTINLI: Scale(
            sentences,
            teacher={"max_train_examples": 10_000, "epochs": 2, "learning_rate": 5e-5, "student_layers": 0},
            stand_ins={paper.BERT: (preset, preset)},
            cuts=(
                ("networks", f"{pathlib.PurePath(preset).name} to its first three layers", "BERT-12 to BERT-3"),
                ("training pairs", "students 5,000, teacher 10,000", "392,702"),
                ("tokens of a pair", "48", "128"),
                ("epochs", "students 3, teacher 2", "4"),
            ),
        ),
    }


def full(preset):
    """The recipes of the papers.

    Args:
        preset: Of MultiNLI's networks.
    """
    return {
        paper.CIFAR100: Scale(config.Config()),
        paper.IMAGENET: Scale(config.ImageNetConfig()),
        paper.MULTINLI: Scale(
            config.MultiNLIConfig(student_layers=3),
            teacher={"learning_rate": 2e-5, "student_layers": 0},
            stand_ins={paper.BERT: (preset, preset)},
        ),
    }


def _negatives(count):
    """CRD's, fewer than there are examples of other classes."""
    return {"crd": {"loss_kwargs": (f"negatives={count}",)}}


def _pairs(data):
    return {arm.pair for study in paper.STUDIES.values() if study.data == data for arm in study.arms}


BUDGETS = {"smoke": smoke, "cpu": cpu, "paper": full}
SEEDS = {"smoke": 1, "cpu": 3, "paper": 5}

"""What a method's name stands for: its losses, their published weights and stages. A new method is one line here."""

import ast
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_wsl import losses, weighting
from keras_wsl.argument_checks import did_you_mean
from keras_wsl.training import config as kinds

LONGEST = 200  # Characters of a value of --loss_kwargs.
LARGEST = 2**53  # Numbers there.


class Stage(NamedTuple):
    """What is trained before the main stage, on one loss alone, at a learning rate that does not decay.

    `trains` says what learns beside the loss's own adapters: `"features"`, the student up to the last endpoint of the
    loss, or `"adapters"`, nothing else. `hand_over(loss, main_loss)` passes on what it has learned.
    """

    loss: str
    trains: str = "features"
    learning_rate: float | None = None  # The run's by default.
    hand_over: Callable | None = None


class Recipe(NamedTuple):
    """A method as its numbers were published."""

    loss: str | None = None
    student_loss_weight: float = 1.0
    published: dict | None = None  # Settings that differ from the loss's own.
    pairs: dict | None = None  # Likewise, by (teacher, student).
    extra_losses: tuple = ()  # Other losses, with their settings: the run's are for the first.
    from_data: Callable | None = None  # Settings that depend on the training examples.
    warm_up: int = 0  # Epochs over which the loss's weight grows.
    teacher_batch_statistics: bool = False
    stage: Stage | None = None
    needs_teacher: bool = True

    @property
    def counted(self):
        """Whether the main stage compares student and teacher, so that regularization samples can be counted."""
        return self.loss is not None and self.needs_teacher


def _hand_over_paraphraser(paraphrase, ft):
    ft.paraphraser.set_weights(paraphrase.paraphraser.get_weights())


def _classes_by_index(examples):
    """CRD's `labels`: the class of each index, -1 where the examples do not have it."""
    classes = np.full(examples.index.max() + 1, -1, "int32")
    classes[examples.index] = examples.labels
    return {"labels": classes}


def _of_pairs(name, wrn_40_2_wrn_16_2, wrn_40_2_wrn_40_1, resnet56_resnet20, resnet110_resnet32):
    """One setting for the four pairs of small networks to which the papers give a value of their own."""
    return {
        ("wrn_40_2", "wrn_16_2"): {name: wrn_40_2_wrn_16_2},
        ("wrn_40_2", "wrn_40_1"): {name: wrn_40_2_wrn_40_1},
        ("resnet56", "resnet20"): {name: resnet56_resnet20},
        ("resnet110", "resnet32"): {name: resnet110_resnet32},
    }


# methods.md 3 names the source of every number.
METHODS = {
    "none": Recipe(needs_teacher=False),
    "kd": Recipe("kd", student_loss_weight=0.1),
    "wsl": Recipe("wsl"),
    # The comparison of the WSL paper, at the weights of CRD's.
    "fitnet": Recipe("fitnet"),
    "at": Recipe("at"),
    "sp": Recipe("sp"),
    "cc": Recipe("cc"),
    "vid": Recipe("vid"),
    "rkd": Recipe("rkd"),
    "pkt": Recipe("pkt"),
    "ab": Recipe(stage=Stage("ab")),
    "ft": Recipe(
        "ft", stage=Stage("paraphrase", trains="adapters", learning_rate=0.01, hand_over=_hand_over_paraphraser)
    ),
    "fsp": Recipe(stage=Stage("fsp")),
    "nst": Recipe("nst"),
    "crd": Recipe("crd", from_data=_classes_by_index),
    "overhaul": Recipe("overhaul", teacher_batch_statistics=True),
    # Newer ones.
    "dkd": Recipe(
        "dkd",
        warm_up=20,
        pairs={
            **_of_pairs("beta", 6.0, 6.0, 2.0, 2.0),
            ("vgg13", "vgg8"): {"beta": 6.0},
            ("vgg13", "mobilenet_v2"): {"beta": 6.0},
        },
    ),
    "dist": Recipe("dist"),
    "lskd": Recipe("lskd", student_loss_weight=0.1),
    "mlkd": Recipe("mlkd", student_loss_weight=0.1),
    "rld": Recipe("rld", warm_up=20),
    "reviewkd": Recipe(
        "reviewkd",
        warm_up=20,
        pairs={**_of_pairs("weight", 5.0, 5.0, 0.6, 1.0), ("resnet32x4", "shufflenet_v2"): {"weight": 8.0}},
    ),
    "catkd": Recipe(
        "catkd",
        pairs={
            **_of_pairs("weight", 12.0, 1.5, 0.7, 1.8),
            ("vgg13", "vgg8"): {"weight": 4.5},
            ("resnet32x4", "shufflenet_v1"): {"weight": 600.0, "normalize": True, "pool_size": 4},
            ("resnet32x4", "shufflenet_v2"): {"weight": 600.0, "normalize": True, "pool_size": 4},
            ("wrn_40_2", "shufflenet_v1"): {"weight": 80.0, "normalize": True, "pool_size": 4},
            ("resnet50", "mobilenet_v2"): {"weight": 40.0, "normalize": True},
            ("vgg13", "mobilenet_v2"): {"weight": 15.0, "normalize": True},
        },
    ),
    "tf_kd": Recipe("tf_kd", student_loss_weight=0.05),
    "tf_kd_reg": Recipe("tf_kd_reg", student_loss_weight=0.05, needs_teacher=False),
    # What the WSL paper takes apart, and its relatives.
    "masked_kd": Recipe("masked_kd", student_loss_weight=0.1),
    "knowledge_adjustment": Recipe("knowledge_adjustment", student_loss_weight=0.1),
}


# ImageNet: the same methods, and what differs there. {(teacher, student): ...} are the two pairs of the papers.
_TO_RESNET = ("imagenet_resnet34", "imagenet_resnet18")
_TO_MOBILENET = ("imagenet_resnet50", "imagenet_mobilenet_v1")
IMAGENET = {
    **METHODS,
    "kd": Recipe("kd", student_loss_weight=0.5, published={"temperature": 1.0, "weight": 0.5}),
    "wsl": Recipe("wsl", published={"temperature": 2.0, "weight": 2.5}),
    "overhaul": Recipe("overhaul", published={"weight": 0.1}, teacher_batch_statistics=True),
    "dkd": Recipe(
        "dkd",
        published={"temperature": 1.0},
        pairs={_TO_RESNET: {"beta": 0.5}, _TO_MOBILENET: {"beta": 2.0}},
        warm_up=1,
    ),
    "dist": Recipe("dist", published={"temperature": 1.0}),
    "lskd": Recipe("lskd"),
    "rld": Recipe(
        "rld",
        published={"temperature": 1.0},
        pairs={_TO_RESNET: {"beta": 0.5}, _TO_MOBILENET: {"beta": 2.0}},
        warm_up=1,
    ),
    "reviewkd": Recipe("reviewkd", pairs={_TO_RESNET: {"weight": 1.0}, _TO_MOBILENET: {"weight": 8.0}}, warm_up=1),
}

# MultiNLI: PKD's recipes, and the methods on logits and on the pooled vector as they are elsewhere.
_PKD_KD = {"temperature": 5.0, "weight": 0.7, "divide_by_num_classes": True}
_ON_LOGITS = ("wsl", "dkd", "dist", "lskd", "mlkd", "rld", "tf_kd", "tf_kd_reg", "masked_kd", "knowledge_adjustment")
_ON_POOLED = ("rkd", "pkt", "cc", "crd")
MULTINLI = {
    "none": METHODS["none"],
    "kd": Recipe("kd", student_loss_weight=0.3, published=_PKD_KD),
    "pkd": Recipe("pkd", student_loss_weight=0.3, extra_losses=(("kd", _PKD_KD),)),
    **{name: METHODS[name] for name in _ON_LOGITS + _ON_POOLED},
}
TABLES = {kinds.Config: METHODS, kinds.ImageNet: IMAGENET, kinds.MultiNLI: MULTINLI}


def get(method, table=METHODS):
    """The recipe of a method.

    Raises:
        ValueError: If there is no such method, with those that there are.
    """
    if method not in table:
        raise ValueError(
            f"There is no method {method!r}. Expected one of {sorted(table)}.{did_you_mean(method, table)}"
        )
    return table[method]


def of(config):
    """The recipe of a run's method, on the run's data set.

    Raises:
        ValueError: If there is no such method, with those that there are.
    """
    return get(config.method, TABLES[type(config)])


def main_losses(config, train, teacher=None, student=None):
    """The distillation losses of a run's main stage: none, or the method's and those beside it.

    Args:
        settings: `Config`.
        train: The data set that is trained on.
        teacher: The network, by whose depth layers are chosen; the losses' own layers by default.
        student: Likewise.

    Raises:
        ValueError: If a setting does not fit the method.
    """
    recipe = of(config)
    if recipe.loss is None:
        names = ("alpha", "temperature", "loss_kwargs") if recipe.stage is None else ()
        unused = [name for name in ("extra_losses", *names) if getattr(config, name) not in (None, ())]
        if unused:
            raise ValueError(
                f"--method={config.method} has no distillation loss, and so no --{unused[0]}. Leave it out, or "
                "choose another method."
            )
        return []
    networks = (config, train, teacher, student)
    return [
        _loss(recipe.loss, config, _chosen(recipe, *networks)),
        *(_loss(name, None, others) for name, others in recipe.extra_losses),
        *(_loss(other.loss, None, _chosen(other, *networks)) for other in added(config)),
    ]


def added(config):
    """The recipes of `--extra_losses`, of which a run takes the losses at their published weights.

    Raises:
        ValueError: If there is no such method, or a run takes more than a loss from it.
    """
    recipes = {method: get(method, TABLES[type(config)]) for method in config.extra_losses}
    for method, recipe in recipes.items():
        if (
            recipe.loss is None
            or recipe.stage
            or recipe.warm_up
            or recipe.teacher_batch_statistics
            or recipe.extra_losses
        ):
            raise ValueError(
                f"--extra_losses={method} must be a method of one loss. It has a stage, a warm-up, several "
                "losses or none, or a teacher in training mode. Make it the --method."
            )
    return list(recipes.values())


def _chosen(recipe, config, train, teacher, student):
    """The settings of a recipe's loss, as published for these networks and data."""
    return {
        **_layers(recipe.loss, teacher, student),
        **(recipe.published or {}),
        **(recipe.pairs or {}).get((config.teacher, config.student), {}),
        **(recipe.from_data(train) if recipe.from_data else {}),
    }


def stage_loss(config, teacher=None, student=None):
    """The loss of the stage before: it has the run's weighting where it is the method's only one."""
    recipe = of(config)
    layers = _layers(recipe.stage.loss, teacher, student)
    return _loss(recipe.stage.loss, config if recipe.loss is None else None, layers)


def _layers(loss, teacher, student):
    """`{"layers": ...}` where networks of this depth are compared elsewhere than the loss has it by default."""
    own = getattr(losses.REGISTRY[loss], "default_layers", ())
    if teacher is None or student is None:
        return {}
    if loss == "pkd":
        return {"layers": _patient_layers(_depth(teacher), _depth(student))}
    if not (own and _has(teacher, "block4") and _has(student, "block4")):
        return {}
    # Of the maps of all stages, the fourth's too; of the last map alone, the fourth's.
    if len(own) == 1:
        return {"layers": [own[0].replace("block3", "block4")]}
    deeper = [name for last in own for name in ([last, last.replace("3", "4")] if "block3" in last else [last])]
    return {"layers": deeper}


def _patient_layers(teacher, student):
    """PKD-skip: each of the student's layers but the last, with every so many-th of the teacher's.

    Raises:
        ValueError: If the student is deeper, or has a single layer.
    """
    if not 2 <= student <= teacher:
        raise ValueError(
            f"--method=pkd compares a student's layers but the last with its teacher's. Received: {student} layers and "
            f"a teacher of {teacher}."
        )
    return [
        (f"transformer_layer_{i}", f"transformer_layer_{(i + 1) * teacher // student - 1}") for i in range(student - 1)
    ]


def _depth(network):
    return sum(layer.name.startswith("transformer_layer_") for layer in network._flatten_layers())


def _has(network, name):
    return any(layer.name == name for layer in network._flatten_layers())


def _loss(name, config, chosen):
    """The loss of a name, with the `chosen` settings and over them those that the run sets."""
    takes = losses.argument_names(name) - {"name"}
    if config is not None:
        given = {
            "weight": config.alpha,
            "temperature": config.temperature,
            "weighting": _weighting(config),
            **dict(_parsed(item) for item in config.loss_kwargs),
        }
        chosen = {**chosen, **{key: value for key, value in given.items() if value is not None}}
    if unknown := sorted(set(chosen) - takes):
        raise ValueError(f"--method={name} has no settings {unknown}. It takes {sorted(takes)}.")
    try:
        return losses.REGISTRY[name](**chosen)
    except (TypeError, AttributeError, OverflowError) as error:
        if config is None or not config.loss_kwargs:
            raise
        given = ",".join(config.loss_kwargs)
        raise ValueError(f"--loss_kwargs={given} must fit --method={name}. Received an error: {error}.") from error


def _weighting(config):
    """What `losses` take as `weighting`, or `None`."""
    if not config.weighting:
        return None
    names = config.weighting.split("*")
    if config.keep_probability and not any("keep_probability" in weighting.argument_names(name) for name in names):
        raise ValueError(
            f"--keep_probability={config.keep_probability} is of exclude_ and only_regularization_samples. "
            f"Received: --weighting={config.weighting}."
        )
    specs = [_weighting_of(name, config) for name in names]
    return specs[0] if len(specs) == 1 else specs


def _weighting_of(name, config):
    spec, takes = {"name": name}, weighting.argument_names(name)
    if config.keep_probability and "keep_probability" in takes:
        spec["keep_probability"] = config.keep_probability
    if "temperature" in takes:
        spec["temperature"] = config.temperature or 4.0  # Many losses have none of their own.
    return spec


def _parsed(item):
    """`"beta=8"` to `("beta", 8)`; what is no Python literal is a string."""
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise ValueError(f"--loss_kwargs={item} must be name=value, or several with commas between them.")
    if len(value) > LONGEST:
        raise ValueError(
            f"--loss_kwargs={name}=... must have at most {LONGEST} characters. Received: {len(value):,} characters."
        )
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    except (TypeError, MemoryError, RecursionError):  # Such as `{[]}`, and thousands of brackets.
        parsed = ...
    if not _is_setting(parsed):
        raise ValueError(
            f"--loss_kwargs={name} must be a number up to 2**53, True, False, None, text, or a list of these. "
            f"Received: {name}={value}."
        )
    return name, parsed


def _is_setting(value):
    """Whether a literal is what a loss may take: no infinite, no huge and no complex number."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_setting, value))
    if isinstance(value, dict):
        return all(map(_is_setting, [*value, *value.values()]))
    if isinstance(value, (int, float)):
        return abs(value) <= LARGEST
    return value is None or isinstance(value, str)

"""What a method's name stands for: its losses, their published weights and stages. A new method is one line here."""

import ast
import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_wsl import losses, weighting


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
    pairs: dict | None = None  # Settings by (teacher, student), where they differ from the loss's own.
    from_data: Callable | None = None  # Settings that depend on the training examples.
    warm_up: int = 0  # Epochs over which the loss's weight grows.
    teacher_training: bool = False
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
    "overhaul": Recipe("overhaul", teacher_training=True),
    # Newer ones.
    "dkd": Recipe("dkd", warm_up=20, pairs=_of_pairs("beta", 6.0, 6.0, 2.0, 2.0)),
    "dist": Recipe("dist"),
    "lskd": Recipe("lskd", student_loss_weight=0.1),
    "mlkd": Recipe("mlkd", student_loss_weight=0.1),
    "rld": Recipe("rld", warm_up=20),
    "reviewkd": Recipe("reviewkd", warm_up=20, pairs=_of_pairs("weight", 5.0, 5.0, 0.6, 1.0)),
    "catkd": Recipe("catkd", pairs=_of_pairs("weight", 12.0, 1.5, 0.7, 1.8)),
    "tf_kd": Recipe("tf_kd", student_loss_weight=0.05),
    "tf_kd_reg": Recipe("tf_kd_reg", student_loss_weight=0.05, needs_teacher=False),
    # What the WSL paper takes apart, and its relatives.
    "masked_kd": Recipe("masked_kd", student_loss_weight=0.1),
    "knowledge_adjustment": Recipe("knowledge_adjustment", student_loss_weight=0.1),
}


def get(method):
    """The recipe of a method.

    Raises:
        ValueError: If there is no such method, with those that there are.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}. Expected one of {sorted(METHODS)}.")
    return METHODS[method]


def main_losses(settings, train):
    """The distillation losses of a run's main stage: none or one.

    Args:
        settings: `Settings`.
        train: `data.Examples`, what is trained on.

    Raises:
        ValueError: If a setting does not fit the method.
    """
    recipe = get(settings.method)
    if recipe.loss is None:
        if settings.alpha is not None and recipe.stage is None:
            raise ValueError(f"--method={settings.method} has no distillation loss, and so no --alpha.")
        return []
    published = (recipe.pairs or {}).get((settings.teacher, settings.student), {})
    from_data = recipe.from_data(train) if recipe.from_data else {}
    return [_loss(recipe.loss, settings, {**published, **from_data})]


def stage_loss(settings):
    """The loss of the stage before: it has the run's weighting where it is the method's only one."""
    recipe = get(settings.method)
    return _loss(recipe.stage.loss, settings if recipe.loss is None else None, {})


def _loss(name, settings, chosen):
    """The loss of a name, with the `chosen` settings and over them those that the run sets."""
    kind = losses.NAMES[name]
    takes = {
        p.name
        for base in kind.__mro__
        for p in inspect.signature(base.__init__).parameters.values()
        if issubclass(base, losses.DistillationLoss) and p.kind is not p.VAR_KEYWORD
    } - {"self", "name"}
    if settings is not None:
        given = {
            "weight": settings.alpha,
            "temperature": settings.temperature,
            "weighting": _weighting(settings),
            **dict(_parsed(item) for item in settings.loss_settings),
        }
        chosen = {**chosen, **{key: value for key, value in given.items() if value is not None}}
    if unknown := sorted(set(chosen) - takes):
        raise ValueError(f"--method={name} has no settings {unknown}. It takes {sorted(takes)}.")
    return kind(**chosen)


def _weighting(settings):
    """What `losses` take as `weighting`, or `None`."""
    if not settings.weighting:
        return None
    spec = {"name": settings.weighting}
    if settings.weighting_probability:
        spec["probability"] = settings.weighting_probability
    if "temperature" in weighting.takes(settings.weighting):
        spec["temperature"] = settings.temperature or 4.0  # Many losses have none of their own.
    return spec


def _parsed(item):
    """`"beta=8"` to `("beta", 8)`; what is no Python literal is a string."""
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise ValueError(f"--loss_settings={item} must be name=value, or several with commas between them.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value

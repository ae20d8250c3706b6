"""Recipes: the losses, published weights and stages behind each method name. A new method is one line here."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from keras_wsl.argument_checks import did_you_mean
from keras_wsl.training.config import Config, ImageNetConfig, MultiNLIConfig


class Stage(NamedTuple):
    """A pretraining stage: one loss without labels, at a constant learning rate.

    Attributes:
        loss: Name of the loss.
        trains: What is trained in addition to the adapters of the loss: `"features"`, the student up to the last layer
            that the loss compares, or `"adapters"`, nothing else.
        learning_rate: Learning rate, or `None` for the run's.
        transfer: Function of the loss and the main stage's loss that copies weights after the stage, or `None`.
    """

    loss: str
    trains: str = "features"
    learning_rate: float | None = None
    transfer: Callable | None = None


class Recipe(NamedTuple):
    """A method as published.

    Attributes:
        loss: Name of the loss of the main stage, or `None`.
        student_loss_weight: Weight of the cross-entropy with the labels.
        published: Arguments of the loss that differ from its defaults.
        pairs: The same by `(teacher, student)`.
        extra_losses: Pairs of a further loss and its arguments. The settings of a run apply to `loss` only.
        data_dependent_kwargs: Function of the training examples that returns further arguments of the loss.
        warmup_epochs: Epochs over which the weight of the loss grows.
        teacher_batch_statistics: Whether the teacher's batch normalization uses batch statistics.
        stage: `Stage` before the main stage, or `None`.
        needs_teacher: Whether the method has a teacher.
    """

    loss: str | None = None
    student_loss_weight: float = 1.0
    published: dict | None = None
    pairs: dict | None = None
    extra_losses: tuple = ()
    data_dependent_kwargs: Callable | None = None
    warmup_epochs: int = 0
    teacher_batch_statistics: bool = False
    stage: Stage | None = None
    needs_teacher: bool = True

    @property
    def has_teacher_in_main_stage(self):
        """Whether the main stage compares student and teacher, so that regularization samples can be counted."""
        return self.loss is not None and self.needs_teacher


def _transfer_paraphraser(paraphrase, ft):
    ft.paraphraser.set_weights(paraphrase.paraphraser.get_weights())


def _classes_by_index(examples):
    """Return CRD's `labels`: the class of each index, and -1 for an index that the examples do not have."""
    classes = np.full(examples.index.max() + 1, -1, "int32")
    classes[examples.index] = examples.labels
    return {"labels": classes}


def _by_pair(name, wrn_40_2_wrn_16_2, wrn_40_2_wrn_40_1, resnet56_resnet20, resnet110_resnet32):
    """Return one argument for the four pairs of small networks that have their own published values."""
    return {
        ("wrn_40_2", "wrn_16_2"): {name: wrn_40_2_wrn_16_2},
        ("wrn_40_2", "wrn_40_1"): {name: wrn_40_2_wrn_40_1},
        ("resnet56", "resnet20"): {name: resnet56_resnet20},
        ("resnet110", "resnet32"): {name: resnet110_resnet32},
    }


# Weights up to CRD: the scripts of CRD's code (RepDistiller). Newer methods: the code of their own papers.
METHODS = {
    "none": Recipe(needs_teacher=False),
    "kd": Recipe("kd", student_loss_weight=0.1),
    "wsl": Recipe("wsl"),
    # Table 3 of the WSL paper.
    "fitnet": Recipe("fitnet"),
    "at": Recipe("at"),
    "sp": Recipe("sp"),
    "cc": Recipe("cc"),
    "vid": Recipe("vid"),
    "rkd": Recipe("rkd"),
    "pkt": Recipe("pkt"),
    "ab": Recipe(stage=Stage("ab")),
    "ft": Recipe(
        "ft", stage=Stage("paraphrase", trains="adapters", learning_rate=0.01, transfer=_transfer_paraphraser)
    ),
    "fsp": Recipe(stage=Stage("fsp")),
    "nst": Recipe("nst"),
    "crd": Recipe("crd", data_dependent_kwargs=_classes_by_index),
    "overhaul": Recipe("overhaul", teacher_batch_statistics=True),
    # Newer ones.
    "dkd": Recipe(
        "dkd",
        warmup_epochs=20,
        pairs={
            **_by_pair("beta", 6.0, 6.0, 2.0, 2.0),
            ("vgg13", "vgg8"): {"beta": 6.0},
            ("vgg13", "mobilenet_v2"): {"beta": 6.0},
        },
    ),
    "dist": Recipe("dist"),
    "lskd": Recipe("lskd", student_loss_weight=0.1),
    "mlkd": Recipe("mlkd", student_loss_weight=0.1),
    "rld": Recipe("rld", warmup_epochs=20),
    "reviewkd": Recipe(
        "reviewkd",
        warmup_epochs=20,
        pairs={**_by_pair("weight", 5.0, 5.0, 0.6, 1.0), ("resnet32x4", "shufflenet_v2"): {"weight": 8.0}},
    ),
    "catkd": Recipe(
        "catkd",
        pairs={
            **_by_pair("weight", 12.0, 1.5, 0.7, 1.8),
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
    # Ablations of the WSL paper, and related methods.
    "masked_kd": Recipe("masked_kd", student_loss_weight=0.1),
    "knowledge_adjustment": Recipe("knowledge_adjustment", student_loss_weight=0.1),
}


# ImageNet: the same methods with different weights. The two pairs are those of the papers.
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
        warmup_epochs=1,
    ),
    "dist": Recipe("dist", published={"temperature": 1.0}),
    "lskd": Recipe("lskd"),
    "rld": Recipe(
        "rld",
        published={"temperature": 1.0},
        pairs={_TO_RESNET: {"beta": 0.5}, _TO_MOBILENET: {"beta": 2.0}},
        warmup_epochs=1,
    ),
    "reviewkd": Recipe(
        "reviewkd", pairs={_TO_RESNET: {"weight": 1.0}, _TO_MOBILENET: {"weight": 8.0}}, warmup_epochs=1
    ),
}

# MultiNLI: the recipes of PKD's code, and the CIFAR-100 recipes of methods on logits or on the pooled vector.
_PKD_KD = {"temperature": 5.0, "weight": 0.7, "divide_by_num_classes": True}
_ON_LOGITS = ("wsl", "dkd", "dist", "lskd", "mlkd", "rld", "tf_kd", "tf_kd_reg", "masked_kd", "knowledge_adjustment")
_ON_POOLED = ("rkd", "pkt", "cc", "crd")
MULTINLI = {
    "none": METHODS["none"],
    "kd": Recipe("kd", student_loss_weight=0.3, published=_PKD_KD),
    "pkd": Recipe("pkd", student_loss_weight=0.3, extra_losses=(("kd", _PKD_KD),)),
    **{name: METHODS[name] for name in _ON_LOGITS + _ON_POOLED},
}
RECIPES_BY_DATASET = {Config: METHODS, ImageNetConfig: IMAGENET, MultiNLIConfig: MULTINLI}


def get_recipe(config):
    """Return the recipe of a run's method on its data set.

    Raises:
        ValueError: If the method is unknown.
    """
    return _lookup(config.method, config)


def get_extra_recipes(config):
    """Return the recipes of `--extra_losses`, whose losses are added at their published weights.

    Raises:
        ValueError: If a method is unknown or has more than one plain loss.
    """
    recipes = {method: _lookup(method, config) for method in config.extra_losses}
    for method, recipe in recipes.items():
        if (
            recipe.loss is None
            or recipe.stage
            or recipe.warmup_epochs
            or recipe.teacher_batch_statistics
            or recipe.extra_losses
        ):
            raise ValueError(
                f"`--extra_losses` must name methods with exactly one loss, no stage, no warmup and a teacher in "
                f"inference mode. Received: --extra_losses={method}. Pass it as --method."
            )
    return list(recipes.values())


def _lookup(method, config):
    table = RECIPES_BY_DATASET[type(config)]
    if method not in table:
        raise ValueError(
            f"There is no method {method!r}. Expected one of {sorted(table)}.{did_you_mean(method, table)}"
        )
    return table[method]

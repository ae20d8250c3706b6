"""What a study is: variants of training, claims about them, and names of networks and data sets."""

from typing import NamedTuple

CIFAR100, IMAGENET, MULTINLI = "cifar100", "imagenet", "multinli"
TO_16_2, TO_40_1 = ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1")
TO_RESNET20 = ("resnet56", "resnet20")
TO_RESNET8X4 = ("resnet32x4", "resnet8x4")
TO_RESNET18 = ("imagenet_resnet34", "imagenet_resnet18")
TO_MOBILENET = ("imagenet_resnet50", "imagenet_mobilenet_v1")
BERT = ("bert_12", "bert_3")
TO_LENET = ("resnet56", "lenet5x8")


class Variant(NamedTuple):
    """A row of a table.

    Args:
        name: Its name in the table.
        changes: Dict of the settings that differ from those of the scale: `method` and its arguments.
        pair: Teacher and student of the paper.
        paper: The paper's accuracy in percent, or `None` if it has no such row.
        samples: The paper's count of regularization samples, of 50,000.
        label_smoothed_teacher: Whether the teacher was trained with label smoothing.
    """

    name: str
    changes: dict
    pair: tuple
    paper: float | None = None
    samples: int | None = None
    label_smoothed_teacher: bool = False


class Claim(NamedTuple):
    """A claim of a study: the variant `better` has a higher `metric` than the variant `worse`."""

    better: str
    worse: str
    metric: str = "accuracy"


class Study(NamedTuple):
    """A table or a figure.

    Args:
        title: One line.
        variants: Tuple of `Variant`.
        claims: Tuple of `Claim`.
        data: Name of the data set.
        short_schedule: Whether the students of small scales get fewer epochs, because the study has many runs, or many
            runs without cached logits, or shares runs with such a study.
        baseline: Name of the variant with which the others are compared.
        notes: What the paper leaves open, and how it is interpreted here.
    """

    title: str
    variants: tuple
    claims: tuple = ()
    data: str = CIFAR100
    short_schedule: bool = False
    baseline: str = "KD"
    notes: str = ""


LABELS = {"method": "none"}


def kd(temperature=4.0, **changes):
    """Return the settings of KD."""
    return {"method": "kd", "temperature": temperature, **changes}


def wsl(temperature=4.0, alpha=2.25, **changes):
    """Return the settings of WSL."""
    return {"method": "wsl", "temperature": temperature, "alpha": alpha, **changes}


def add_teacher_suffix(name, label_smoothed_teacher):
    """Return the name of a variant, with a suffix if its teacher was trained with label smoothing."""
    return f"{name}, smoothed teacher" if label_smoothed_teacher else name


DISPLAY_NAMES = {"none": "labels", "fitnet": "FitNet", "nst": "NST", "overhaul": "Overhaul"}


def display_name(method):
    """Return the name of a method in a table."""
    return DISPLAY_NAMES.get(method, method.upper())

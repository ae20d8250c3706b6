"""The tables and figures of the papers, as arms: how a student is trained, and what the paper has for it.

Numbers are of Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.00650, top-1 accuracies in percent, unless a study
says otherwise. They are the paper's alone: what was measured here is never written in this file.
"""

from typing import NamedTuple

CIFAR100, IMAGENET, MULTINLI = "cifar100", "imagenet", "multinli"
TO_16_2, TO_40_1 = ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1")
TO_RESNET20 = ("resnet56", "resnet20")
TO_RESNET8X4 = ("resnet32x4", "resnet8x4")
TO_RESNET18 = ("imagenet_resnet34", "imagenet_resnet18")
TO_MOBILENET = ("imagenet_resnet50", "imagenet_mobilenet_v1")
BERT = ("bert_12", "bert_3")
TO_LENET = ("resnet56", "lenet5x8")


class Arm(NamedTuple):
    """A row of a table.

    Args:
        name: What it is called there.
        changes: Dict of the settings that are not those of the budget: `method` and what belongs to it.
        pair: Teacher and student of the paper.
        paper: The paper's accuracy in percent, or `None` where it has no such row.
        samples: The paper's count of regularization samples, of 50,000.
        smoothed: Whether the teacher was trained on smoothed labels.
    """

    name: str
    changes: dict
    pair: tuple
    paper: float | None = None
    samples: int | None = None
    smoothed: bool = False


class Claim(NamedTuple):
    """What a study is to show: that the arm `better` has a higher accuracy than `worse`, or more of `what`."""

    better: str
    worse: str
    what: str = "accuracy"


class Study(NamedTuple):
    """A table or a figure.

    Args:
        title: A line.
        arms: Tuple of `Arm`.
        claims: Tuple of `Claim`.
        data: Of which data set.
        large: Whether a short budget gives its students fewer epochs: it has many runs, or many whose teacher runs, or
            shares them with such a study.
        over: Name of the arm from which the others' differences count.
        notes: What the paper leaves open, and how it is read here.
    """

    title: str
    arms: tuple
    claims: tuple = ()
    data: str = CIFAR100
    large: bool = False
    over: str = "KD"
    notes: str = ""


LABELS = {"method": "none"}
_SMOOTHING = "The label smoothing of the teacher is not stated: 0.1 here."


def kd(temperature=4.0, **more):
    """Settings of KD."""
    return {"method": "kd", "temperature": temperature, **more}


def wsl(temperature=4.0, alpha=2.25, **more):
    """Settings of WSL."""
    return {"method": "wsl", "temperature": temperature, "alpha": alpha, **more}


# Table 1 and figure 2, KD of WRN-40-2 to WRN-16-2: (temperature, smoothed teacher) to samples and accuracy.
EXAMPLES = 50_000
COUNTS = {
    (2, False): (15379, 74.79),
    (2, True): (25235, 74.62),
    (4, False): (17709, 74.92),
    (4, True): (24775, 74.59),
    (6, False): (17408, 75.10),
    (6, True): (24538, 74.46),
}


def taught(name, smoothed):
    """The name of an arm by its teacher."""
    return f"{name}, smoothed teacher" if smoothed else name


_COUNT_CLAIMS = tuple(
    claim
    for t in (2, 4, 6)
    for claim in (
        Claim(taught(f"KD, τ = {t}", True), f"KD, τ = {t}", "regularization samples"),
        Claim(f"KD, τ = {t}", taught(f"KD, τ = {t}", True)),
    )
)

_MASKS = {
    "literal": "the sum without the label's term",
    "stop_gradient": "the same, without a gradient to the label's logit",
    "renormalized": "over the other classes alone",
}

# Table 3: a column a pair, a row a method; the paper quotes all but WSL from CRD's.
_PAIRS = (
    TO_40_1,
    TO_RESNET20,
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    TO_RESNET8X4,
    ("resnet32x4", "shufflenet_v1"),
    ("resnet32x4", "shufflenet_v2"),
    ("wrn_40_2", "shufflenet_v1"),
)
_METHODS = {
    "none": (71.98, 69.06, 69.06, 71.14, 72.50, 70.5, 71.82, 70.5),
    "fitnet": (72.24, 69.21, 68.99, 71.06, 73.50, 73.59, 73.54, 73.73),
    "at": (72.77, 70.55, 70.22, 72.31, 73.44, 71.73, 72.73, 73.32),
    "sp": (72.43, 69.67, 70.04, 72.69, 72.94, 73.48, 74.56, 74.52),
    "cc": (72.21, 69.63, 69.48, 71.48, 72.97, 71.14, 71.29, 71.38),
    "vid": (73.30, 70.38, 70.16, 72.61, 73.09, 73.38, 73.40, 73.61),
    "rkd": (72.22, 69.61, 69.25, 71.82, 71.90, 72.28, 73.21, 72.21),
    "pkt": (73.45, 70.34, 70.25, 72.61, 73.64, 74.10, 74.69, 73.89),
    "ab": (72.38, 69.47, 69.53, 70.98, 73.17, 73.55, 74.31, 73.34),
    "ft": (71.59, 69.84, 70.22, 72.37, 72.86, 71.75, 72.50, 72.03),
    "fsp": (None, 69.95, 70.11, 71.89, 72.62, None, None, None),
    "nst": (72.24, 69.60, 69.53, 71.96, 73.30, 74.12, 74.68, 74.89),
    "kd": (73.54, 70.66, 70.67, 73.08, 73.33, 74.07, 74.45, 74.83),
    "crd": (74.14, 71.16, 71.46, 73.48, 75.51, 75.11, 75.65, 76.05),
    "wsl": (74.48, 72.15, 72.19, 74.12, 76.05, 75.46, 75.93, 76.21),
}
SHOWN = {"none": "labels", "fitnet": "FitNet", "nst": "NST", "overhaul": "Overhaul"}


def shown(method):
    """A method's name in a table."""
    return SHOWN.get(method, method.upper())


def _of_methods(pairs, methods, known=None):
    """Arms of a table with a column a pair; `methods` are names to the paper's numbers, `known` to more settings."""
    return tuple(
        Arm(shown(method), (known or {}).get(method, {"method": method}), pair, numbers[column])
        for column, pair in enumerate(pairs)
        for method, numbers in methods.items()
        if numbers[column] is not None
    )


_IMAGENET = {
    "none": (69.75, 68.87),
    "kd": (70.67, 70.49),
    "at": (71.03, 70.18),
    "nst": (70.29, None),
    "fsp": (70.58, None),
    "ft": (None, 69.88),
    "ab": (None, 68.89),
    "rkd": (70.40, 68.50),
    "crd": (71.17, 69.07),
    "overhaul": (71.03, 71.33),
    "wsl": (72.04, 71.52),
}

# Table 7: the part of the samples that is left out, to the accuracy of KD and of WSL.
_LEFT_OUT = {
    "regularization samples": {100: (74.59, 75.35), 75: (74.63, 75.48), 50: (74.72, 75.61), 25: (74.87, 75.72)},
    "other samples": {100: (73.86, 74.46), 75: (74.12, 74.79), 50: (74.47, 75.18), 25: (74.71, 75.53)},
}
_WEIGHTING = {
    "regularization samples": "exclude_regularization_samples",
    "other samples": "only_regularization_samples",
}


def _resampled():
    arms = [Arm("KD", kd(), TO_16_2, 74.92), Arm("WSL", wsl(), TO_16_2, 75.78)]
    for what, rates in _LEFT_OUT.items():
        for rate, (of_kd, of_wsl) in rates.items():
            changes = {"weighting": _WEIGHTING[what], "keep_probability": 1 - rate / 100}
            arms.append(Arm(f"KD, {rate} % of {what} left out", kd(**changes), TO_16_2, of_kd))
            changes["weighting"] = f"wsl*{changes['weighting']}"
            arms.append(Arm(f"WSL, {rate} % of {what} left out", wsl(**changes), TO_16_2, of_wsl))
    return tuple(arms)


# Table 8, and the losses beyond it that none of the papers weighted: (of the loss, with WSL's weights).
_WEIGHTED = {
    TO_16_2: {"rkd": (74.12, 74.65)},
    TO_40_1: {"rkd": (73.34, 73.89)},
    TO_RESNET20: {"rkd": (70.25, 70.73)},
}
BEYOND = ("at", "sp", "fitnet", "crd", "dkd", "dist", "lskd", "reviewkd")


def _weighted():
    arms = []
    for pair, of_pair in _WEIGHTED.items():
        for method in ("rkd", *BEYOND):
            plain, twin = of_pair.get(method, (None, None))
            name = shown(method)
            arms.append(Arm(name, {"method": method}, pair, plain))
            arms.append(Arm(f"{name} + WSL's weights", {"method": method, "weighting": "wsl"}, pair, twin))
    return tuple(arms)


_RECIPES = {
    "as CRD's": {},
    "teacher in training mode": {"teacher_batch_statistics": True},
    "Nesterov's momentum": {"nesterov": True},
    "crops that reflect": {"padding_mode": "reflect"},
    "all three": {"teacher_batch_statistics": True, "nesterov": True, "padding_mode": "reflect"},
}


# What is added to WSL here, or has its weights.
_WITH_WSL = {
    "WSL + CRD": {"method": "crd", "extra_losses": ("wsl",)},
    "WSL + SP": {"method": "sp", "extra_losses": ("wsl",)},
    "WSL + DIST": {"method": "dist", "extra_losses": ("wsl",)},
    "LSKD + WSL's weights": {"method": "lskd", "weighting": "wsl"},
    "DKD + WSL's weights": {"method": "dkd", "weighting": "wsl"},
}


def _online():
    """The online comparison: soft labels alone, offline of the trained teacher and online of its checkpoints."""
    alone = {"alpha": 1.0, "student_loss_weight": 0.0}
    rows = [Arm("labels", LABELS, TO_LENET, 47.3)]
    for kind, numbers in {"offline": (50.1, 59.9), "online": (61.9, 66.1)}.items():
        rows += [
            Arm(f"{kind}, τ = {t}", kd(float(t), **alone, online=kind == "online"), TO_LENET, number)
            for t, number in zip((1, 4), numbers)
        ]
    return tuple(rows)


STUDIES = {
    "1": Study(
        "Regularization samples by temperature and teacher",
        tuple(
            Arm(taught(f"KD, τ = {t}", smoothed), kd(float(t)), TO_16_2, accuracy, samples, smoothed)
            for (t, smoothed), (samples, accuracy) in COUNTS.items()
        ),
        _COUNT_CLAIMS,
        over="KD, τ = 4",
        notes="The paper does not say when it counts: here over the training batches of the last epoch. Its label "
        "smoothing is not stated: 0.1 here.",
    ),
    "2": Study(
        "What carries the soft labels' worth: the label's logit, and regularization samples",
        (
            Arm("labels", LABELS, TO_16_2, 73.26),
            Arm("KD", kd(), TO_16_2, 74.92),
            *(
                Arm(
                    f"KD, label's logit masked: {text}",
                    {"method": "masked_kd", "temperature": 4.0, "loss_kwargs": (f"reading={reading}",)},
                    TO_16_2,
                    73.51,
                )
                for reading, text in _MASKS.items()
            ),
            Arm("KD without regularization samples", kd(weighting="exclude_regularization_samples"), TO_16_2, 74.59),
        ),
        (
            Claim("KD", "KD without regularization samples"),
            Claim("KD", "labels"),
            *(Claim("KD without regularization samples", f"KD, label's logit masked: {t}") for t in _MASKS.values()),
        ),
        notes="The masked sum is printed without its sign and τ², and there are three readings of it.",
    ),
    "3": Study(
        "CIFAR-100",
        _of_methods(_PAIRS, _METHODS, {"kd": kd(), "wsl": wsl()}),  # As other tables have them: the same runs.
        (Claim("WSL", "KD"), Claim("KD", "labels"), Claim("WSL", "CRD")),
        large=True,
        notes="All but WSL is quoted from CRD's table. AB and FSP train first and have labels alone after; CRD is "
        "without KD.",
    ),
    "4": Study(
        "ImageNet",
        _of_methods((TO_RESNET18, TO_MOBILENET), _IMAGENET, {"wsl": wsl(2.0, 2.5)}),  # As table 10 has it.
        (Claim("WSL", "KD"), Claim("KD", "labels")),
        data=IMAGENET,
    ),
    "5": Study(
        "With and without regularization samples",
        (
            Arm("KD", kd(), TO_16_2, 74.92),
            Arm("KD, regularization samples left out", kd(weighting="exclude_regularization_samples"), TO_16_2, 74.59),
            Arm("KD, of regularization samples alone", kd(weighting="only_regularization_samples"), TO_16_2, 73.86),
            Arm("WSL", wsl(), TO_16_2, 75.78),
            Arm(
                "WSL, regularization samples left out",
                wsl(weighting="wsl*exclude_regularization_samples"),
                TO_16_2,
                75.35,
            ),
            Arm(
                "WSL, of regularization samples alone", wsl(weighting="wsl*only_regularization_samples"), TO_16_2, 74.46
            ),
        ),
        tuple(
            Claim(method, f"{method}, {part}")
            for method in ("KD", "WSL")
            for part in ("regularization samples left out", "of regularization samples alone")
        ),
        notes="The loss of labels is always on; what is left out counts 0 in a mean over all examples.",
    ),
    "6": Study(
        "A teacher of smoothed labels",
        (
            Arm("KD, τ = 4", kd(4.0), TO_16_2, 74.92),
            Arm("KD, τ = 4, smoothed teacher", kd(4.0), TO_16_2, 74.59, smoothed=True),
            Arm("WSL, τ = 4", wsl(4.0), TO_16_2, 75.78),
            Arm("WSL, τ = 4, smoothed teacher", wsl(4.0), TO_16_2, 75.60, smoothed=True),
            Arm("KD, τ = 6", kd(6.0), TO_16_2, 75.10),
            Arm("KD, τ = 6, smoothed teacher", kd(6.0), TO_16_2, 74.46, smoothed=True),
            Arm("WSL, τ = 6", wsl(6.0), TO_16_2, 75.74),
            Arm("WSL, τ = 6, smoothed teacher", wsl(6.0), TO_16_2, 75.42, smoothed=True),
        ),
        tuple(
            claim
            for t in (4, 6)
            for claim in (
                Claim(f"WSL, τ = {t}", f"KD, τ = {t}"),
                Claim(f"WSL, τ = {t}, smoothed teacher", f"KD, τ = {t}, smoothed teacher"),
                Claim(f"KD, τ = {t}", f"KD, τ = {t}, smoothed teacher"),
            )
        ),
        over="KD, τ = 4",
        notes=_SMOOTHING,
    ),
    "7": Study(
        "A part of the samples left out",
        _resampled(),
        (
            Claim("KD", "KD, 100 % of regularization samples left out"),
            Claim("KD", "KD, 100 % of other samples left out"),
            Claim("WSL", "WSL, 100 % of regularization samples left out"),
            Claim("WSL", "WSL, 100 % of other samples left out"),
        ),
        large=True,
        notes="The caption says WRN-40-1, and the numbers are WRN-16-2's of the other tables: read so here.",
    ),
    "8": Study(
        "WSL's weights on other losses",
        _weighted(),
        tuple(Claim(f"{shown(method)} + WSL's weights", shown(method)) for method in ("rkd", *BEYOND)),
        large=True,
        over="RKD",
        notes="The paper weights RKD alone, by the mean weight of the examples involved; its RKD baselines are not "
        "those of CRD's table. All other losses are beyond it.",
    ),
    "9": Study(
        "The weight's form: 1 - exp(-r) against its sigmoid twin tanh(r / 2)",
        tuple(
            arm
            for alpha, (of_twin, own) in {2: (74.13, 74.38), 3: (73.97, 74.12), 4: (73.29, 73.46)}.items()
            for arm in (
                Arm(f"sigmoid, α = {alpha}", wsl(alpha=float(alpha), weighting="wsl_sigmoid"), TO_40_1, of_twin),
                Arm(f"WSL, α = {alpha}", wsl(alpha=float(alpha)), TO_40_1, own),
            )
        ),
        tuple(Claim(f"WSL, α = {alpha}", f"sigmoid, α = {alpha}") for alpha in (2, 3, 4)),
        large=True,
        over="sigmoid, α = 2",
    ),
    "10": Study(
        "The loss's weight α",
        tuple(
            Arm(f"α = {alpha:g}", wsl(alpha=float(alpha)), TO_40_1, number)
            for alpha, number in {
                1: 73.67,
                2: 74.38,
                2.25: 74.48,
                2.5: 74.34,
                2.75: 74.21,
                3: 74.12,
                4: 73.46,
            }.items()
        ),
        (Claim("α = 2.25", "α = 1"), Claim("α = 2.25", "α = 4")),
        large=True,
        over="α = 2.25",
    ),
    "10-imagenet": Study(
        "The loss's weight α on ImageNet",
        tuple(
            Arm(f"α = {alpha:g}", wsl(2.0, alpha), TO_RESNET18, number)
            for alpha, number in {2.0: 71.91, 2.25: 71.96, 2.5: 72.04}.items()
        ),
        data=IMAGENET,
        over="α = 2.5",
    ),
    "11": Study(
        "MultiNLI",
        (
            Arm("labels", LABELS, BERT, 75.06),
            Arm("KD", {"method": "kd"}, BERT, 75.50),
            Arm("WSL", {"method": "wsl"}, BERT, 76.28),
        ),
        (Claim("WSL", "KD"), Claim("KD", "labels")),
        data=MULTINLI,
        notes="The paper states neither τ nor α on MultiNLI: KD's are PKD's, WSL's are CIFAR-100's.",
    ),
    "recipe": Study(
        "What WSL's recipe on CIFAR-100 leaves open",
        tuple(
            Arm(name, wsl(**changes), pair, number if name == "as CRD's" else None)  # The paper has one number a pair.
            for pair, number in {TO_RESNET20: 72.15, ("resnet110", "resnet32"): 74.12, TO_RESNET8X4: 76.05}.items()
            for name, changes in _RECIPES.items()
        ),
        tuple(Claim(name, "as CRD's") for name in list(_RECIPES)[1:]),
        large=True,
        over="as CRD's",
        notes="The paper says CRD's settings; its author, that runs were made inside Overhaul's code, whose teacher "
        "has the statistics of the batch, with Nesterov's momentum and crops that reflect the image. Reproductions of "
        "others, as CRD's: 72.01, 72.91 and 75.07. Overhaul's batches of 128, its learning rate and its means are not "
        "tried.",
    ),
    "scale": Study(
        "The weights of examples, apart from the weight of the whole loss",
        tuple(
            Arm(name, changes, pair, number)
            for pair, (of_kd, of_wsl) in {TO_16_2: (74.92, 75.78), TO_40_1: (73.54, 74.48)}.items()
            for name, changes, number in (
                ("KD", kd(), of_kd),
                ("KD as 1 + 2.25", kd(student_loss_weight=1.0, alpha=2.25), None),
                ("WSL as 0.1 + 0.9", wsl(student_loss_weight=0.1, alpha=0.9), None),
                ("WSL", wsl(), of_wsl),
            )
        )
        + (
            Arm(taught("KD as 1 + 2.25", True), kd(student_loss_weight=1.0, alpha=2.25), TO_16_2, smoothed=True),
            Arm(taught("WSL", True), wsl(), TO_16_2, 75.60, smoothed=True),
        ),
        (
            Claim("WSL", "KD as 1 + 2.25"),
            Claim("WSL as 0.1 + 0.9", "KD"),
            Claim("KD as 1 + 2.25", "KD"),
            Claim(taught("WSL", True), taught("KD as 1 + 2.25", True)),
            Claim("KD as 1 + 2.25", taught("KD as 1 + 2.25", True)),
        ),
        notes="KD is 0.1 of the labels' loss and 0.9 of the soft labels', WSL 1 and 2.25: at one learning rate its "
        "steps are longer, and labels are a third of it, not a tenth. The paper tells neither from what the weights of "
        f"examples do. {_SMOOTHING}",
    ),
    "best": Study(
        "WSL and newer losses together",
        tuple(
            Arm(name, changes, pair, number if name == "WSL" else None)
            for pair, number in {TO_16_2: 75.78, TO_40_1: 74.48, TO_RESNET20: 72.15, TO_RESNET8X4: 76.05}.items()
            for name, changes in {"WSL": wsl(), **_WITH_WSL}.items()
        ),
        tuple(Claim(name, "WSL") for name in _WITH_WSL),
        large=True,
        over="WSL",
        notes="None of the papers has these. The best numbers known of 240 epochs with crops and flips are, by pair in "
        "this order, 76.65 (WTTM + ITRD), 75.66 (ReviewKD++), 72.53 (KD++) and 77.50 (LumiNet).",
    ),
    "online": Study(
        "Online against offline distillation",
        _online(),
        tuple(Claim(f"online, τ = {t}", f"offline, τ = {t}") for t in (1, 4)),
        large=True,
        over="offline, τ = 4",
        notes="Of Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245: soft labels alone, the teacher's "
        "checkpoint of the same epoch. The paper's numbers are from memory, for orientation.",
    ),
}
FIGURES = {"figure2": "1", "figure4": "2"}  # Whose students they are made of.

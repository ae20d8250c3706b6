"""The papers' tables and figures as data: how each student is trained, and the accuracy that the paper reports.

Numbers are top-1 accuracies in percent from Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.00650, unless a study
states another source. This file has no measurements of this repository.
"""

from reproduction.paper_results import (
    COUNTS,
    EXCLUSION_RATES,
    IMAGENET_METHODS,
    METHODS,
    PAIRS,
    WEIGHTED_LOSSES,
)
from reproduction.variants import (
    BERT,
    IMAGENET,
    LABELS,
    MULTINLI,
    TO_16_2,
    TO_40_1,
    TO_LENET,
    TO_MOBILENET,
    TO_RESNET8X4,
    TO_RESNET18,
    TO_RESNET20,
    Claim,
    Study,
    Variant,
    add_teacher_suffix,
    display_name,
    kd,
    wsl,
)

_SMOOTHING = "The paper does not state the label smoothing of the teacher; here 0.1."

_COUNT_CLAIMS = tuple(
    claim
    for t in (2, 4, 6)
    for claim in (
        Claim(add_teacher_suffix(f"KD, τ = {t}", True), f"KD, τ = {t}", "regularization samples"),
        Claim(f"KD, τ = {t}", add_teacher_suffix(f"KD, τ = {t}", True)),
    )
)

_MASKS = {"literal": "literal", "stop_gradient": "stop-gradient", "renormalized": "renormalized"}


def _make_variants(pairs, methods, settings=None):
    """Return the variants of a table with a column per pair.

    Args:
        pairs: Tuple of `(teacher, student)`.
        methods: Dict of names of methods to the paper's numbers, one per pair.
        settings: Dict of names of methods to their settings; by default the method alone.
    """
    return tuple(
        Variant(display_name(method), (settings or {}).get(method, {"method": method}), pair, numbers[column])
        for column, pair in enumerate(pairs)
        for method, numbers in methods.items()
        if numbers[column] is not None
    )


_WEIGHTING = {
    "regularization samples": "exclude_regularization_samples",
    "other samples": "only_regularization_samples",
}


def _resampling_variants():
    variants = [Variant("KD", kd(), TO_16_2, 74.92), Variant("WSL", wsl(), TO_16_2, 75.78)]
    for what, rates in EXCLUSION_RATES.items():
        for rate, (of_kd, of_wsl) in rates.items():
            changes = {"weighting": _WEIGHTING[what], "keep_probability": 1 - rate / 100}
            variants.append(Variant(f"KD, {rate} % of {what} left out", kd(**changes), TO_16_2, of_kd))
            changes["weighting"] = f"wsl*{changes['weighting']}"
            variants.append(Variant(f"WSL, {rate} % of {what} left out", wsl(**changes), TO_16_2, of_wsl))
    return tuple(variants)


BEYOND = ("at", "sp", "fitnet", "crd", "dkd", "dist", "lskd", "reviewkd")


def _weighting_variants():
    variants = []
    for pair, of_pair in WEIGHTED_LOSSES.items():
        for method in ("rkd", *BEYOND):
            plain, twin = of_pair.get(method, (None, None))
            name = display_name(method)
            variants.append(Variant(name, {"method": method}, pair, plain))
            variants.append(Variant(f"{name} + WSL's weights", {"method": method, "weighting": "wsl"}, pair, twin))
    return tuple(variants)


_RECIPES = {
    "as CRD's": {},
    "teacher in training mode": {"teacher_batch_statistics": True},
    "Nesterov's momentum": {"nesterov": True},
    "crops that reflect": {"padding_mode": "reflect"},
    "all three": {"teacher_batch_statistics": True, "nesterov": True, "padding_mode": "reflect"},
}


# Losses that are added to WSL, or use its weights.
_WITH_WSL = {
    "WSL + CRD": {"method": "crd", "extra_losses": ("wsl",)},
    "WSL + SP": {"method": "sp", "extra_losses": ("wsl",)},
    "WSL + DIST": {"method": "dist", "extra_losses": ("wsl",)},
    "LSKD + WSL's weights": {"method": "lskd", "weighting": "wsl"},
    "DKD + WSL's weights": {"method": "dkd", "weighting": "wsl"},
}


def _online_variants():
    """Return the variants of the online comparison: soft labels alone, of the trained teacher or of its checkpoints."""
    alone = {"alpha": 1.0, "student_loss_weight": 0.0}
    rows = [Variant("labels", LABELS, TO_LENET, 47.3)]
    for kind, numbers in {"offline": (50.1, 59.9), "online": (61.9, 66.1)}.items():
        rows += [
            Variant(f"{kind}, τ = {t}", kd(float(t), **alone, online=kind == "online"), TO_LENET, number)
            for t, number in zip((1, 4), numbers)
        ]
    return tuple(rows)


STUDIES = {
    "1": Study(
        "Regularization samples by temperature and teacher",
        tuple(
            Variant(add_teacher_suffix(f"KD, τ = {t}", smoothed), kd(float(t)), TO_16_2, accuracy, samples, smoothed)
            for (t, smoothed), (samples, accuracy) in COUNTS.items()
        ),
        _COUNT_CLAIMS,
        baseline="KD, τ = 4",
        notes="The paper does not state when it counts; here over the training batches of the last epoch. It does not "
        "state its label smoothing; here 0.1.",
    ),
    "2": Study(
        "Contribution of the label's logit and of regularization samples",
        (
            Variant("labels", LABELS, TO_16_2, 73.26),
            Variant("KD", kd(), TO_16_2, 74.92),
            *(
                Variant(
                    f"KD, label masked: {text}",
                    {"method": "masked_kd", "temperature": 4.0, "loss_kwargs": (f"reading={reading}",)},
                    TO_16_2,
                    73.51,
                )
                for reading, text in _MASKS.items()
            ),
            Variant(
                "KD without regularization samples", kd(weighting="exclude_regularization_samples"), TO_16_2, 74.59
            ),
        ),
        (
            Claim("KD", "KD without regularization samples"),
            Claim("KD", "labels"),
            *(Claim("KD without regularization samples", f"KD, label masked: {t}") for t in _MASKS.values()),
        ),
        notes="The paper prints the masked sum without its sign and τ². There are three interpretations of it: "
        "literal, the sum without the label's term; the same without a gradient to the label's logit; and renormalized "
        "over the other classes.",
    ),
    "3": Study(
        "CIFAR-100",
        _make_variants(PAIRS, METHODS, {"kd": kd(), "wsl": wsl()}),  # As other tables have them: the same runs.
        (Claim("WSL", "KD"), Claim("KD", "labels"), Claim("WSL", "CRD")),
        short_schedule=True,
        notes="All numbers but WSL's are quoted from the CRD paper. AB and FSP pretrain the student and then train on "
        "labels alone; CRD is used without KD.",
    ),
    "4": Study(
        "ImageNet",
        _make_variants((TO_RESNET18, TO_MOBILENET), IMAGENET_METHODS, {"wsl": wsl(2.0, 2.5)}),  # As table 10 has it.
        (Claim("WSL", "KD"), Claim("KD", "labels")),
        data=IMAGENET,
    ),
    "5": Study(
        "With and without regularization samples",
        (
            Variant("KD", kd(), TO_16_2, 74.92),
            Variant(
                "KD, regularization samples left out", kd(weighting="exclude_regularization_samples"), TO_16_2, 74.59
            ),
            Variant("KD, of regularization samples alone", kd(weighting="only_regularization_samples"), TO_16_2, 73.86),
            Variant("WSL", wsl(), TO_16_2, 75.78),
            Variant(
                "WSL, regularization samples left out",
                wsl(weighting="wsl*exclude_regularization_samples"),
                TO_16_2,
                75.35,
            ),
            Variant(
                "WSL, of regularization samples alone", wsl(weighting="wsl*only_regularization_samples"), TO_16_2, 74.46
            ),
        ),
        tuple(
            Claim(method, f"{method}, {part}")
            for method in ("KD", "WSL")
            for part in ("regularization samples left out", "of regularization samples alone")
        ),
        notes="The loss on labels is always on. A soft label that is left out counts as 0 in the mean over examples.",
    ),
    "6": Study(
        "Teachers trained with label smoothing",
        (
            Variant("KD, τ = 4", kd(4.0), TO_16_2, 74.92),
            Variant("KD, τ = 4, smoothed teacher", kd(4.0), TO_16_2, 74.59, label_smoothed_teacher=True),
            Variant("WSL, τ = 4", wsl(4.0), TO_16_2, 75.78),
            Variant("WSL, τ = 4, smoothed teacher", wsl(4.0), TO_16_2, 75.60, label_smoothed_teacher=True),
            Variant("KD, τ = 6", kd(6.0), TO_16_2, 75.10),
            Variant("KD, τ = 6, smoothed teacher", kd(6.0), TO_16_2, 74.46, label_smoothed_teacher=True),
            Variant("WSL, τ = 6", wsl(6.0), TO_16_2, 75.74),
            Variant("WSL, τ = 6, smoothed teacher", wsl(6.0), TO_16_2, 75.42, label_smoothed_teacher=True),
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
        baseline="KD, τ = 4",
        notes=_SMOOTHING,
    ),
    "7": Study(
        "Different exclusion rates",
        _resampling_variants(),
        (
            Claim("KD", "KD, 100 % of regularization samples left out"),
            Claim("KD", "KD, 100 % of other samples left out"),
            Claim("WSL", "WSL, 100 % of regularization samples left out"),
            Claim("WSL", "WSL, 100 % of other samples left out"),
        ),
        short_schedule=True,
        notes="The caption says WRN-40-1, but the numbers are those of WRN-16-2 in other tables, which is used here.",
    ),
    "8": Study(
        "WSL's weights on other losses",
        _weighting_variants(),
        tuple(Claim(f"{display_name(method)} + WSL's weights", display_name(method)) for method in ("rkd", *BEYOND)),
        short_schedule=True,
        baseline="RKD",
        notes="The paper weights RKD only, by the mean weight of the examples involved. Its RKD baselines differ from "
        "those of the CRD paper. No paper weights the other losses.",
    ),
    "9": Study(
        "Form of the weight: 1 - exp(-r) or the sigmoid form tanh(r / 2)",
        tuple(
            variant
            for alpha, (of_twin, own) in {2: (74.13, 74.38), 3: (73.97, 74.12), 4: (73.29, 73.46)}.items()
            for variant in (
                Variant(f"sigmoid, α = {alpha}", wsl(alpha=float(alpha), weighting="wsl_sigmoid"), TO_40_1, of_twin),
                Variant(f"WSL, α = {alpha}", wsl(alpha=float(alpha)), TO_40_1, own),
            )
        ),
        tuple(Claim(f"WSL, α = {alpha}", f"sigmoid, α = {alpha}") for alpha in (2, 3, 4)),
        short_schedule=True,
        baseline="sigmoid, α = 2",
    ),
    "10": Study(
        "Loss weight α",
        tuple(
            Variant(f"α = {alpha:g}", wsl(alpha=float(alpha)), TO_40_1, number)
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
        short_schedule=True,
        baseline="α = 2.25",
    ),
    "10-imagenet": Study(
        "Loss weight α on ImageNet",
        tuple(
            Variant(f"α = {alpha:g}", wsl(2.0, alpha), TO_RESNET18, number)
            for alpha, number in {2.0: 71.91, 2.25: 71.96, 2.5: 72.04}.items()
        ),
        data=IMAGENET,
        baseline="α = 2.5",
    ),
    "11": Study(
        "MultiNLI",
        (
            Variant("labels", LABELS, BERT, 75.06),
            Variant("KD", {"method": "kd"}, BERT, 75.50),
            Variant("WSL", {"method": "wsl"}, BERT, 76.28),
        ),
        (Claim("WSL", "KD"), Claim("KD", "labels")),
        data=MULTINLI,
        notes="The paper states neither τ nor α on MultiNLI: KD's are PKD's, WSL's are CIFAR-100's.",
    ),
    "recipe": Study(
        "Unstated details of WSL's recipe on CIFAR-100",
        tuple(
            Variant(
                name, wsl(**changes), pair, number if name == "as CRD's" else None
            )  # The paper has one number a pair.
            for pair, number in {TO_RESNET20: 72.15, ("resnet110", "resnet32"): 74.12, TO_RESNET8X4: 76.05}.items()
            for name, changes in _RECIPES.items()
        ),
        tuple(Claim(name, "as CRD's") for name in list(_RECIPES)[1:]),
        short_schedule=True,
        baseline="as CRD's",
        notes="The paper states the settings of CRD; its author states that the runs used Overhaul's code, which "
        "uses a teacher with batch statistics, Nesterov momentum and reflection padding. Reproductions by others with "
        "CRD's settings: 72.01, 72.91 and 75.07. Overhaul's batch size of 128, learning rate and normalization are not "
        "tested.",
    ),
    "scale": Study(
        "Weights of examples versus scale of the loss",
        tuple(
            Variant(name, changes, pair, number)
            for pair, (of_kd, of_wsl) in {TO_16_2: (74.92, 75.78), TO_40_1: (73.54, 74.48)}.items()
            for name, changes, number in (
                ("KD", kd(), of_kd),
                ("KD as 1 + 2.25", kd(student_loss_weight=1.0, alpha=2.25), None),
                ("WSL as 0.1 + 0.9", wsl(student_loss_weight=0.1, alpha=0.9), None),
                ("WSL", wsl(), of_wsl),
            )
        )
        + (
            Variant(
                add_teacher_suffix("KD as 1 + 2.25", True),
                kd(student_loss_weight=1.0, alpha=2.25),
                TO_16_2,
                label_smoothed_teacher=True,
            ),
            Variant(add_teacher_suffix("WSL", True), wsl(), TO_16_2, 75.60, label_smoothed_teacher=True),
        ),
        (
            Claim("WSL", "KD as 1 + 2.25"),
            Claim("WSL as 0.1 + 0.9", "KD"),
            Claim("KD as 1 + 2.25", "KD"),
            Claim(add_teacher_suffix("WSL", True), add_teacher_suffix("KD as 1 + 2.25", True)),
            Claim("KD as 1 + 2.25", add_teacher_suffix("KD as 1 + 2.25", True)),
        ),
        notes="KD is 0.1 times the loss on labels plus 0.9 times the loss on soft labels, WSL 1 and 2.25. At the same "
        "learning rate WSL takes longer steps, and the labels have a weight of a third in place of a tenth. The paper "
        f"does not separate these effects from that of the weights of examples. {_SMOOTHING}",
    ),
    "best": Study(
        "Combinations of WSL and newer losses",
        tuple(
            Variant(name, changes, pair, number if name == "WSL" else None)
            for pair, number in {TO_16_2: 75.78, TO_40_1: 74.48, TO_RESNET20: 72.15, TO_RESNET8X4: 76.05}.items()
            for name, changes in {"WSL": wsl(), **_WITH_WSL}.items()
        ),
        tuple(Claim(name, "WSL") for name in _WITH_WSL),
        short_schedule=True,
        baseline="WSL",
        notes="No paper reports these combinations. The best published results for 240 epochs with crops and flips "
        "are, in the order of the pairs, 76.65 (WTTM + ITRD), 75.66 (ReviewKD++), 72.53 (KD++) and 77.50 (LumiNet).",
    ),
    "online": Study(
        "Online and offline distillation",
        _online_variants(),
        tuple(Claim(f"online, τ = {t}", f"offline, τ = {t}") for t in (1, 4)),
        short_schedule=True,
        baseline="offline, τ = 4",
        notes="From Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245: soft labels alone, with the "
        "teacher's checkpoint of the same epoch. The paper's numbers are quoted from memory, for orientation.",
    ),
}
FIGURES = {"figure2": "1", "figure4": "2"}  # The tables whose students they use.

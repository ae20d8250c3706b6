"""Distillation losses: `loss(labels, student, teacher)` returns one value per example.

A new loss is a file, and a line in `REGISTRY`.
"""

import keras

from keras_wsl.argument_checks import did_you_mean
from keras_wsl.losses import base
from keras_wsl.losses.base import DistillationLoss, FeatureLoss, LogitsLoss, RelationLoss
from keras_wsl.losses.feature.ab import AB
from keras_wsl.losses.feature.at import AT
from keras_wsl.losses.feature.catkd import CATKD
from keras_wsl.losses.feature.fitnet import FitNet
from keras_wsl.losses.feature.fsp import FSP
from keras_wsl.losses.feature.ft import FT, Paraphrase
from keras_wsl.losses.feature.nst import NST
from keras_wsl.losses.feature.overhaul import Overhaul
from keras_wsl.losses.feature.pkd import PKD
from keras_wsl.losses.feature.reviewkd import ReviewKD
from keras_wsl.losses.feature.vid import VID
from keras_wsl.losses.keras_distillation import KerasLoss, from_keras, from_keras_distiller
from keras_wsl.losses.logit.dist import DIST
from keras_wsl.losses.logit.dkd import DKD
from keras_wsl.losses.logit.kd import KD, soft_label_loss
from keras_wsl.losses.logit.knowledge_adjustment import KnowledgeAdjustment
from keras_wsl.losses.logit.lskd import LSKD
from keras_wsl.losses.logit.masked_kd import MaskedKD
from keras_wsl.losses.logit.mlkd import MLKD
from keras_wsl.losses.logit.rld import RLD
from keras_wsl.losses.logit.tf_kd import TfKD, TfKDReg
from keras_wsl.losses.logit.wsl import WSL
from keras_wsl.losses.relation.cc import CC
from keras_wsl.losses.relation.crd import CRD
from keras_wsl.losses.relation.pkt import PKT
from keras_wsl.losses.relation.rkd import RKD
from keras_wsl.losses.relation.sp import SP

REGISTRY = {
    "ab": AB,
    "at": AT,
    "catkd": CATKD,
    "cc": CC,
    "crd": CRD,
    "dist": DIST,
    "dkd": DKD,
    "fitnet": FitNet,
    "fsp": FSP,
    "ft": FT,
    "kd": KD,
    "knowledge_adjustment": KnowledgeAdjustment,
    "lskd": LSKD,
    "masked_kd": MaskedKD,
    "mlkd": MLKD,
    "nst": NST,
    "overhaul": Overhaul,
    "paraphrase": Paraphrase,
    "pkd": PKD,
    "pkt": PKT,
    "reviewkd": ReviewKD,
    "rkd": RKD,
    "rld": RLD,
    "sp": SP,
    "tf_kd": TfKD,
    "tf_kd_reg": TfKDReg,
    "vid": VID,
    "wsl": WSL,
}


def get(spec, **kwargs):
    """Return a distillation loss.

    Args:
        spec: A name in `REGISTRY`; a `DistillationLoss`, which is returned; or a `keras.distillation.DistillationLoss`,
            see `from_keras`.
        **kwargs: Arguments of the loss.

    Raises:
        ValueError: If there is no such loss or argument, or there are arguments for a `DistillationLoss` object.
    """
    if isinstance(spec, DistillationLoss):
        if kwargs:
            raise ValueError(
                f"`spec` must be a name if there are arguments. Received: {spec.name}, a loss, and {kwargs}. Pass the "
                "arguments to its constructor."
            )
        return spec
    if isinstance(spec, keras.distillation.DistillationLoss):
        return from_keras(spec, **kwargs)
    if not isinstance(spec, str) or spec not in REGISTRY:
        raise ValueError(
            f"There is no distillation loss {spec!r}. Expected one of {sorted(REGISTRY)}, or a loss such as "
            f"losses.KD(temperature=4.0).{did_you_mean(spec, REGISTRY)}"
        )
    if unknown := sorted(set(kwargs) - set(argument_names(spec))):
        raise ValueError(f"The loss {spec!r} has no arguments {unknown}. It takes {sorted(argument_names(spec))}.")
    return REGISTRY[spec](**kwargs)


def argument_names(name):
    """Return the names of the arguments of the loss of this name, a list."""
    return base.argument_names(REGISTRY[name])


__all__ = [
    "AB",
    "AT",
    "CATKD",
    "CC",
    "CRD",
    "DIST",
    "DKD",
    "FSP",
    "FT",
    "KD",
    "LSKD",
    "MLKD",
    "PKD",
    "PKT",
    "REGISTRY",
    "RKD",
    "RLD",
    "SP",
    "VID",
    "WSL",
    "DistillationLoss",
    "FeatureLoss",
    "FitNet",
    "KerasLoss",
    "KnowledgeAdjustment",
    "LogitsLoss",
    "MaskedKD",
    "Overhaul",
    "Paraphrase",
    "RelationLoss",
    "ReviewKD",
    "TfKD",
    "TfKDReg",
    "argument_names",
    "from_keras",
    "from_keras_distiller",
    "get",
    "soft_label_loss",
]

"""Analyses of the papers, as functions for any model."""

from keras_wsl.analysis.bias_variance import Decomposition, Interval, bias_variance, compare, standard_errors
from keras_wsl.analysis.calibration import calibration, fit_temperature
from keras_wsl.analysis.class_affinity import class_affinity, group_means, logit_gradients, rank_correlation
from keras_wsl.analysis.fidelity import fidelity
from keras_wsl.analysis.ntk import empirical_ntk
from keras_wsl.analysis.regularization_sample_rates import regularization_sample_rates
from keras_wsl.analysis.supervision_complexity import (
    Bound,
    Complexity,
    leave_one_out,
    margin_bound,
    ntk_similarity,
    random_labels,
    supervision_complexity,
    targets,
)

__all__ = [
    "Bound",
    "Complexity",
    "Decomposition",
    "Interval",
    "bias_variance",
    "calibration",
    "class_affinity",
    "compare",
    "empirical_ntk",
    "fidelity",
    "fit_temperature",
    "group_means",
    "leave_one_out",
    "logit_gradients",
    "margin_bound",
    "ntk_similarity",
    "random_labels",
    "rank_correlation",
    "regularization_sample_rates",
    "standard_errors",
    "supervision_complexity",
    "targets",
]

r"""Weights of examples: functions of `(labels, student_logits, teacher_logits)` to `(...)`, with no gradient.

Any loss takes one, by name or as a function: `losses.KD(temperature=4.0, weighting="wsl")`. Settings go with the name:
`weighting={"name": "exclude_regularization_samples", "keep_probability": 0.5}`. A function whose settings include
`temperature` gets the loss's own where none is given; one that draws at random is called with `seed`, a
`keras.random.SeedGenerator`. Several of them in a list multiply: `["wsl", "exclude_regularization_samples"]`.
"""

import functools
import inspect

import keras
from keras import ops

from keras_wsl import regularization_samples
from keras_wsl.ops import (
    check_fraction,
    check_non_negative,
    check_temperature,
    class_indices,
    cross_entropy,
    did_you_mean,
    entropy,
    kl_divergence,
)

EPSILON = 1e-7  # The authors' code adds it to the teacher's cross-entropy, which is 0 where the teacher is certain.


def _cross_entropy_ratio(labels, student_logits, teacher_logits):
    """CE of the student over CE of the teacher, both in float32 (the epsilon vanishes in float16): shape `(...)`."""
    student_logits, teacher_logits = ops.cast(student_logits, "float32"), ops.cast(teacher_logits, "float32")
    return cross_entropy(labels, student_logits) / (cross_entropy(labels, teacher_logits) + EPSILON)


def wsl(labels, student_logits, teacher_logits):
    r"""Weighted soft labels: small where the student fits the label better than its teacher does.

    $$\omega = 1 - \exp\left(-\frac{\mathrm{CE}^s}{\mathrm{CE}^t + 10^{-7}}\right) \in [0, 1)$$

    Both cross-entropies with the label are at temperature 1. Zhou et al., ICLR 2021, eq. 5.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, shape `(...)`, without a gradient.
    """
    return ops.stop_gradient(-ops.expm1(-_cross_entropy_ratio(labels, student_logits, teacher_logits)))


def wsl_sigmoid(labels, student_logits, teacher_logits):
    r"""$\omega = 2 / (1 + e^{-r}) - 1 = \tanh(r / 2)$ of the same ratio $r$ as `wsl`: Zhou et al., appendix A.4.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, shape `(...)`, without a gradient.
    """
    return ops.stop_gradient(ops.tanh(_cross_entropy_ratio(labels, student_logits, teacher_logits) / 2))


def _sample_mask(chosen, keep_probability, seed):
    """1 for what is not `chosen`, and for what is, with `keep_probability`: booleans `(...)` to floats `(...)`."""
    kept = ops.cast(ops.logical_not(chosen), "float32")
    if keep_probability:
        drawn = ops.cast(keras.random.uniform(ops.shape(kept), seed=seed) < keep_probability, "float32")
        kept = ops.maximum(kept, drawn)
    return ops.stop_gradient(kept)


def exclude_regularization_samples(
    labels, student_logits, teacher_logits, *, temperature, keep_probability=0.0, seed=None
):
    """0 for regularization samples, of which each is kept with `keep_probability`; 1 for all others.

    Zhou et al., ICLR 2021, table 5 and appendix A.2, whose exclusion rate is `1 - probability`.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, at which `regularization.mask` judges.
        keep_probability: Float in [0, 1], drawn anew for each example and step.
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        Floats, 0 or 1, shape `(...)`.
    """
    chosen = regularization_samples.mask(labels, student_logits, teacher_logits, temperature)
    return _sample_mask(chosen, keep_probability, seed)


def only_regularization_samples(
    labels, student_logits, teacher_logits, *, temperature, keep_probability=0.0, seed=None
):
    """1 for regularization samples; 0 for all others, of which each is kept with `keep_probability`.

    Zhou et al., ICLR 2021, table 5 and appendix A.2.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, at which `regularization.mask` judges.
        keep_probability: Float in [0, 1], drawn anew for each example and step.
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        Floats, 0 or 1, shape `(...)`.
    """
    chosen = regularization_samples.mask(labels, student_logits, teacher_logits, temperature)
    return _sample_mask(ops.logical_not(chosen), keep_probability, seed)


def teacher_correct(labels, student_logits, teacher_logits):
    """1 where the teacher's likeliest class is the label, else 0: the idea of Saputra et al., ICCV 2019.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Not used.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, 0 or 1, shape `(...)`.
    """
    said = ops.cast(ops.argmax(teacher_logits, axis=-1), "int32")
    return ops.cast(ops.equal(said, ops.cast(class_indices(labels, teacher_logits), "int32")), "float32")


def hard_to_mimic(labels, student_logits, teacher_logits, *, gamma=2.0, beta=0.0):
    r"""Large where the student is far from its teacher.

    $$\omega = (1 - e^{-D})^\gamma, \qquad D = \mathrm{KL}(p \Vert q) + (1 - \beta) H(p)$$

    $p$ and $q$ are the teacher's and the student's softmax at temperature 1. The softmax form of the adaptive
    distillation loss of Tang et al., 2019, https://arxiv.org/abs/1901.00366, which lets the gradient through its
    weight; here, as in every weighting, it does not pass.

    Args:
        labels: Not used.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        gamma: Float, the focus on what is hard.
        beta: Float in [0, 1]: 0 counts what the teacher itself is unsure of as hard, 1 does not.

    Returns:
        Floats, shape `(...)`, without a gradient.
    """
    student_logits, teacher_logits = ops.cast(student_logits, "float32"), ops.cast(teacher_logits, "float32")
    distance = kl_divergence(teacher_logits, student_logits) + (1 - beta) * entropy(teacher_logits)
    return ops.stop_gradient(ops.power(-ops.expm1(-distance), gamma))


REGISTRY = {
    function.__name__: function
    for function in (
        wsl,
        wsl_sigmoid,
        exclude_regularization_samples,
        only_regularization_samples,
        teacher_correct,
        hard_to_mimic,
    )
}
_CHECKS = {
    "temperature": check_temperature,
    "keep_probability": check_fraction,
    "gamma": check_non_negative,
    "beta": check_fraction,
}


def argument_names(name):
    """The settings of the weighting of that name: a set of strings.

    Raises:
        ValueError: If there is no weighting of that name.
    """
    if name not in REGISTRY:
        raise ValueError(
            f"There is no weighting {name!r}. Expected a function or one of {sorted(REGISTRY)}."
            + did_you_mean(name, REGISTRY)
        )
    return {p.name for p in inspect.signature(REGISTRY[name]).parameters.values() if p.kind is p.KEYWORD_ONLY}


def get(spec, *, temperature=None, seed=None):
    """The weighting that `spec` describes, as a function of `(labels, student_logits, teacher_logits)`.

    Args:
        spec: A name, a dict of `"name"` and settings, or a function; or a list of those, whose weights multiply.
        temperature: Given to a weighting that takes one, unless `spec` sets it.
        seed: Likewise: an integer or `keras.random.SeedGenerator`.

    Raises:
        ValueError: If there is no weighting of that name, it has no such setting, lacks one, or one is out of its
            range.
    """
    if callable(spec):
        return spec
    if isinstance(spec, (list, tuple)) and spec:
        factors = [get(one, temperature=temperature, seed=seed) for one in spec]
        return lambda *args: functools.reduce(ops.multiply, (weigh(*args) for weigh in factors))
    if not isinstance(spec, (str, dict)):
        raise ValueError(
            f"`weighting` must be a name, a dict such as {{'name': 'wsl'}}, a function, or a list of such. Received: "
            f"{spec!r}."
        )
    settings = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = settings.pop("name", None)
    known = argument_names(name)
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"The weighting {name!r} has no settings {unknown}. It takes {sorted(known)}.")
    for setting, value in (("temperature", temperature), ("seed", seed)):
        if setting in known and value is not None:
            settings.setdefault(setting, value)
    if "temperature" in known - set(settings):
        raise ValueError(
            f"The weighting {name!r} needs the temperature at which it judges; this loss has none of its own. "
            f"Pass weighting={{'name': {name!r}, 'temperature': 4.0}}."
        )
    for setting in _CHECKS.keys() & settings.keys():
        _CHECKS[setting](settings[setting], setting)
    return functools.partial(REGISTRY[name], **settings)


def is_stochastic(spec):
    """Whether the weighting that `spec` describes, as of `get`, draws at random."""
    if isinstance(spec, (list, tuple)):
        return any(is_stochastic(one) for one in spec)
    return isinstance(spec, dict) and bool(spec.get("keep_probability"))

r"""Weights of examples: functions of `(labels, student_logits, teacher_logits)` to `(...)`, with no gradient.

Each loss takes one, by name or as a function: `losses.KD(temperature=4.0, weighting="wsl")`. Pass arguments in a dict:
`weighting={"name": "exclude_regularization_samples", "keep_probability": 0.5}`. The default of `temperature` is the
loss's own. A random function gets `seed`, a `keras.random.SeedGenerator`. The weights of a list are multiplied:
`["wsl", "exclude_regularization_samples"]`.
"""

import functools
import inspect

import keras
from keras import ops

from keras_wsl import regularization_samples
from keras_wsl.argument_checks import check_fraction, check_non_negative, check_temperature, did_you_mean
from keras_wsl.ops import class_indices, cross_entropy, entropy, kl_divergence

EPSILON = 1e-7  # As in the code of the authors, because the teacher's cross-entropy may be 0.


def _cross_entropy_ratio(labels, student_logits, teacher_logits):
    """Compute CE of the student over CE of the teacher in float32, because float16 has no `EPSILON`: shape `(...)`."""
    student_logits, teacher_logits = ops.cast(student_logits, "float32"), ops.cast(teacher_logits, "float32")
    return cross_entropy(labels, student_logits) / (cross_entropy(labels, teacher_logits) + EPSILON)


def wsl(labels, student_logits, teacher_logits):
    r"""Compute the weights of WSL, which are small if the student fits the label better than the teacher.

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
    r"""Compute $\omega = 2 / (1 + e^{-r}) - 1 = \tanh(r / 2)$, $r$ the ratio of `wsl`: Zhou et al., appendix A.4.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, shape `(...)`, without a gradient.
    """
    return ops.stop_gradient(ops.tanh(_cross_entropy_ratio(labels, student_logits, teacher_logits) / 2))


def _sample_mask(excluded, keep_probability, seed):
    """Return 0 for excluded examples, except for a random part that is kept, and 1 for all others: floats `(...)`."""
    weights = ops.cast(ops.logical_not(excluded), "float32")
    if keep_probability:
        kept = ops.cast(keras.random.uniform(ops.shape(weights), seed=seed) < keep_probability, "float32")
        weights = ops.maximum(weights, kept)
    return ops.stop_gradient(weights)


def exclude_regularization_samples(
    labels, student_logits, teacher_logits, *, temperature, keep_probability=0.0, seed=None
):
    """Return 0 for regularization samples, except for a random part, and 1 for all other examples.

    Zhou et al., ICLR 2021, table 5 and appendix A.2. Their exclusion rate is `1 - keep_probability`.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, of `regularization_samples.mask`.
        keep_probability: Float in [0, 1], of returning 1 for an example in a step.
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        Floats, 0 or 1, shape `(...)`.
    """
    mask = regularization_samples.mask(labels, student_logits, teacher_logits, temperature)
    return _sample_mask(mask, keep_probability, seed)


def only_regularization_samples(
    labels, student_logits, teacher_logits, *, temperature, keep_probability=0.0, seed=None
):
    """Return 1 for regularization samples, and 0 for all other examples, except for a random part.

    Zhou et al., ICLR 2021, table 5 and appendix A.2.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        temperature: Positive float, of `regularization_samples.mask`.
        keep_probability: Float in [0, 1], of returning 1 for an example in a step.
        seed: Integer or `keras.random.SeedGenerator`.

    Returns:
        Floats, 0 or 1, shape `(...)`.
    """
    mask = regularization_samples.mask(labels, student_logits, teacher_logits, temperature)
    return _sample_mask(ops.logical_not(mask), keep_probability, seed)


def teacher_correct(labels, student_logits, teacher_logits):
    """Return 1 if the teacher predicts the label, else 0, after Saputra et al., ICCV 2019.

    Args:
        labels: Integers, shape `(...)`, or distributions, shape `(..., classes)`.
        student_logits: Not used.
        teacher_logits: Floats, shape `(..., classes)`.

    Returns:
        Floats, 0 or 1, shape `(...)`.
    """
    predictions = ops.cast(ops.argmax(teacher_logits, axis=-1), "int32")
    return ops.cast(ops.equal(predictions, ops.cast(class_indices(labels, teacher_logits), "int32")), "float32")


def hard_to_mimic(labels, student_logits, teacher_logits, *, gamma=2.0, beta=0.0):
    r"""Compute weights that are large if the student is far from the teacher.

    $$\omega = (1 - e^{-D})^\gamma, \qquad D = \mathrm{KL}(p \Vert q) + (1 - \beta) H(p)$$

    $p$ and $q$ are the teacher's and the student's softmax at temperature 1. This is the softmax
    form of the adaptive distillation loss of Tang et al., 2019, https://arxiv.org/abs/1901.00366. There the weight has
    a gradient; here it has none, as all weightings.

    Args:
        labels: Not used.
        student_logits: Floats, shape `(..., classes)`.
        teacher_logits: Floats, shape `(..., classes)`.
        gamma: Float, the focus on hard examples.
        beta: Float in [0, 1]: at 0, examples with a high entropy of the teacher are hard too; at 1 they are not.

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
    """Return the names of the arguments of the weighting of this name, a set.

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
    """Return a weighting, a function of `(labels, student_logits, teacher_logits)`.

    Args:
        spec: A name, a dict of `"name"` and arguments, or a function; or a list of these, whose weights are multiplied.
        temperature: Default of the argument `temperature`, if the weighting takes one.
        seed: Default of the argument `seed`: an integer or `keras.random.SeedGenerator`.

    Raises:
        ValueError: If there is no such weighting or argument, an argument is out of range, or the temperature is
            missing.
    """
    if callable(spec):
        return spec
    if isinstance(spec, (list, tuple)) and spec:
        factors = [get(factor, temperature=temperature, seed=seed) for factor in spec]
        return lambda *args: functools.reduce(ops.multiply, (factor(*args) for factor in factors))
    if not isinstance(spec, (str, dict)):
        raise ValueError(
            f"`weighting` must be a name, a dict such as {{'name': 'wsl'}}, a function, or a list of these. Received: "
            f"weighting={spec!r}."
        )
    kwargs = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = kwargs.pop("name", None)
    known = argument_names(name)
    if unknown := sorted(set(kwargs) - known):
        raise ValueError(f"The weighting {name!r} has no arguments {unknown}. It takes {sorted(known)}.")
    for argument, default in (("temperature", temperature), ("seed", seed)):
        if argument in known and default is not None:
            kwargs.setdefault(argument, default)
    if "temperature" in known - set(kwargs):
        raise ValueError(
            f"The weighting {name!r} needs a temperature, because this loss has none. "
            f"Pass weighting={{'name': {name!r}, 'temperature': 4.0}}."
        )
    for argument in _CHECKS.keys() & kwargs.keys():
        _CHECKS[argument](kwargs[argument], argument)
    return functools.partial(REGISTRY[name], **kwargs)


def is_stochastic(spec):
    """Return whether the weighting of `spec`, see `get`, is random."""
    if isinstance(spec, (list, tuple)):
        return any(map(is_stochastic, spec))
    return isinstance(spec, dict) and bool(spec.get("keep_probability"))

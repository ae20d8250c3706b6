"""How complex targets are for a kernel: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245.

The paper's text was not at hand when this was written; its abstract, its introduction and one figure were. The adjusted
value is the exact term of the margin bound below, which that figure's numbers agree with.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.special

from keras_wsl.argument_checks import check_non_negative, check_temperature

TARGETS = ("pm1", "prob_centred", "logit_centred", "raw")
_TRUSTED = 1e-6  # The smallest eigenvalue, of the diagonal's mean, that float32 gradients leave to be trusted.
_RANGE = 1e-8  # The part of the targets outside a singular kernel's range that counts as rounding.


class Complexity(NamedTuple):
    """What `supervision_complexity` gives.

    `quadratic` $Y^T K^{-1} Y$; `complexity`, its root; `adjusted`, and `adjusted_over_rms`, which does not move with
    the targets' scale `rms`; `trace` of the kernel without a ridge; `examples`; `outputs`; `smallest_eigenvalue`, and
    the same of the diagonal's mean, `smallest_relative`; `condition`, the largest eigenvalue over the smallest,
    infinite of a singular kernel; `ridge`, the one that `quadratic` has, of the diagonal's mean; `ridges`, a dict of
    other ridges to their `adjusted`.
    """

    quadratic: float
    complexity: float
    adjusted: float
    adjusted_over_rms: float
    rms: float
    trace: float
    examples: int
    outputs: int
    smallest_eigenvalue: float
    smallest_relative: float
    condition: float
    ridge: float
    ridges: dict


def supervision_complexity(kernel, targets, *, ridge=None, ridges=(1e-4, 1e-3, 1e-2)):
    r"""The complexity of targets: the norm of the least function that has them, in the kernel's function space.

    $$\mathrm{SC} = \sqrt{Y^T K^{-1} Y}, \qquad \mathrm{ASC} = \frac1n \sqrt{Y^T K^{-1} Y \cdot \mathrm{tr} K}$$

    The adjusted value ASC does not change with the kernel's scale, grows in proportion to the targets, is at least
    their norm divided by $n$, and is 1 for targets of $\pm 1$ and $K = I$. Random signs have the mean square
    $\mathrm{tr} K \, \mathrm{tr} K^{-1} / n^2 \ge 1$. Takes one eigendecomposition, $O(m^3)$ for $m$ rows: seconds for
    2,000, a minute for 4,000.

    Args:
        kernel: Symmetric, `(n, n)`, or `(n C, n C)` with the row $iC + c$, as `empirical_ntk` gives them.
        targets: `(n,)` or `(n, C)`, as of `targets`. Columns share a kernel of `(n, n)`: their $Y^T K^{-1} Y$ are
            added.
        ridge: Float, added to the diagonal as a multiple of its mean; the trace stays that of the kernel alone. By
            default 0 if the smallest eigenvalue is over `1e-6` of that mean, else `1e-6`.
        ridges: Others, to see how much depends on it.

    Returns:
        `Complexity`. With a ridge of 0 and a singular kernel the complexity is infinite, unless the targets are in
        the kernel's range.

    Raises:
        ValueError: If shapes do not fit, a number is not finite, the ridge is negative, or the kernel is not symmetric
            or has an eigenvalue that is clearly negative.
    """
    kernel, targets, columns = _checked(kernel, targets)
    if ridge is not None:
        check_non_negative(ridge, "ridge")
    values, vectors = scipy.linalg.eigh(kernel, driver="evd")
    if values[0] < -_TRUSTED * values[-1]:
        raise ValueError(
            f"The kernel has the eigenvalue {values[0]:.3g} beside {values[-1]:.3g}. Expected none below 0: "
            "a Gram matrix J J^T has none."
        )
    examples, outputs = targets.shape
    trace, mean = np.trace(kernel), np.trace(kernel) / len(kernel)
    parts = ((vectors.T @ columns) ** 2).sum(axis=1)
    smallest = values[0] / mean
    if ridge is None:
        ridge = 0.0 if smallest > _TRUSTED else _TRUSTED
    quadratic = _quadratic(values, parts, ridge * mean)
    rms = float(np.sqrt((targets**2).mean()))
    adjusted = math.sqrt(quadratic * trace) / examples
    return Complexity(
        quadratic=quadratic,
        complexity=math.sqrt(quadratic),
        adjusted=adjusted,
        adjusted_over_rms=adjusted / rms if rms else math.nan,
        rms=rms,
        trace=float(trace),
        examples=examples,
        outputs=outputs,
        smallest_eigenvalue=float(values[0]),
        smallest_relative=float(smallest),
        condition=float(values[-1] / values[0]) if values[0] > _rounding(values) else math.inf,
        ridge=float(ridge),
        ridges={r: math.sqrt(_quadratic(values, parts, r * mean) * trace) / examples for r in ridges},
    )


def random_labels(kernel):
    r"""The adjusted complexity of random signs, $\sqrt{\mathrm{tr} K \, \mathrm{tr} K^{-1}} / n$, root mean square.

    Infinite where the kernel is singular.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite.
    """
    kernel = _checked_kernel(kernel)
    values = scipy.linalg.eigvalsh(kernel)
    if values[0] <= _rounding(values):
        return math.inf
    return math.sqrt(values.sum() * (1 / values).sum()) / len(kernel)


def targets(logits, kind="prob_centred", temperature=1.0):
    r"""What a teacher's logits ask of a student, as targets of the complexity.

    `"prob_centred"`: $\mathrm{softmax}(z / \tau) - 1 / C$, or $2 \sigma(z / \tau) - 1$ of a single logit: a constant is
    learned by a bias. `"logit_centred"`: $z / \tau$ less its mean over the classes. `"raw"`: $z / \tau$. `"pm1"`: the
    sign of a single logit, or of the difference of two; or $\pm 1$ of integer labels 0 and 1.

    Args:
        logits: `(n,)`, `(n, C)`, or for `"pm1"` integer labels, `(n,)`.
        kind: One of `TARGETS`.
        temperature: Positive float, $\tau$.

    Returns:
        Float64, `(n,)` of one output and of `"pm1"`, else `(n, C)`.

    Raises:
        ValueError: If the kind is unknown or does not fit, or a logit is not finite.
    """
    if kind not in TARGETS:
        raise ValueError(f"kind={kind!r} is unknown. Expected one of {TARGETS}.")
    temperature = check_temperature(temperature)
    given = np.asarray(logits)
    if given.ndim not in (1, 2):
        raise ValueError(f"Expected logits of shape (n,) or (n, C). Received: {given.shape}. Flatten what is before C.")
    values = given.astype("float64")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {values.size} logits are NaN or infinite.")
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if kind == "pm1":
        if given.dtype.kind in "iub":
            if values.ndim != 1 or not np.isin(values, (0, 1)).all():
                raise ValueError(f"kind='pm1' takes labels 0 and 1. Received: {np.unique(given)[:5]}, ...")
            return 2 * values - 1
        if values.ndim == 2 and values.shape[1] != 2:
            raise ValueError(f"kind='pm1' is for two classes. Received logits of {values.shape[1]}.")
        return np.where((values if values.ndim == 1 else values[:, 1] - values[:, 0]) > 0, 1.0, -1.0)
    if kind != "raw" and values.ndim == 2:  # The result is the same, and differences of large logits keep their digits.
        values = values - values.max(axis=1, keepdims=True)
    values = values / temperature
    if kind == "raw":
        return values
    if kind == "logit_centred":
        return values if values.ndim == 1 else values - values.mean(axis=1, keepdims=True)
    if values.ndim == 1:
        return np.tanh(values / 2)  # 2 sigmoid(z) - 1
    return scipy.special.softmax(values, axis=1) - 1 / values.shape[1]


class Bound(NamedTuple):
    """The terms of `margin_bound`, and their sum, `total`; a `total` over 1 says nothing."""

    margin_loss: float
    complexity: float
    confidence: float
    total: float


def margin_bound(kernel, targets, predictions=None, *, margin=0.25, delta=0.05):
    r"""A bound on how often the least-norm interpolant of the targets disagrees with the teacher on new examples.

    $$P \le \frac1n \sum_i \phi_\gamma(\rho_i) + \frac{a j}{\gamma n} \sqrt{\mathrm{tr} K}
      + 3 \sqrt{\frac{\ln (2 j (j + 1) / \delta)}{2 n}}, \qquad j = \max(1, \lceil \sqrt{Y^T K^{-1} Y} \rceil)$$

    with probability $1 - \delta$; $\phi_\gamma(u) = \min(1, \max(0, 1 - u / \gamma))$; $\rho_i$ the margin by which the
    prediction agrees with the teacher's decision; $a = 2$, and $4$ for several outputs. Add the teacher's own risk for
    true labels. Derived by Rademacher complexity for this package; the paper's constants may differ.

    Args:
        kernel: As of `supervision_complexity`.
        targets: The teacher's, `(n,)`, whose sign is its decision, or `(n, C)`, whose largest is.
        predictions: The student's, of the same shape; the targets by default, as an interpolant has them.
        margin: Positive float, $\gamma$.
        delta: Float in (0, 1).

    Returns:
        `Bound`.

    Raises:
        ValueError: If shapes do not fit or a setting is out of its range.
    """
    check_temperature(margin, "margin")
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must be between 0 and 1.")
    found = supervision_complexity(kernel, targets)
    targets = np.asarray(targets, "float64").reshape(found.examples, -1)
    predictions = targets if predictions is None else np.asarray(predictions, "float64")
    if predictions.size != targets.size:
        raise ValueError(
            f"Expected predictions of the targets' shape {targets.shape}. Received: {predictions.shape}. Give one each."
        )
    predictions = predictions.reshape(targets.shape)
    trace = found.trace * (1 if len(kernel) > found.examples else found.outputs)
    if found.outputs == 1:
        factor, margins = 2, np.sign(targets[:, 0]) * predictions[:, 0]
    else:
        rows, decision = np.arange(found.examples), targets.argmax(axis=1)
        others = predictions.copy()
        others[rows, decision] = -np.inf
        factor, margins = 4, predictions[rows, decision] - others.max(axis=1)
    if not math.isfinite(found.complexity):
        return Bound(math.nan, math.inf, math.inf, math.inf)
    ball = max(1, math.ceil(found.complexity))
    loss = float(np.clip(1 - margins / margin, 0, 1).mean())
    complexity = factor * ball / (margin * found.examples) * math.sqrt(trace)
    confidence = 3 * math.sqrt(math.log(2 * ball * (ball + 1) / delta) / (2 * found.examples))
    return Bound(loss, complexity, confidence, loss + complexity + confidence)


def leave_one_out(kernel, targets, *, ridge=1e-3):
    r"""What kernel regression on the other examples' targets predicts for each: $y_i - [K^{-1} y]_i / [K^{-1}]_{ii}$.

    The student that is trained on these targets and stays close to its linearization would predict so: its accuracy
    against true labels tells what the targets promise, without any training.

    Args:
        kernel: Symmetric, `(n, n)`.
        targets: `(n,)` or `(n, C)`.
        ridge: Non-negative float, added to the diagonal as a multiple of its mean.

    Returns:
        Predictions, of the targets' shape.

    Raises:
        ValueError: If shapes do not fit, or the kernel with its ridge is singular.
    """
    check_non_negative(ridge, "ridge")
    kernel, columns, _ = _checked(kernel, targets)
    if len(kernel) != len(columns):
        raise ValueError(
            f"leave_one_out takes a kernel with a row for each of the {len(columns)} examples. Received {len(kernel)} "
            "rows: use outputs='trace' or 'sum' of ntk_gram."
        )
    kernel = kernel + ridge * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    try:
        inverse = scipy.linalg.inv(scipy.linalg.cholesky(kernel, lower=True), overwrite_a=True)
    except scipy.linalg.LinAlgError as error:
        raise ValueError(f"The kernel is singular with ridge={ridge}. Use a larger one.") from error
    inverse = inverse.T @ inverse
    predictions = columns - (inverse @ columns) / np.diag(inverse)[:, None]
    return predictions.reshape(np.shape(targets))


def ntk_similarity(kernel, other, *, centred=False):
    r"""The cosine of two kernels on the same examples, $\langle A, B \rangle_F / (\|A\|_F \|B\|_F)$.

    Args:
        kernel: `(n, n)`.
        other: `(n, n)`, of another network.
        centred: Whether both are centred first, in rows and columns (CKA, Kornblith et al., 2019): without it a
            direction that all kernels share makes the cosine large.

    Raises:
        ValueError: If the shapes differ, or a kernel is zero, or is not symmetric and finite.
    """
    pair = [_checked_kernel(kernel), _checked_kernel(other)]
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"The kernels must be of the same examples. Received: {pair[0].shape} and {pair[1].shape}.")
    if centred:
        pair = [k - k.mean(0) - k.mean(1, keepdims=True) + k.mean() for k in pair]
    norms = [np.linalg.norm(k) for k in pair]
    if not all(norms):
        raise ValueError("A kernel is zero everywhere, or is constant and centred: no cosine is defined.")
    return float((pair[0] * pair[1]).sum() / (norms[0] * norms[1]))


def _quadratic(values, parts, added):
    r"""$Y^T (K + \lambda I)^{-1} Y$ from the eigenvalues and the squares of the targets' coordinates."""
    shifted = values + added
    there = shifted > _rounding(values)
    if parts[~there].sum() > _RANGE**2 * parts.sum():
        return math.inf
    return float((parts[there] / shifted[there]).sum())


def _rounding(values):
    return len(values) * np.finfo("float64").eps * max(values[-1], 0.0)


def _checked(kernel, targets):
    """The kernel, the targets as `(n, C)`, and as the columns that go with the kernel's rows."""
    kernel, targets = _checked_kernel(kernel), np.asarray(targets, "float64")
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or len(kernel) not in (len(targets), targets.size):
        raise ValueError(
            f"A kernel of {len(kernel)} rows needs targets of shape ({len(kernel)},), ({len(kernel)}, C), or (n, C) "
            f"with n C = {len(kernel)}. Received: {targets.shape}."
        )
    if not np.isfinite(targets).all():
        raise ValueError(f"{(~np.isfinite(targets)).sum()} of {targets.size} targets are NaN or infinite.")
    return kernel, targets, targets if len(kernel) == len(targets) else targets.reshape(-1, 1)


def _checked_kernel(kernel):
    kernel = np.asarray(kernel, "float64")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
        raise ValueError(f"A kernel must be a square matrix. Received the shape {kernel.shape}.")
    if not np.isfinite(kernel).all():
        raise ValueError(f"{(~np.isfinite(kernel)).sum()} of the kernel's {kernel.size} entries are NaN or infinite.")
    if np.abs(kernel - kernel.T).max() > _TRUSTED * np.abs(kernel).max():
        raise ValueError("The kernel is not symmetric. Expected K(x, y) = K(y, x) for one list of examples.")
    return kernel

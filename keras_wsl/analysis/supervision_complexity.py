"""The complexity of targets for a kernel: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245.

This was written from the abstract, the introduction and one figure of the paper, without the rest of its text. The
adjusted value is the exact term of the margin bound below, and agrees with the numbers of that figure.
"""

import math
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.special

from keras_wsl.argument_checks import check_non_negative, check_temperature

TARGETS = ("pm1", "prob_centered", "logit_centered", "raw")
_MIN_EIGENVALUE = 1e-6  # Relative to the diagonal's mean. With float32 gradients, smaller ones are unreliable.
_RANGE_TOLERANCE = 1e-8  # The fraction of the targets outside a singular kernel's range attributed to rounding.


class Complexity(NamedTuple):
    """The result of `supervision_complexity`.

    Attributes:
        quadratic: $Y^T K^{-1} Y$.
        complexity: The square root of `quadratic`.
        adjusted: The adjusted complexity.
        adjusted_over_rms: `adjusted / rms`, which does not depend on the scale of the targets.
        rms: Root mean square of the targets.
        trace: Trace of the kernel without a ridge.
        examples: Number of examples.
        outputs: Number of outputs.
        smallest_eigenvalue: Smallest eigenvalue of the kernel.
        smallest_relative: `smallest_eigenvalue` relative to the mean of the diagonal.
        condition: Ratio of the largest to the smallest eigenvalue, infinite for a singular kernel.
        ridge: The ridge of `quadratic`, relative to the mean of the diagonal.
        ridges: Dict of other ridges to their `adjusted`.
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
    r"""Compute the complexity of targets: the norm of their minimum-norm interpolant in the kernel's function space.

    $$\mathrm{SC} = \sqrt{Y^T K^{-1} Y}, \qquad \mathrm{ASC} = \frac1n \sqrt{Y^T K^{-1} Y \cdot \mathrm{tr} K}$$

    The adjusted value ASC does not depend on the kernel's scale, is proportional to the targets, is at least their norm
    divided by $n$, and is 1 for targets of $\pm 1$ and $K = I$. For random signs, its mean square is
    $\mathrm{tr} K \, \mathrm{tr} K^{-1} / n^2 \ge 1$. Takes one eigendecomposition, $O(m^3)$ for $m$ rows: seconds for
    2,000 rows, a minute for 4,000.

    Args:
        kernel: Symmetric, `(n, n)`, or `(n C, n C)` with output $c$ of example $i$ in row $iC + c$; see
        `empirical_ntk`.
        targets: `(n,)` or `(n, C)`, see `targets`. With a kernel of `(n, n)`, the $Y^T K^{-1} Y$ of the columns are
            summed.
        ridge: Float, added to the diagonal as a multiple of its mean. `trace` does not include it. By default 0 if the
            smallest eigenvalue is more than `1e-6` of that mean, else `1e-6`.
        ridges: Other ridges, to evaluate the sensitivity to it.

    Returns:
        `Complexity`. With a ridge of 0 and a singular kernel, the complexity is infinite unless the targets are in the
        kernel's range.

    Raises:
        ValueError: If shapes do not match, a number is not finite, the ridge is negative, or the kernel is not
            symmetric or has a clearly negative eigenvalue.
    """
    kernel, targets, columns = _validate(kernel, targets)
    if ridge is not None:
        check_non_negative(ridge, "ridge")
    values, vectors = scipy.linalg.eigh(kernel, driver="evd")
    if values[0] < -_MIN_EIGENVALUE * values[-1]:
        raise ValueError(
            "`kernel` must be positive semi-definite, as a Gram matrix J J^T is. Received: a kernel with the "
            f"eigenvalue {values[0]:.3g}, where the largest is {values[-1]:.3g}."
        )
    examples, outputs = targets.shape
    trace, mean = np.trace(kernel), np.trace(kernel) / len(kernel)
    squared = ((vectors.T @ columns) ** 2).sum(axis=1)
    smallest = values[0] / mean
    if ridge is None:
        ridge = 0.0 if smallest > _MIN_EIGENVALUE else _MIN_EIGENVALUE
    quadratic = _quadratic(values, squared, ridge * mean)
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
        ridges={r: math.sqrt(_quadratic(values, squared, r * mean) * trace) / examples for r in ridges},
    )


def random_labels(kernel):
    r"""Return the root mean square of the adjusted complexity of random signs.

    $$\sqrt{\mathrm{tr} K \, \mathrm{tr} K^{-1}} / n$$

    It is infinite for a singular kernel.

    Raises:
        ValueError: If the kernel is not square, symmetric and finite.
    """
    kernel = _validate_kernel(kernel)
    values = scipy.linalg.eigvalsh(kernel)
    if values[0] <= _rounding(values):
        return math.inf
    return math.sqrt(values.sum() * (1 / values).sum()) / len(kernel)


def targets(logits, kind="prob_centered", temperature=1.0):
    r"""Convert a teacher's logits to targets for `supervision_complexity`.

    - `"prob_centered"`: $\mathrm{softmax}(z / \tau) - 1 / C$, or $2 \sigma(z / \tau) - 1$ for a single logit. The
      constant is subtracted because a bias learns it.
    - `"logit_centered"`: $z / \tau$ minus its mean over the classes.
    - `"raw"`: $z / \tau$.
    - `"pm1"`: the sign of a single logit or of the difference of two logits, or $\pm 1$ for integer labels 0 and 1.

    Args:
        logits: `(n,)`, `(n, C)`, or for `"pm1"` integer labels, `(n,)`.
        kind: One of `TARGETS`.
        temperature: Positive float, $\tau$.

    Returns:
        float64, `(n,)` for one output and for `"pm1"`, else `(n, C)`.

    Raises:
        ValueError: If the kind is unknown or not applicable, or a logit is not finite.
    """
    if kind not in TARGETS:
        raise ValueError(f"`kind` must be one of {TARGETS}. Received: kind={kind!r}.")
    temperature = check_temperature(temperature)
    logits = np.asarray(logits)
    if logits.ndim not in (1, 2):
        raise ValueError(
            f"`logits` must have shape (n,) or (n, C). Received: shape {logits.shape}. Flatten the axes before C."
        )
    values = logits.astype("float64")
    if not np.isfinite(values).all():
        raise ValueError(
            f"`logits` must be finite. Received: {(~np.isfinite(values)).sum()} of {values.size} are NaN or infinite."
        )
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if kind == "pm1":
        if logits.dtype.kind in "iub":
            if values.ndim != 1 or not np.isin(values, (0, 1)).all():
                raise ValueError(f"Labels must be 0 or 1 for kind='pm1'. Received: {np.unique(logits)[:5]}, ...")
            return 2 * values - 1
        if values.ndim == 2 and values.shape[1] != 2:
            raise ValueError(f"`logits` must be of two classes for kind='pm1'. Received: {values.shape[1]} classes.")
        return np.where((values if values.ndim == 1 else values[:, 1] - values[:, 0]) > 0, 1.0, -1.0)
    if kind != "raw" and values.ndim == 2:  # Same result, but differences of large logits are exact.
        values = values - values.max(axis=1, keepdims=True)
    values = values / temperature
    if kind == "raw":
        return values
    if kind == "logit_centered":
        return values if values.ndim == 1 else values - values.mean(axis=1, keepdims=True)
    if values.ndim == 1:
        return np.tanh(values / 2)  # 2 sigmoid(z) - 1
    return scipy.special.softmax(values, axis=1) - 1 / values.shape[1]


class Bound(NamedTuple):
    """The terms of `margin_bound` and their sum, `total`. A `total` above 1 is vacuous."""

    margin_loss: float
    complexity: float
    confidence: float
    total: float


def margin_bound(kernel, targets, *, predictions=None, margin=0.25, delta=0.05):
    r"""Bound how often the minimum-norm interpolant of the targets disagrees with the teacher on new examples.

    $$P \le \frac1n \sum_i \phi_\gamma(\rho_i) + \frac{a j}{\gamma n} \sqrt{\mathrm{tr} K}
      + 3 \sqrt{\frac{\ln (2 j (j + 1) / \delta)}{2 n}}, \qquad j = \max(1, \lceil \sqrt{Y^T K^{-1} Y} \rceil)$$

    with probability $1 - \delta$. $\phi_\gamma(u) = \min(1, \max(0, 1 - u / \gamma))$; $\rho_i$ is the margin by which
    the prediction agrees with the teacher's decision; $a = 2$, or $4$ for several outputs. For true labels, add the
    teacher's own risk. Derived for this package with Rademacher complexity; the paper's constants may differ.

    Args:
        kernel: Same as for `supervision_complexity`.
        targets: The teacher's: `(n,)`, whose sign is its decision, or `(n, C)`, whose argmax is.
        predictions: The student's, with the same shape; by default the targets, which an interpolant predicts.
        margin: Positive float, $\gamma$.
        delta: Float in (0, 1).

    Returns:
        `Bound`.

    Raises:
        ValueError: If shapes do not match or an argument is out of range.
    """
    check_temperature(margin, "margin")
    if not 0 < delta < 1:
        raise ValueError(f"`delta` must be in (0, 1). Received: delta={delta}.")
    result = supervision_complexity(kernel, targets)
    targets = np.asarray(targets, "float64").reshape(result.examples, -1)
    predictions = targets if predictions is None else np.asarray(predictions, "float64")
    if predictions.size != targets.size:
        raise ValueError(
            f"`predictions` must have the shape of the targets, {targets.shape}. Received: shape {predictions.shape}. "
            "Pass one prediction per target."
        )
    predictions = predictions.reshape(targets.shape)
    trace = result.trace * (1 if len(kernel) > result.examples else result.outputs)
    if result.outputs == 1:
        factor, margins = 2, np.sign(targets[:, 0]) * predictions[:, 0]
    else:
        rows, decision = np.arange(result.examples), targets.argmax(axis=1)
        other_classes = predictions.copy()
        other_classes[rows, decision] = -np.inf
        factor, margins = 4, predictions[rows, decision] - other_classes.max(axis=1)
    if not math.isfinite(result.complexity):
        return Bound(math.nan, math.inf, math.inf, math.inf)
    radius = max(1, math.ceil(result.complexity))
    loss = float(np.clip(1 - margins / margin, 0, 1).mean())
    complexity = factor * radius / (margin * result.examples) * math.sqrt(trace)
    confidence = 3 * math.sqrt(math.log(2 * radius * (radius + 1) / delta) / (2 * result.examples))
    return Bound(loss, complexity, confidence, loss + complexity + confidence)


def leave_one_out(kernel, targets, *, ridge=1e-3):
    r"""Predict each example by kernel regression on the others: $y_i - [K^{-1} y]_i / [K^{-1}]_{ii}$.

    These are the predictions of a student that is trained on these targets and stays close to its linearization. Their
    accuracy on true labels estimates the value of the targets without any training.

    Args:
        kernel: Symmetric, `(n, n)`.
        targets: `(n,)` or `(n, C)`.
        ridge: Non-negative float, added to the diagonal as a multiple of its mean.

    Returns:
        Predictions, with the shape of the targets.

    Raises:
        ValueError: If shapes do not match, or the kernel with its ridge is singular.
    """
    check_non_negative(ridge, "ridge")
    kernel, columns, _ = _validate(kernel, targets)
    if len(kernel) != len(columns):
        raise ValueError(
            f"`kernel` must have one row for each of the {len(columns)} examples. Received: {len(kernel)} rows. "
            "Compute it by empirical_ntk with outputs='trace' or 'sum'."
        )
    kernel = kernel + ridge * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    try:
        inverse = scipy.linalg.inv(scipy.linalg.cholesky(kernel, lower=True), overwrite_a=True)
    except scipy.linalg.LinAlgError as error:
        raise ValueError(
            f"`kernel` must be invertible. Received: a kernel that is singular with ridge={ridge}. Use a larger ridge."
        ) from error
    inverse = inverse.T @ inverse
    predictions = columns - (inverse @ columns) / np.diag(inverse)[:, None]
    return predictions.reshape(np.shape(targets))


def ntk_similarity(kernel, other, *, centered=False):
    r"""Compute the cosine similarity of two kernels on the same examples, $\langle A, B \rangle_F / (\|A\|_F \|B\|_F)$.

    Args:
        kernel: `(n, n)`.
        other: `(n, n)`, of another network.
        centered: Whether to center the rows and columns of both first (CKA, Kornblith et al., 2019). Without it, a
            direction that all kernels have in common makes the cosine large.

    Raises:
        ValueError: If the shapes differ, or a kernel is zero, not symmetric or not finite.
    """
    pair = [_validate_kernel(kernel), _validate_kernel(other)]
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            f"The kernels must be of the same examples. Received: shapes {pair[0].shape} and {pair[1].shape}."
        )
    if centered:
        pair = [k - k.mean(0) - k.mean(1, keepdims=True) + k.mean() for k in pair]
    norms = [np.linalg.norm(k) for k in pair]
    if not all(norms):
        raise ValueError("Both kernels must be nonzero. Received: a zero kernel, or a constant one with centered=True.")
    return float((pair[0] * pair[1]).sum() / (norms[0] * norms[1]))


def _quadratic(values, squared, ridge):
    r"""Return $Y^T (K + \lambda I)^{-1} Y$ from the eigenvalues and the squares of the targets' coordinates."""
    shifted = values + ridge
    nonzero = shifted > _rounding(values)
    if squared[~nonzero].sum() > _RANGE_TOLERANCE**2 * squared.sum():
        return math.inf
    return float((squared[nonzero] / shifted[nonzero]).sum())


def _rounding(values):
    return len(values) * np.finfo("float64").eps * max(values[-1], 0.0)


def _validate(kernel, targets):
    """Return the kernel, the targets as `(n, C)`, and as columns that match the kernel's rows."""
    kernel, targets = _validate_kernel(kernel), np.asarray(targets, "float64")
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or len(kernel) not in (len(targets), targets.size):
        raise ValueError(
            f"`targets` must have shape ({len(kernel)},), ({len(kernel)}, C), or (n, C) with n C = {len(kernel)}, "
            f"for a kernel of {len(kernel)} rows. Received: shape {targets.shape}."
        )
    if not np.isfinite(targets).all():
        raise ValueError(
            f"`targets` must be finite. Received: {(~np.isfinite(targets)).sum()} of {targets.size} are not."
        )
    return kernel, targets, targets if len(kernel) == len(targets) else targets.reshape(-1, 1)


def _validate_kernel(kernel):
    kernel = np.asarray(kernel, "float64")
    if kernel.ndim != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel):
        raise ValueError(f"`kernel` must be a square matrix. Received: shape {kernel.shape}.")
    if not np.isfinite(kernel).all():
        raise ValueError(f"`kernel` must be finite. Received: {(~np.isfinite(kernel)).sum()} of {kernel.size} are not.")
    if np.abs(kernel - kernel.T).max() > _MIN_EIGENVALUE * np.abs(kernel).max():
        raise ValueError(
            "`kernel` must be symmetric. Received: K(x, y) that differs from K(y, x). Use the same examples for both."
        )
    return kernel

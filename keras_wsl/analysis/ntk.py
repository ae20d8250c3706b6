"""The empirical neural tangent kernel of a Keras model: Jacot et al., 2018, https://arxiv.org/abs/1806.07572.

Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245, use it to measure how complex a teacher's predictions
are for a student.
"""

import math
import os

import keras
import numpy as np

from keras_wsl.analysis.autodiff import LogitFunction, batch_size, slice_batch
from keras_wsl.analysis.structured_derivatives import LayerTrace
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.features import symbolic_inputs

OUTPUTS = ("full", "trace", "sum")
METHODS = ("auto", "structured", "jacobian", "ntvp")
_COLUMNS = 2**14  # Columns of the Jacobian per product in float32. The products are summed in float64.


def empirical_ntk(model, x, outputs="full", method="auto", *, memory=2**30, verbose=0):
    r"""Compute the Gram matrix of the empirical neural tangent kernel in inference mode, for all trainable weights $w$.

    $$\Theta(x_i, x_j) = J(x_i) J(x_j)^T, \qquad J(x) = \partial f(x) / \partial w$$

    $f(x) \in R^C$ are the logits. `outputs` selects what is returned for each $C \times C$ block: `"full"`, the block,
    with output $c$ of example $i$ in row $iC + c$; `"trace"`, the mean of its diagonal,
    $\frac{1}{C} \sum_c \Theta_{cc}$; `"sum"`, the kernel of $C^{-1/2} \sum_c f_c$. All three are equal if $C = 1$.
    `"full"` and `"trace"` take $C$ backward passes, `"sum"` one.

    Methods:

    - `"structured"` computes layer by layer and is exact. It supports Dense, EinsumDense, convolutions, depthwise
      convolutions, batch and layer normalization, and embeddings, called once or several times.
    - `"auto"` is the same, and uses the Jacobian for other layers and for weights that are also used in other ways,
      which it detects with the first two examples.
    - `"jacobian"` computes the Jacobian of all weights, for comparison.
    - `"ntvp"` computes $J(x) (J(x_j)^T e_c)$ in forward mode. It stores no Jacobian and takes $n C$ forward passes of
      all examples.

    Args:
        model: A built `keras.Model` in float32 that returns logits, `(batch, classes)`, or a dict that contains them.
        x: Inputs of `n` examples, an array or a structure of arrays.
        outputs: `"full"`, `"trace"` or `"sum"`.
        method: `"auto"`, `"structured"`, `"jacobian"` or `"ntvp"`.
        memory: Maximum number of bytes of gradients at a time. With less memory, the network runs more often.
        verbose: 1 for a progress bar.

    Returns:
        A symmetric NumPy array in float64: `(n C, n C)` for `"full"`, else `(n, n)`. It is computed from float32
        gradients.

    Raises:
        ValueError: If the model has no trainable weights, computes in less than float32, does not return
            `(batch, classes)`, or has infinite gradients; if inputs differ in length or a name is unknown.
        MemoryError: If the matrix needs more memory than is free. Raised before anything is computed.
    """
    for name, value, allowed in (("outputs", outputs, OUTPUTS), ("method", method, METHODS)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}. Received: {name}={value!r}.")
    _check_model(model)
    memory = check_positive_int(memory, "memory")
    x = keras.tree.map_structure(np.asarray, x)
    function = LogitFunction(model, sum_of_logits=outputs == "sum")
    examples = batch_size(x)
    count = function(slice_batch(x, 0)).shape[-1]
    _check_memory(examples, count if outputs == "full" else 1)
    gram = _Gram(examples, count, full=outputs == "full")
    if method == "ntvp":
        _add_ntvp(gram, function, x, verbose)
    elif method == "jacobian":
        _add_jacobian(gram, function, x, function.variables, memory)
    else:
        _add_structured(gram, function, x, memory, strict=method == "structured", verbose=verbose)
    if not np.isfinite(gram.matrix).all():
        raise ValueError(
            f"The gradients of {model.name} must be finite. Received: infinite or NaN gradients for some of the "
            f"{examples} inputs. Use finite weights, and inputs normalized as in training."
        )
    return gram.matrix


class _Gram:
    """The sum of the Gram matrices of blocks of gradients of shape `(examples, outputs, columns)`."""

    def __init__(self, examples, outputs, *, full):
        self.examples, self.outputs, self.full = examples, outputs, full
        self.rows = examples * outputs if full else examples
        self.matrix = np.zeros((self.rows, self.rows))

    def flatten(self, gradients):
        """Return one row per row of the matrix: for the trace, the concatenated gradients of all outputs."""
        if self.full:
            return gradients.reshape(self.rows, -1)
        return gradients.reshape(self.examples, -1) * np.float32(self.outputs**-0.5)

    def add(self, gradients):
        """Add the contribution of these columns of the Jacobian."""
        rows = self.flatten(gradients)
        for start in range(0, rows.shape[1], _COLUMNS):
            block = np.ascontiguousarray(rows[:, start : start + _COLUMNS])
            self.matrix += block @ block.T  # BLAS computes this product as symmetric at half the cost.

    def add_factored(self, inputs, deltas):
        r"""Add $\langle a_i, a_j \rangle \langle \delta_i^c, \delta_j^e \rangle$ of a dense layer."""
        input_gram, rows = inputs @ inputs.T, self.flatten(deltas)
        if self.full:
            input_gram = np.repeat(np.repeat(input_gram, self.outputs, axis=0), self.outputs, axis=1)
        self.matrix += input_gram * (rows @ rows.T)


def _add_structured(gram, function, x, memory, *, strict, verbose):
    trace = LayerTrace(function, x, strict=strict)
    remaining = [v for v in function.variables if not trace.sources[id(v)]]
    rows = gram.examples * gram.outputs
    blocks = [block for block in trace.split(rows, memory) if block.sources]
    passes = _group(blocks, [0 if block.factored else 4 * rows * block.width for block in blocks], memory)
    starts = range(0, gram.examples, trace.chunk)
    bar = keras.utils.Progbar(len(passes) * len(starts) * gram.outputs, verbose=verbose, unit_name="pass")
    for group in passes:
        collected = {}
        for start in starts:
            inputs, pull_back = trace.run(slice_batch(x, start, trace.chunk))
            for output in range(gram.outputs):
                deltas = pull_back(output)
                for i, block in enumerate(group):
                    _collect(collected, i, block, gram, start, output, inputs, deltas)
                bar.add(1)
        for i, block in enumerate(group):
            add = gram.add_factored if block.factored else gram.add
            add(*collected.pop(i))
    if remaining:
        _add_jacobian(gram, function, x, remaining, memory)


def _collect(collected, i, block, gram, start, output, inputs, deltas):
    """Store the gradients of one output for one chunk of examples in the arrays for all examples."""
    if block.factored:
        ((call, _),) = block.sources
        shapes = (inputs[call].shape[-1],), (gram.outputs, deltas[call].shape[-1])
        new = inputs[call], deltas[call]
    else:
        shapes, new = ((gram.outputs, block.width),), (block.rows(inputs, deltas),)
    if i not in collected:
        collected[i] = [np.empty((gram.examples, *shape), "float32") for shape in shapes]
    for array, value in zip(collected[i], new):
        chunk = slice(start, start + len(value))
        array[(chunk, output) if array.ndim > 2 else chunk] = value


def _add_jacobian(gram, function, x, variables, memory):
    """Add the contribution of some weights, from their Jacobian."""
    rows = gram.examples * gram.outputs
    for group in _group(variables, [4 * rows * math.prod(variable.shape) for variable in variables], memory):
        width = sum(math.prod(variable.shape) for variable in group)
        chunk = max(1, memory // (8 * gram.outputs * width))
        gradients = np.empty((gram.examples, gram.outputs, width), "float32")
        for start in range(0, gram.examples, chunk):
            jacobian = function.jacobian(slice_batch(x, start, chunk), group)
            gradients[start : start + chunk] = np.concatenate([g.reshape(*g.shape[:2], -1) for g in jacobian], axis=-1)
        gram.add(gradients)


def _group(items, sizes, limit):
    """Split the items, in order, into groups whose total size is at most the limit."""
    groups, total = [], 0
    for item, size in zip(items, sizes):
        if not groups or (total and total + size > limit):
            groups.append([])
            total = 0
        groups[-1].append(item)
        total += size
    return groups


def _add_ntvp(gram, function, x, verbose):
    bar = keras.utils.Progbar(gram.examples * gram.outputs, verbose=verbose, unit_name="product")
    for j in range(gram.examples):
        rows = function.jacobian(slice_batch(x, j), function.variables)
        for output in range(gram.outputs):
            column = function.jvp(x, [row[0, output] for row in rows])
            if gram.full:
                gram.matrix[:, j * gram.outputs + output] = column.reshape(-1)
            else:
                gram.matrix[:, j] += column[:, output] / gram.outputs
            bar.add(1)
    gram.matrix[:] = (gram.matrix + gram.matrix.T) / 2


def _check_model(model):
    symbolic_inputs(model)  # Checked first: without weights, the error below would give the wrong remedy.
    if not model.trainable_variables:
        raise ValueError(f"{model.name} must have trainable weights. Received: none. Set model.trainable = True.")
    dtypes = sorted({layer.compute_dtype for layer in model._flatten_layers()} - {"float32", "float64"})
    if dtypes:
        raise ValueError(
            f"{model.name} must compute in float32, because other gradients are not precise enough for a kernel. "
            f"Received: {dtypes}. Build it with dtype='float32' and load the same weights."
        )


def _check_memory(examples, outputs):
    rows = examples * outputs
    needed = 14 * rows**2  # The matrix in float64, a product in float32, and BLAS's copy of half of it.
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        max_rows = int((free / 14) ** 0.5)
        raise MemoryError(
            f"The kernel of {examples} examples and {outputs} outputs has {rows:,} rows and needs "
            f"{needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free. Pass at most {max_rows // outputs} examples"
            + (", or outputs='trace' or 'sum', whose matrix has one row per example." if outputs > 1 else ".")
        )

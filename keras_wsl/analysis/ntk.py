"""The empirical neural tangent kernel of a Keras model: Jacot et al., 2018, https://arxiv.org/abs/1806.07572.

Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245, measure with it how complex a teacher's predictions are
for a student.
"""

import math
import os

import keras
import numpy as np

from keras_wsl.analysis.autodiff import Outputs, part, size
from keras_wsl.analysis.structured_derivatives import Recording
from keras_wsl.argument_checks import check_positive_int
from keras_wsl.features import symbolic_inputs

OUTPUTS = ("full", "trace", "sum")
METHODS = ("auto", "structured", "jacobian", "ntvp")
_COLUMNS = 2**14  # Of the Jacobian in one product in float32; the products are added up in float64.


def empirical_ntk(model, x, outputs="full", method="auto", *, memory=2**30, verbose=0):
    r"""The Gram matrix of the empirical neural tangent kernel, in inference mode, over all trainable weights $w$.

    $$\Theta(x_i, x_j) = J(x_i) J(x_j)^T, \qquad J(x) = \partial f(x) / \partial w$$

    of the logits $f(x) \in R^C$. `outputs` says what of each $C \times C$ block is kept: `"full"`, all, in the
    row $iC + c$; `"trace"`, the mean of its diagonal, $\frac{1}{C} \sum_c \Theta_{cc}$; `"sum"`, the kernel of
    $C^{-1/2} \sum_c f_c$. All three agree where $C = 1$. `"full"` and `"trace"` take $C$ backward passes, `"sum"` one.

    Methods: `"structured"` goes layer by layer, and is exact; it knows Dense, EinsumDense, convolutions, depthwise
    convolutions, batch and layer normalization, and embeddings, called once or several times. `"auto"` is the same, and
    takes the part of other layers from their Jacobian, as of weights that are used in other ways too, which it finds on
    the first two examples. `"jacobian"` forms the Jacobian of all weights, for comparison;
    `"ntvp"` multiplies forward, $J(x) (J(x_j)^T e_c)$, which holds no Jacobian and takes $n C$ forward passes of all
    examples.

    Args:
        model: A built `keras.Model` in float32 that gives logits, `(batch, classes)`, or a dict that has them.
        x: Inputs of `n` examples, an array or a structure of arrays.
        outputs: `"full"`, `"trace"` or `"sum"`.
        method: `"auto"`, `"structured"`, `"jacobian"` or `"ntvp"`.
        memory: Bytes that gradients may take up at a time. The networks run once more for each time that they fill it.
        verbose: 1 for a progress bar.

    Returns:
        A symmetric NumPy array in float64: `(n C, n C)` of `"full"`, else `(n, n)`. Its products are of float32
        gradients.

    Raises:
        ValueError: If the model has no trainable weights, computes in less than float32, gives other than
            `(batch, classes)`, or gives infinite gradients; if inputs differ in length or a name is unknown.
        MemoryError: If the matrix needs more memory than is free, before anything is computed.
    """
    for name, value, known in (("outputs", outputs, OUTPUTS), ("method", method, METHODS)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown. Expected one of {known}.")
    _check(model)
    memory = check_positive_int(memory, "memory")
    x = keras.tree.map_structure(np.asarray, x)
    of = Outputs(model, sum_of_logits=outputs == "sum")
    examples = size(x)
    count = of(part(x, 0)).shape[-1]
    _check_memory(examples, count if outputs == "full" else 1)
    gram = _Gram(examples, count, full=outputs == "full")
    if method == "ntvp":
        _add_products(gram, of, x, verbose)
    elif method == "jacobian":
        _add_jacobian(gram, of, x, of.variables, memory)
    else:
        _add_structured(gram, of, x, memory, strict=method == "structured", verbose=verbose)
    if not np.isfinite(gram.matrix).all():
        raise ValueError(
            f"The gradients of {model.name} are infinite or NaN for some of the {examples} inputs. Expected finite "
            "weights and inputs, normalized as in training."
        )
    return gram.matrix


class _Gram:
    """The sum of the Gram matrices of gradients, given as `(examples, outputs, columns)`."""

    def __init__(self, examples, outputs, *, full):
        self.examples, self.outputs, self.full = examples, outputs, full
        self.rows = examples * outputs if full else examples
        self.matrix = np.zeros((self.rows, self.rows))

    def flat(self, gradients):
        """A row for each row of the matrix: the trace is the kernel of the outputs' gradients side by side."""
        if self.full:
            return gradients.reshape(self.rows, -1)
        return gradients.reshape(self.examples, -1) * np.float32(self.outputs**-0.5)

    def add(self, gradients):
        """Adds what these columns of the Jacobian give."""
        rows = self.flat(gradients)
        for start in range(0, rows.shape[1], _COLUMNS):
            block = np.ascontiguousarray(rows[:, start : start + _COLUMNS])
            self.matrix += block @ block.T  # BLAS's product with its own transpose: symmetric, at half the cost.

    def add_factored(self, inputs, deltas):
        r"""Adds $\langle a_i, a_j \rangle \langle \delta_i^c, \delta_j^e \rangle$ of a dense layer."""
        shared, rows = inputs @ inputs.T, self.flat(deltas)
        if self.full:
            shared = np.repeat(np.repeat(shared, self.outputs, axis=0), self.outputs, axis=1)
        self.matrix += shared * (rows @ rows.T)


def _add_structured(gram, of, x, memory, *, strict, verbose):
    recording = Recording(of, x, strict=strict)
    others = [v for v in of.variables if not recording.sources[id(v)]]
    rows = gram.examples * gram.outputs
    known = [columns for columns in recording.parts(rows, memory) if columns.sources]
    passes = _groups(known, [0 if columns.factored else 4 * rows * columns.width for columns in known], memory)
    starts = range(0, gram.examples, recording.chunk)
    bar = keras.utils.Progbar(len(passes) * len(starts) * gram.outputs, verbose=verbose, unit_name="pass")
    for parts in passes:
        kept = {}
        for start in starts:
            inputs, pull = recording.run(part(x, start, recording.chunk))
            for output in range(gram.outputs):
                deltas = pull(output)
                for i, columns in enumerate(parts):
                    _keep(kept, i, columns, gram, start, output, inputs, deltas)
                bar.add(1)
        for i, columns in enumerate(parts):
            add = gram.add_factored if columns.factored else gram.add
            add(*kept.pop(i))
    if others:
        _add_jacobian(gram, of, x, others, memory)


def _keep(kept, i, columns, gram, start, output, inputs, deltas):
    """Puts one chunk's gradients of one output where those of all examples are collected."""
    if columns.factored:
        ((call, _),) = columns.sources
        shapes = (inputs[call].shape[-1],), (gram.outputs, deltas[call].shape[-1])
        new = inputs[call], deltas[call]
    else:
        shapes, new = ((gram.outputs, columns.width),), (columns.rows(inputs, deltas),)
    if i not in kept:
        kept[i] = [np.empty((gram.examples, *shape), "float32") for shape in shapes]
    for array, value in zip(kept[i], new):
        here = slice(start, start + len(value))
        array[(here, output) if array.ndim > 2 else here] = value


def _add_jacobian(gram, of, x, variables, memory):
    """Adds what some weights give, from their Jacobian."""
    rows = gram.examples * gram.outputs
    for group in _groups(variables, [4 * rows * math.prod(variable.shape) for variable in variables], memory):
        width = sum(math.prod(variable.shape) for variable in group)
        chunk = max(1, memory // (8 * gram.outputs * width))
        gradients = np.empty((gram.examples, gram.outputs, width), "float32")
        for start in range(0, gram.examples, chunk):
            found = of.jacobian(part(x, start, chunk), group)
            gradients[start : start + chunk] = np.concatenate([g.reshape(*g.shape[:2], -1) for g in found], axis=-1)
        gram.add(gradients)


def _groups(items, sizes, limit):
    """The items in groups whose sizes add up to the limit at most, in their order."""
    groups, taken = [], 0
    for item, needed in zip(items, sizes):
        if not groups or (taken and taken + needed > limit):
            groups.append([])
            taken = 0
        groups[-1].append(item)
        taken += needed
    return groups


def _add_products(gram, of, x, verbose):
    bar = keras.utils.Progbar(gram.examples * gram.outputs, verbose=verbose, unit_name="product")
    for j in range(gram.examples):
        rows = of.jacobian(part(x, j), of.variables)
        for output in range(gram.outputs):
            column = of.products(x, [row[0, output] for row in rows])
            if gram.full:
                gram.matrix[:, j * gram.outputs + output] = column.reshape(-1)
            else:
                gram.matrix[:, j] += column[:, output] / gram.outputs
            bar.add(1)
    gram.matrix[:] = (gram.matrix + gram.matrix.T) / 2


def _check(model):
    symbolic_inputs(model)  # Else a network without weights would be told to have them trained.
    if not model.trainable_variables:
        raise ValueError(
            f"{model.name} has no trainable weights, and so no tangent kernel. Set model.trainable = True."
        )
    coarse = sorted({layer.compute_dtype for layer in model._flatten_layers()} - {"float32", "float64"})
    if coarse:
        raise ValueError(
            f"{model.name} computes in {coarse}; its gradients would be too coarse for a kernel. Build it with "
            "dtype='float32' and load the same weights."
        )


def _check_memory(examples, outputs):
    rows = examples * outputs
    needed = 14 * rows**2  # The matrix in float64, a product in float32, and BLAS's copy of half of it.
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > free:
        fitting = int((free / 14) ** 0.5)
        raise MemoryError(
            f"The kernel of {examples} examples and {outputs} outputs has {rows:,} rows and needs "
            f"{needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free. Give at most {fitting // outputs} examples"
            + (", or outputs='trace' or 'sum', whose matrix has a row for each example alone." if outputs > 1 else ".")
        )

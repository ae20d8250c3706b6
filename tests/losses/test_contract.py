"""Properties of all losses of `losses.REGISTRY`."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import Distiller, export, losses, weighting
from keras_wsl.losses.relation.cc import adjacent_products
from keras_wsl.targets import Targets
from tests.common import (
    Batch,
    agreeing_batch,
    arrays,
    built,
    built_loss,
    compute_per_example_losses,
    gradient,
    hard_loss,
    make_loss,
    networks,
    random_batch,
)

BACKEND = keras.backend.backend()
NAMES = sorted(losses.REGISTRY)
LOGITS_LOSSES = [name for name in NAMES if issubclass(losses.REGISTRY[name], losses.LogitsLoss)]
FEATURE_LOSSES = [name for name in NAMES if issubclass(losses.REGISTRY[name], losses.FeatureLoss)]
RELATION_LOSSES = [name for name in NAMES if issubclass(losses.REGISTRY[name], losses.RelationLoss)]
every_loss = pytest.mark.parametrize("name", NAMES)

# The value of an example depends on the other examples of the batch.
BETWEEN_EXAMPLES = {*RELATION_LOSSES, "cc", "crd", "dist", "mlkd"}
# Weights are of pairs or triples.
PAIRWISE = {*RELATION_LOSSES, "cc"}
ORDERED = {
    "cc": "compares each example with the next one of the batch",
    "crd": "samples negatives for each position of the batch",
}
# Losses with trainable variables.
ADAPTERS = {"ab", "cc", "crd", "fitnet", "ft", "overhaul", "paraphrase", "reviewkd", "vid"}
NEVER_ZERO = {
    "ab": "has a margin beyond the sign of the teacher",
    "crd": "discriminates examples, and has no minimum",
    "fitnet": "has an adapter between the two",
    "ft": "has adapters between the two",
    "overhaul": "has an adapter between the two",
    "paraphrase": "does not compare student and teacher",
    "reviewkd": "has adapters between the two",
    "tf_kd_reg": "does not use the teacher",
    "vid": "is a likelihood, and has an adapter between the two",
}


@keras.saving.register_keras_serializable("tests")
def ones(labels, student_logits, teacher_logits):
    """Return weights of 1."""
    return ops.ones_like(student_logits[..., 0])


@pytest.fixture
def allow_xla():
    """Disable the op determinism that other tests enable, with which XLA raises errors on TensorFlow."""
    if BACKEND == "tensorflow":
        from tensorflow.python.framework import config

        config.disable_op_determinism()  # There is no public function.


def rows(loss, batch, **settings):
    return ops.convert_to_numpy(compute_per_example_losses(loss, batch, **settings))


def gradients(loss, batch, **settings):
    """Compute the gradients of the sum of the loss with respect to the outputs of the student, a dict by layer."""
    ends = np.cumsum([values.size for values in batch.student.values()])

    def parts(flat):
        return {
            name: ops.reshape(flat[end - values.size : end], values.shape)
            for (name, values), end in zip(batch.student.items(), ends)
        }

    def total(flat):
        student = parts(flat)
        values = compute_per_example_losses(loss, Batch(batch.labels, student, batch.teacher, batch.index), **settings)
        return ops.sum(values) + 0.0 * ops.sum(flat)  # TensorFlow has no gradient of inputs that are not used.

    slope = gradient(total, np.concatenate([values.ravel() for values in batch.student.values()]))
    return {name: ops.convert_to_numpy(part) for name, part in parts(slope).items()}


def assert_finite(loss, batch, **settings):
    """Assert that values and gradients are finite."""
    assert np.isfinite(rows(loss, batch, **settings)).all()
    for name, slope in gradients(loss, batch, **settings).items():
        assert np.isfinite(slope).all(), name


def replace_examples(batch, name, positions):
    """Return the batch with examples of another batch at these positions."""
    other, batch = random_batch(name, seed=1), batch.take(np.arange(len(batch.labels)))
    batch.labels[positions], batch.index[positions] = other.labels[positions], other.index[positions]
    for ends, values in ((batch.student, other.student), (batch.teacher, other.teacher)):
        for end in ends:
            ends[end][positions] = values[end][positions]
    return batch


def copy_variables(source, target):
    """Copy the variables of a built loss, with seeds, to another one, and return that."""
    for variable, value in zip(target.variables, source.variables, strict=True):
        variable.assign(value)
    return target


def compiled_distiller(name, loss, *, student_loss_weight=1.0, **settings):
    student, teacher = networks(name)
    distiller = Distiller(teacher, student, loss, student_loss_weight=student_loss_weight)
    # Eager JAX compiles each operation separately, which takes longer.
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss(), jit_compile=BACKEND == "jax", **settings)
    return distiller


def inputs_and_targets(distiller, batch):
    shape = distiller.student.input_shape[1:]
    x = np.random.default_rng(1).normal(size=(len(batch.labels), *shape)).astype("float32")
    requires_example_index = any(loss.requires_example_index for loss in distiller.distillation_losses)
    return x, {"labels": batch.labels, "index": batch.index} if requires_example_index else batch.labels


# Values and gradients.


@every_loss
def test_loss_returns_one_float32_per_example(name):
    batch = random_batch(name)
    loss = built_loss(name)
    for training in (True, False):
        values = compute_per_example_losses(loss, batch, training=training)
        assert tuple(values.shape) == (4,)
        assert keras.backend.standardize_dtype(values.dtype) == "float32"
    # Outputs in float16 are cast before any computation.
    half = batch.map(lambda values: values.astype("float16"))
    values = compute_per_example_losses(loss, half)
    assert tuple(values.shape) == (4,) and keras.backend.standardize_dtype(values.dtype) == "float32"
    same = rows(loss, half.map(lambda values: values.astype("float32")))
    np.testing.assert_array_equal(ops.convert_to_numpy(values), same)


@every_loss
@pytest.mark.parametrize("weights", [None, "wsl"])
def test_loss_is_finite_at_extreme_logits(name, weights):
    settings = {"temperature": 4.0} if name in LOGITS_LOSSES else {}
    loss = built_loss(name, weighting=weights, **settings)
    batch = random_batch(name)
    extreme = np.array([[400, 0, 0, 0, 0], [0, 400, 0, 0, 0], [-400, 0, 0, 0, 0], [400, 0, 0, 0, 400]], "float32")
    batch.labels = np.zeros(4, "int32")
    batch.student["logits"] = extreme
    for teacher in (extreme, -extreme, extreme[:, ::-1].copy()):
        batch.teacher["logits"] = teacher
        assert_finite(loss, batch)


@every_loss
@pytest.mark.parametrize(
    "kind", ["zeros", "zero_student", "zero_teacher", "identical_examples", "one_example", "largest_of_float16"]
)
def test_loss_is_finite_for_degenerate_outputs(name, kind):
    batch = random_batch(name, 1 if kind == "one_example" else 4)
    if kind in ("zeros", "zero_student"):
        batch.student = {end: np.zeros_like(values) for end, values in batch.student.items()}
    if kind in ("zeros", "zero_teacher"):
        batch.teacher = {end: np.zeros_like(values) for end, values in batch.teacher.items()}
    if kind == "identical_examples":
        batch = batch.map(lambda values: np.repeat(values[:1], 4, axis=0))
    if kind == "largest_of_float16":
        batch = batch.map(lambda values: np.sign(values) * np.float32(np.finfo("float16").max))
    loss = built_loss(name)
    # In training, batch normalization of a constant divides by the root of its epsilon.
    assert_finite(loss, batch, training=True)


@pytest.mark.parametrize("name", ["kd", "wsl"])
def test_loss_is_exact_if_probabilities_underflow(name):
    # KL of (1, ~0) against (~0, 1), a gap of 400 at temperature 4: 100 nats, times 16.
    batch = Batch(
        np.array([0], "int32"),
        {"logits": np.array([[0, 400.0]], "float32")},
        {"logits": np.array([[400.0, 0]], "float32")},
        np.array([0], "int32"),
    )
    values = rows(make_loss(name, temperature=4.0), batch)
    np.testing.assert_allclose(values, [1600.0], rtol=1e-5)  # The student is wrong, so that the weight of WSL is 1.


@every_loss
def test_compiled_loss_matches_eager_loss(name, monkeypatch, allow_xla):
    if BACKEND == "torch":
        pytest.skip("Keras compiles nothing on Torch by default")
    batch, loss = random_batch(name), built_loss(name, weighting="wsl")
    if name == "crd":  # XLA has other random numbers.
        sample = loss.sample_negatives(batch.index)
        monkeypatch.setattr(loss, "sample_negatives", lambda index: sample)

    def call(labels, student, teacher, index):
        return compute_per_example_losses(loss, Batch(labels, student, teacher, index), training=True)

    arguments = (batch.labels, batch.student, batch.teacher, batch.index)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # The size of the batch is not known in the trace, as in `fit`.
        specs = tf.nest.map_structure(lambda values: tf.TensorSpec((None, *values.shape[1:]), values.dtype), arguments)
        call = tf.function(call, jit_compile=True, input_signature=specs)
    else:
        import jax

        call = jax.jit(call)
    compiled = ops.convert_to_numpy(call(*arguments))
    np.testing.assert_allclose(compiled, rows(loss, batch, training=True), rtol=1e-5, atol=1e-5)


def test_crd_samples_negatives_of_other_classes_eager_and_compiled(allow_xla):
    loss, index = make_loss("crd"), np.array([3, 39, 0, 17], "int32")
    sample_negatives = loss.sample_negatives
    if BACKEND == "tensorflow":
        import tensorflow as tf

        sample_negatives = tf.function(loss.sample_negatives, jit_compile=True)
    for function in (loss.sample_negatives, sample_negatives):
        pairs, selected = map(ops.convert_to_numpy, function(index))
        np.testing.assert_array_equal(pairs[:, 0], index)
        assert selected[:, 0].all() and (selected[:, 1:].sum(1) == 8).all()
        for number, candidates, is_negative in zip(index, pairs[:, 1:], selected[:, 1:]):
            negatives = candidates[is_negative]
            assert len(set(negatives)) == 8 and (negatives % 5 != number % 5).all()
    assert (ops.convert_to_numpy(loss.sample_negatives(index)[0]) != pairs).any()


@every_loss
def test_loss_is_equivariant_to_permutations(name):
    if name in ORDERED:
        pytest.skip(f"{name} {ORDERED[name]}")
    batch, order = random_batch(name), [2, 0, 3, 1]
    loss = built_loss(name)
    for training in (True, False):
        permuted = rows(loss, batch.take(order), training=training)
        np.testing.assert_allclose(permuted, rows(loss, batch, training=training)[order], rtol=1e-4, atol=1e-6)


@every_loss
def test_loss_of_an_example_does_not_depend_on_other_examples(name):
    if name in BETWEEN_EXAMPLES:
        pytest.skip(f"{name} compares the examples of a batch")
    batch, loss = random_batch(name), built_loss(name, weighting="wsl")
    values = rows(loss, batch)
    np.testing.assert_allclose(rows(loss, replace_examples(batch, name, [2, 3]))[:2], values[:2], rtol=1e-5)


@every_loss
def test_one_hot_labels_match_integers(name):
    batch = random_batch(name)
    one_hot = Batch(np.eye(5, dtype="float32")[batch.labels], batch.student, batch.teacher, batch.index)
    for weights in (None, "wsl"):
        loss = built_loss(name, weighting=weights)
        np.testing.assert_allclose(rows(loss, batch), rows(loss, one_hot), rtol=1e-4)


@every_loss
def test_loss_is_zero_without_a_difference(name):
    if name in NEVER_ZERO:
        pytest.skip(f"{name} {NEVER_ZERO[name]}")
    # The literal reading of MaskedKD is a cross-entropy, which is not 0 for equal logits.
    settings = {"reading": "renormalized"} if name == "masked_kd" else {}
    loss, batch = built_loss(name, alike=True, **settings), agreeing_batch(name)
    # RLD and KnowledgeAdjustment correct a wrong teacher, so that the teacher must be right.
    batch.labels = batch.teacher["logits"].argmax(-1).astype("int32")
    if name == "cc":
        loss.student_embedding.set_weights(loss.teacher_embedding.get_weights())
    values = rows(loss, batch)
    if name == "dist":
        values = values.mean()  # An example has its terms of a correlation over the batch.
    # DIST's correlations have an epsilon in the denominator.
    np.testing.assert_allclose(values, 0, atol=2e-4 if name == "dist" else 1e-5)
    batch.student = agreeing_batch(name, seed=1).student
    assert rows(loss, batch).mean() > 1e-3


@every_loss
def test_loss_is_not_negative(name):
    if name == "vid":
        pytest.skip("a density has no upper bound")
    for seed in range(3):
        values = rows(built_loss(name), random_batch(name, seed=seed))
        # DIST and MLKD sum over the batch: the value of an example may be negative, but not the mean.
        assert (values.mean() if name in ("dist", "mlkd") else values.min()) >= -1e-6


def test_tf_kd_reg_is_zero_at_its_virtual_teacher():
    labels = np.arange(5, dtype="int32")
    virtual = np.where(np.eye(5), 0.99, 0.01 / 4).astype("float32") / 40
    batch = Batch(labels, {"logits": virtual}, {"logits": np.zeros((5, 5), "float32")}, labels)
    np.testing.assert_allclose(rows(make_loss("tf_kd_reg"), batch), 0, atol=1e-6)


# Sequences.


def sequences(name):
    """Return a batch of 2 sequences of 3 positions, the mask, and the same positions as 6 examples."""
    flat = random_batch(name, 6)
    batch = flat.take(slice(0, 2))
    batch.labels = flat.labels.reshape(2, 3)
    for end, whole in ((batch.student, flat.student), (batch.teacher, flat.teacher)):
        end["logits"] = whole["logits"].reshape(2, 3, 5).copy()
    return batch, np.array([[1, 0, 1], [1, 0, 0]], bool), flat


@pytest.mark.parametrize("name", [*LOGITS_LOSSES, "tf_kd_reg"])
@pytest.mark.parametrize("weights", [None, "wsl"])
def test_loss_of_sequences_is_the_mean_over_unmasked_positions(name, weights):
    if not getattr(losses.REGISTRY[name], "supports_sequences", True):
        pytest.skip(f"{name} compares examples: it refuses sequences")
    batch, mask, flat = sequences(name)
    loss = make_loss(name, weighting=weights)
    each = rows(loss, flat).reshape(2, 3)
    np.testing.assert_allclose(rows(loss, batch), each.mean(1), rtol=1e-5)
    slope = gradients(loss, batch, mask=mask)["logits"]
    assert (slope[~mask] == 0).all() and (slope[mask] != 0).any()
    batch.student["logits"][~mask] = np.inf  # Values in the padding do not matter.
    expected = (each * mask).sum(1) / mask.sum(1)
    np.testing.assert_allclose(rows(loss, batch, mask=mask), expected, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LOGITS_LOSSES if not losses.REGISTRY[name].supports_sequences])
def test_losses_between_examples_raise_for_sequences(name):
    batch, _, _ = sequences(name)
    with pytest.raises(ValueError, match=r"compares the examples of a batch. Received shape: \(2, 3, 5\). Use a loss"):
        rows(make_loss(name), batch)


@pytest.mark.parametrize("name", sorted(set(FEATURE_LOSSES) - BETWEEN_EXAMPLES))
def test_weights_of_positions_are_averaged_for_feature_losses(name):
    batch, mask, flat = sequences(name)
    plain = built_loss(name)
    loss = copy_variables(plain, built_loss(name, weighting="wsl"))
    each = ops.convert_to_numpy(weighting.wsl(flat.labels, flat.student["logits"], flat.teacher["logits"]))
    expected = (each.reshape(2, 3) * mask).sum(1) / mask.sum(1) * rows(plain, batch)
    np.testing.assert_allclose(rows(loss, batch, mask=mask), expected, rtol=1e-5)


# Weightings.


def weighted_pairs(loss, batch, weights):
    """Compute a loss on relations with the mean weight of the examples of each pair or triple."""
    if isinstance(loss, losses.CC):
        ((student, teacher),) = loss.pairs(batch.student, batch.teacher)
        values = adjacent_products(loss.student_embedding(student), loss.teacher_embedding(teacher))
        values = ops.convert_to_numpy(values) * (weights[:-1] + weights[1:]) / 2
        halves = (np.append(values, 0) + np.append(0, values)) / 2
        return halves * len(weights) / (len(weights) - 1)
    total = 0
    for values in loss.relations(batch.student, batch.teacher):
        values = ops.convert_to_numpy(values)
        each = np.mean(np.meshgrid(*[weights] * values.ndim, indexing="ij"), axis=0)
        total = total + (values * each).mean(axis=tuple(range(1, values.ndim)))
    return total


@every_loss
def test_weighting_multiplies_examples_or_pairs(name):
    batch, plain = random_batch(name), built_loss(name, weighting=None)
    values = rows(plain, batch)
    np.testing.assert_allclose(rows(copy_variables(plain, built_loss(name, weighting=ones)), batch), values, rtol=1e-6)

    weights = ops.convert_to_numpy(weighting.wsl(batch.labels, batch.student["logits"], batch.teacher["logits"]))
    assert weights.std() > 0.01
    loss = copy_variables(plain, built_loss(name, weighting="wsl"))
    expected = weighted_pairs(plain, batch, weights) if name in PAIRWISE else weights * values
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(rows(loss, batch), expected, rtol=1e-5, atol=1e-7)


@every_loss
def test_weighting_takes_the_temperature_of_the_loss(name):
    if name in LOGITS_LOSSES:
        assert make_loss(name, weighting="exclude_regularization_samples", temperature=3.0).temperature == 3.0
    else:
        with pytest.raises(ValueError, match="needs a temperature, because this loss has none"):
            make_loss(name, weighting="exclude_regularization_samples")
    loss = built_loss(name, weighting={"name": "exclude_regularization_samples", "temperature": 4.0})
    assert np.isfinite(rows(loss, random_batch(name))).all()


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_weight_has_no_gradient(name):
    # See test_logit.py for losses on logits, which have a gradient with respect to them.
    batch, loss = random_batch(name), built_loss(name, weighting="wsl")
    assert (gradients(loss, batch)["logits"] == 0).all()


# Arguments and files.


@every_loss
def test_get_config_has_every_argument(name):
    taken = {
        parameter.name
        for base in losses.REGISTRY[name].__mro__
        if issubclass(base, losses.DistillationLoss)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    } - {"self"}
    assert set(make_loss(name).get_config()) == taken


@every_loss
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weighting": "wsl_sigmoid"},
        {"weighting": ones},
        {
            "weighting": [
                "wsl",
                {"name": "only_regularization_samples", "temperature": 2.0, "keep_probability": 0.0},
                ones,
            ]
        },
        {
            "weighting": {"name": "exclude_regularization_samples", "keep_probability": 0.0, "temperature": 3.0},
            "name": "other",
        },
        {"teacher": {"large": 2.0, "small": 1.0}},
    ],
)
def test_serialization_round_trip(name, settings):
    kwargs = {"temperature": 3.0} if name in LOGITS_LOSSES else {}
    if name in LOGITS_LOSSES and isinstance(settings.get("weighting"), dict):  # It has the temperature of the loss.
        settings = {**settings, "weighting": {"name": "exclude_regularization_samples", "keep_probability": 0.0}}
    loss = built_loss(name, weight=7.0, **kwargs, **settings)
    twin = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(twin) is type(loss) and twin.get_config() == loss.get_config()
    if isinstance(loss.teacher, dict):
        return  # Not every loss takes several teachers.
    copy_variables(loss, built(twin, name))
    batch = random_batch(name)
    np.testing.assert_array_equal(rows(twin, batch), rows(loss, batch))


# With a Distiller.


def before_normalization(variable):
    """Return whether a variable is a bias before batch normalization, whose gradient is 0."""
    return variable.path.split("/")[-2].startswith("convolution") and variable.name == "bias"


@every_loss
def test_train_step_trains_student_and_adapters(name, tmp_path):
    loss = make_loss(name, weight=1.0)
    # On TensorFlow, tracing one step takes longer.
    distiller = compiled_distiller(name, loss, run_eagerly=BACKEND == "tensorflow")
    student = distiller.student
    x, y = inputs_and_targets(distiller, random_batch(name))
    student_before, teacher_before, adapters = arrays(student), arrays(distiller.teacher), arrays(loss)

    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    assert logs["loss"] == pytest.approx(float(logs["student_loss"] + logs[loss.name]), rel=1e-5)
    for before, after in zip(teacher_before, arrays(distiller.teacher), strict=True):
        np.testing.assert_array_equal(after, before)

    # Exactly the student and its adapters train.
    trained = [*student.trainable_variables, *loss.trainable_variables]
    assert {id(v) for v in distiller.trainable_variables} == {id(v) for v in trained}
    assert bool(loss.trainable_variables) == (name in ADAPTERS)
    learned = {id(variable) for variable in loss.trainable_variables if not before_normalization(variable)}
    for variable, before, after in zip(loss.variables, adapters, arrays(loss), strict=True):
        if id(variable) in learned:
            assert (after != before).any(), variable.path
        if "paraphraser" in variable.path and name == "ft":
            np.testing.assert_array_equal(after, before)
    assert any((after != before).any() for before, after in zip(student_before, arrays(student), strict=True))

    # The file of the student has only its variables.
    export.save_keras(student, tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert len(loaded.variables) == len(student_before)
    for expected, read in zip(arrays(student), arrays(loaded), strict=True):
        np.testing.assert_array_equal(read, expected)


@every_loss
def test_sample_weights_scale_each_example(name):
    loss = make_loss(name, weight=0.5)
    distiller, batch = compiled_distiller(name, loss), random_batch(name)

    def terms(batch, sample_weight=None):
        student, teacher = (
            {name: ops.convert_to_tensor(values) for name, values in outputs.items()}
            for outputs in (batch.student, batch.teacher)
        )
        targets = Targets.parse({"labels": ops.convert_to_tensor(batch.labels), "index": batch.index}, sample_weight)
        with keras.StatelessScope():
            targets = distiller.validate_targets(targets, student)
            computed = distiller.compute_losses(targets, student, {"teacher": teacher})
        return {
            key: ops.convert_to_numpy(values) for key, values in {**computed.terms, "total": computed.total}.items()
        }

    weights = np.array([1, 0, 2, 0], "float32")
    plain, weighted = terms(batch), terms(batch, weights)
    np.testing.assert_allclose(plain["total"], plain["student_loss"] + 0.5 * plain[loss.name], rtol=1e-5)
    assert set(plain) == {"student_loss", loss.name, "distillation_loss", "total"}
    for term, values in weighted.items():
        assert (values[weights == 0] == 0).all()
        np.testing.assert_allclose(values, weights * plain[term], rtol=1e-5)
    # In training, batch normalization in an adapter mixes the examples of a batch.
    mixes = any(isinstance(layer, keras.layers.BatchNormalization) for layer in loss._flatten_layers())
    if name not in BETWEEN_EXAMPLES and not mixes:  # Examples of weight 0 do not matter.
        without = terms(replace_examples(batch, name, [1, 3]), weights)
        np.testing.assert_allclose(without["total"], weighted["total"], rtol=1e-5)


def test_tf_kd_reg_needs_no_teacher():
    student, _ = networks("tf_kd_reg")
    distiller = Distiller(None, student, losses.TfKDReg(weight=0.95), student_loss_weight=0.05)
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss())
    x, y = inputs_and_targets(distiller, random_batch("tf_kd_reg"))
    history = distiller.fit(x, y, epochs=10, batch_size=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert history["tf_kd_reg"][-1] < history["tf_kd_reg"][0]
    assert distiller.evaluate(x, y, verbose=0) == pytest.approx(
        np.mean(ops.convert_to_numpy(hard_loss()(y, student.predict(x, verbose=0)))), rel=1e-4
    )


def test_tf_kd_reg_with_a_weighting_needs_a_teacher():
    student, _ = networks("tf_kd_reg")
    distiller = Distiller(None, student, losses.TfKDReg(weighting="wsl"))
    distiller.compile(keras.optimizers.SGD(0.1), hard_loss())
    x, y = inputs_and_targets(distiller, random_batch("tf_kd_reg"))
    with pytest.raises(ValueError, match="`distiller.teacher` must be set before `fit`"):
        distiller.fit(x, y, verbose=0)

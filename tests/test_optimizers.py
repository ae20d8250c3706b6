"""SGD with coupled weight decay against PyTorch's published rule in float64; AdamW and its schedule by hand."""

import keras
import numpy as np
import pytest

from keras_wsl.optimizers import SGD, LinearWarmupDecay, bert_adamw

STEPS, DROP = 30, 15


def torch_rule(value, gradients, rates, *, momentum, weight_decay, nesterov):
    """Compute the step of https://pytorch.org/docs/stable/generated/torch.optim.SGD.html, with dampening 0."""
    value = value.astype("float64")
    for t, (gradient, rate) in enumerate(zip(gradients, rates)):
        gradient = gradient.astype("float64") + weight_decay * value
        if momentum != 0:
            buffer = momentum * buffer + gradient if t > 0 else gradient  # noqa: F821
            gradient = gradient + momentum * buffer if nesterov else buffer
        value = value - rate * gradient
    return value


def problem(seed=0):
    generator = np.random.default_rng(seed)
    shapes = [(4, 3), (3,)]
    values = [generator.normal(size=shape).astype("float32") for shape in shapes]
    gradients = [[generator.normal(size=shape).astype("float32") for _ in range(STEPS)] for shape in shapes]
    return values, gradients, [0.1] * DROP + [0.01] * (STEPS - DROP)


def run(optimizer, values, gradients, rates, start=0, variables=None):
    """Apply the gradients, and return the variables."""
    variables = variables or [keras.Variable(value, name=name) for value, name in zip(values, ("kernel", "bias"))]
    for t in range(start, start + len(rates)):
        optimizer.learning_rate = rates[t - start]
        optimizer.apply([keras.ops.convert_to_tensor(column[t]) for column in gradients], variables)
    return variables


def check(variables, expected):
    for variable, value in zip(variables, expected):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), value, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 5e-2])
@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_matches_torch(momentum, nesterov, weight_decay):
    settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    values, gradients, rates = problem()
    variables = run(SGD(0.1, **settings), values, gradients, rates)
    check(variables, [torch_rule(value, column, rates, **settings) for value, column in zip(values, gradients)])


def test_sgd_differs_from_keras():
    """The comparison above can fail: Keras's own decay is decoupled."""
    settings = {"momentum": 0.9, "nesterov": False, "weight_decay": 5e-2}
    values, gradients, rates = problem()
    variables = run(keras.optimizers.SGD(0.1, **settings), values, gradients, rates)
    expected = torch_rule(values[0], gradients[0], rates, **settings)
    assert np.abs(keras.ops.convert_to_numpy(variables[0]) - expected).max() > 0.1


def test_sgd_has_no_weight_decay_by_default():
    values, gradients, rates = problem()
    variables = run(SGD(0.1, momentum=0.9), values, gradients, rates)
    settings = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    check(variables, [torch_rule(value, column, rates, **settings) for value, column in zip(values, gradients)])


def test_sgd_does_not_decay_excluded_variables():
    settings = {"momentum": 0.9, "nesterov": False}
    values, gradients, rates = problem()
    optimizer = SGD(0.1, weight_decay=5e-2, **settings)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    variables = run(optimizer, values, gradients, rates)
    expected = [
        torch_rule(value, column, rates, weight_decay=decay, **settings)
        for value, column, decay in zip(values, gradients, (5e-2, 0.0))
    ]
    check(variables, expected)


def test_sgd_serialization_keeps_state():
    settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-2}
    values, gradients, rates = problem()
    first = SGD(0.1, **settings)
    variables = run(first, values, gradients, rates[:20])
    config = keras.saving.serialize_keras_object(first)
    assert config["registered_name"] == "keras_wsl>SGD"
    second = keras.saving.deserialize_keras_object(config)
    assert type(second) is SGD
    assert second.get_config() == first.get_config()
    second.build(variables)
    state = {}
    first.save_own_variables(state)
    second.load_own_variables(state)
    run(second, values, gradients, rates[20:], start=20, variables=variables)
    check(variables, [torch_rule(value, column, rates, **settings) for value, column in zip(values, gradients)])


def test_sgd_in_fit_matches_closed_form():
    """`fit` passes the same gradients: one linear neuron with a known gradient."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 8, 1)).astype("float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(SGD(0.1, momentum=0.9, weight_decay=0.1), "mse")
    model.fit(x, y, batch_size=8, epochs=5, verbose=0, shuffle=False)
    value, velocity = 1.0, 0.0
    for _ in range(5):
        velocity = 0.9 * velocity + float((2 * (x * value - y) * x).mean()) + 0.1 * value
        value -= 0.1 * velocity
    np.testing.assert_allclose(model.get_weights()[0], [[value]], rtol=1e-5)


def schedule_value(schedule, step):
    return float(keras.ops.convert_to_numpy(schedule(step)))


def test_linear_warmup_decay_matches_formula():
    """10 steps, 4 of them warmup: the formula by hand."""
    schedule = LinearWarmupDecay(0.8, warmup_steps=4, steps=10)
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.8 * 5 / 6, 0.8 * 4 / 6, 0.8 * 3 / 6, 0.8 * 2 / 6, 0.8 / 6, 0, 0]
    np.testing.assert_allclose([schedule_value(schedule, t) for t in range(12)], expected, rtol=1e-6, atol=1e-9)
    assert schedule_value(schedule, 10_000) == 0.0
    flat = LinearWarmupDecay(0.8, warmup_steps=0, steps=4)
    np.testing.assert_allclose([schedule_value(flat, t) for t in range(5)], [0.8, 0.6, 0.4, 0.2, 0], atol=1e-7)


def test_linear_warmup_decay_config_round_trip():
    schedule = LinearWarmupDecay(0.8, warmup_steps=4, steps=10)
    config = keras.saving.serialize_keras_object(schedule)
    assert config["registered_name"] == "keras_wsl>LinearWarmupDecay"
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == {"learning_rate": 0.8, "warmup_steps": 4, "steps": 10}
    assert schedule_value(again, 6) == schedule_value(schedule, 6)


@pytest.mark.parametrize("warmup_steps, steps", [(10, 10), (-1, 10), (0, 0)])
def test_linear_warmup_decay_refuses_invalid_steps(warmup_steps, steps):
    with pytest.raises(ValueError, match=rf"must be in \[0, {steps}\).*Received: {warmup_steps}"):
        LinearWarmupDecay(0.1, warmup_steps=warmup_steps, steps=steps)


def adamw_rule(value, gradients, rates, *, weight_decay):
    """Loshchilov and Hutter, 2019, Algorithm 2, in float64: betas 0.9 and 0.999, epsilon 1e-6."""
    value, mean, square = value.astype("float64"), 0.0, 0.0
    for t, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        gradient = gradient.astype("float64")
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        step = mean / (1 - 0.9**t) / (np.sqrt(square / (1 - 0.999**t)) + 1e-6)
        value = value - rate * (step + weight_decay * value)
    return value


def test_bert_adamw_decays_only_kernels():
    values, gradients, _ = problem()
    values, gradients = values + values[1:] * 2, gradients + gradients[1:] * 2
    names = ("kernel", "bias", "gamma", "beta")
    variables = [keras.Variable(value, name=name) for value, name in zip(values, names)]
    optimizer = bert_adamw(LinearWarmupDecay(0.1, warmup_steps=2, steps=8), weight_decay=0.3)
    for t in range(6):
        optimizer.apply([keras.ops.convert_to_tensor(column[t]) for column in gradients], variables)
    rates = [0.05, 0.1, 0.1, 0.1 * 5 / 6, 0.1 * 4 / 6, 0.1 * 3 / 6]
    for variable, value, column, decay in zip(variables, values, gradients, (0.3, 0.0, 0.0, 0.0)):
        expected = adamw_rule(value, column, rates, weight_decay=decay)
        # Keras corrects the bias of the moments outside epsilon, which then has more effect in the first steps.
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-4, atol=1e-4)


def test_bert_adamw_excludes_biases_and_normalization_of_bert():
    """Exclusion is by name: no kernel or embedding has a name that is excluded."""
    from keras_nlp.models import BertBackbone

    encoder = BertBackbone(20, num_layers=1, num_heads=2, hidden_dim=4, intermediate_dim=8, max_sequence_length=8)
    optimizer = bert_adamw(0.1)
    decayed = {v.path.split("/")[-1] for v in encoder.trainable_variables if optimizer._use_weight_decay(v)}
    spared = {v.path.split("/")[-1] for v in encoder.trainable_variables if not optimizer._use_weight_decay(v)}
    assert decayed == {"kernel", "embeddings"} and spared == {"bias", "gamma", "beta"}


@pytest.mark.parametrize("weight_decay", [None, 0.0])
def test_bert_adamw_without_weight_decay(weight_decay):
    values, gradients, rates = problem()
    optimizer = bert_adamw(0.1, weight_decay=weight_decay, global_clipnorm=1e6)
    assert optimizer.epsilon == 1e-6 and optimizer.global_clipnorm == 1e6
    variables = run(optimizer, values, gradients, rates[:3])
    for variable, value, column in zip(variables, values, gradients):
        expected = adamw_rule(value, column, rates[:3], weight_decay=0.0)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-4, atol=1e-4)

"""What the benchmarks reckon with: their statistics, their processes, and networks and steps that must be equal."""

import itertools
import pathlib
import re
import types

import keras
import numpy as np
import pytest

from benchmarks import by_hand, comparisons, growth, harness, keras_arms, limits, rewritten, speed
from benchmarks.case import TEMPERATURE, Case
from benchmarks.harness import Arm, Measured
from keras_wsl import Distiller, losses, models
from tests.common import arrays, image_network
from tests.models.test_zoo import NETWORKS, shake

TINY = Case("resnet8", "resnet8", batch_size=4, size=8, classes=5)


def _networks(case=TINY, dtype=None):
    """As `keras_arms.networks`, of four convolutions each."""
    keras.utils.set_random_seed(0)
    return [image_network("teacher", (6, 6, 6, 8)), image_network("student")]


def _turns(*seconds, idle=0.0):
    return [{"wall": s, "cpu": 2 * s, "idle_wall": 1.0, "idle_cpu": idle} for s in seconds]


def _measured(*seconds, **config):
    return Measured(_turns(*seconds), first_step_seconds=1.0, peak_mib=100.0, **config)


def test_ratios_are_of_the_same_round():
    # A machine that slows down tenfold, and one jump: the medians' ratio would be 10.
    one, other = _turns(1.1, 11.0, 1.1, 50.0, 11.0), _turns(1.0, 10.0, 1.0, 1.0, 10.0)
    assert harness.ratios(one, other, "wall") == pytest.approx((1.1, 1.1, 1.1))
    assert harness.ratios(_turns(1, 2, 3, 4, 5), _turns(*[1] * 5), "cpu") == pytest.approx((2, 3, 4))
    assert harness.ratios(_turns(3), _turns(2), "wall") == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="shorter"):
        harness.ratios(_turns(1, 2), _turns(1), "wall")


def test_a_target_is_met_by_both_clocks_and_nothing_is_rounded_in_our_favour():
    comparison = comparisons.Comparison("a against b", "a", "b", 1.03)
    row = comparisons.compared(comparison, {"a": _measured(1.0301), "b": _measured(1.0)})
    assert row["met"] == "no" and speed.shown({**row, "pair": "x:y"})["wall ratio (quartiles)"].startswith("1.031 ")
    assert comparisons.compared(comparison, {"a": _measured(1.03), "b": _measured(1.0)})["met"] == "yes"
    slow_cpu = Measured([{"wall": 1.0, "cpu": 3.0}])
    assert comparisons.compared(comparison, {"a": slow_cpu, "b": _measured(1.0)})["met"] == "no"
    assert [speed.up(value) for value in (1.0, 0.65, 0.6500001)] == ["1.000", "0.650", "0.651"]


def test_an_arm_that_did_not_run_is_named():
    measured = {"a": Measured(failed="ImportError: no module", missing=True), "b": _measured(1.0)}
    row = comparisons.compared(comparisons.Comparison("a against b", "a", "b", 1.0), measured)
    assert "no module" in row["note"] and "met" not in row
    assert [row["arm"] for row in comparisons.arm_rows(measured)] == ["b"]


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_every_comparison_has_its_arms(backend):
    for group, wanted in comparisons.COMPARISONS.items():
        arms = {arm.name for arm in comparisons.arms(group, TINY, "tensorflow")}
        assert {name for comparison in wanted for name in (comparison.arm, comparison.reference)} <= arms
        for arm in comparisons.arms(group, TINY, backend):
            module, _, name = arm.make.partition(":")
            assert module != "benchmarks.keras_arms" or callable(getattr(keras_arms, name))


def test_page_and_single_numbers():
    measured = {arm.name: _measured(1.0, 1.1) for group in comparisons.ARMS.values() for arm in group}
    measured["Keras's, KD"].peak_mib = 99.9
    rows = [
        {"pair": "resnet8:resnet8", "group": group, **row}
        for group in comparisons.ARMS
        for row in comparisons.rows(group, "resnet8:resnet8", TINY, measured)
    ]
    memory = next(row for row in rows if row["comparison"].startswith("peak memory"))
    assert memory["met"] == "no" and memory["value"] > 1
    environment = {"device": "a", "backend": "b", "python": "3", "versions": {"keras": "3"}, "commit": "c"}
    text = speed.page(rows, comparisons.arm_rows(measured), environment, "How.")
    assert text.count("\n## ") == 4 and "| resnet8 to resnet8 | jit_compile |  | 1.000 (1.000 to 1.000) |" in text


def _arm(name, make=None, **config):
    path = str(pathlib.Path(__file__).parents[2])
    return Arm(name, f"tests.train.arm_child:{make or name}", config, {"PYTHONPATH": path}, TINY)


def test_arms_take_turns():
    said = []
    arms = [_arm("slow", "sleeping", seconds=0.05), _arm("quick", "sleeping", seconds=0.0), _arm("in_tens")]
    arms += [_arm("without_module"), _arm("breaking"), _arm("dying")]
    measured = harness.measure(arms, rounds=3, steps=2, say=said.append)
    assert [len(measured[name].turns) for name in ("slow", "quick", "in_tens", "breaking")] == [3, 3, 3, 0]
    assert 0.05 <= measured["slow"].median("wall") and measured["slow"].median("cpu") < 0.03
    assert 0.002 <= measured["in_tens"].median("wall") < 0.02  # Of each of the ten that it did.
    assert measured["slow"].first_step_seconds > 0.05 and measured["slow"].peak_mib > 1
    assert measured["slow"].idle_share() < 0.5
    assert measured["without_module"].missing and "keras_wsl_of_the_future" in measured["without_module"].failed
    assert measured["breaking"].failed == "ValueError: no more" and not measured["breaking"].missing
    assert "ended without an answer" in measured["dying"].failed
    assert any("breaking: ValueError: no more" in line for line in said)


@pytest.mark.parametrize("name, left", [("resnet20", 0), ("wrn_16_2", 6)])
def test_folding_changes_nothing(name, left):
    model = shake(models.build(name, 5, input_shape=(8, 8, 3)))
    before = arrays(model)
    twin = rewritten.folded(model)
    assert sum(isinstance(layer, keras.layers.BatchNormalization) for layer in twin.layers) == left
    x = TINY.arrays()[0][0]
    expected, found = (keras.ops.convert_to_numpy(network(x, training=False)) for network in (model, twin))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert all(np.array_equal(one, other) for one, other in zip(before, arrays(model)))


@pytest.mark.parametrize("fused", [False, True])
def test_step_by_hand_is_the_distillers(fused):
    backend = keras.backend.backend()
    if backend == "torch" or (fused and backend == "jax"):
        pytest.skip("There is no such step by hand.")
    case = Case(batch_size=16, size=8, classes=5)
    ours = _networks()
    distiller = keras_arms.compiled(Distiller(*ours, losses.WSL()))
    distiller.fit(case.batches(), steps_per_epoch=3, shuffle=False, verbose=0)
    teacher, student = _networks()
    before = arrays(student)
    step = (
        by_hand.tensorflow_step(teacher, student, fused)
        if backend == "tensorflow"
        else by_hand.JaxTrainer(teacher, student)
    )
    for batch in itertools.islice(case.batches(), 3):
        step(*batch)
    if backend == "jax":
        step.write_back()
    assert np.abs(before[0] - arrays(student)[0]).max() > 1e-4
    for one, other in zip(arrays(ours[1]), arrays(student)):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_arms_tell_how_many_steps_they_did(monkeypatch):
    monkeypatch.setattr(keras_arms, "networks", _networks)
    assert keras_arms.evaluate(TINY, whole=True)(2) == keras_arms.EVALUATED
    assert keras_arms.pipeline(TINY, examples=40)(2) == 2 * keras_arms.REPEAT
    asked = []
    model = types.SimpleNamespace(fit=lambda batches, steps_per_epoch, **config: asked.append(steps_per_epoch))
    assert keras_arms.fitted(model, TINY.batches, at_once=8)(9) == 16 and asked == [16]


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_multiply_adds(name):
    assert limits.macs(models.build(name)) == NETWORKS[name]["macs_32x32"]
    assert limits.least_seconds(100, 20, 320) == 1.0


def test_growth_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "TEACHERS", ("resnet8",))
    rows = [
        {"series": series, "point": label, "x": x, "batch_size": own.batch_size, **growth.times(_measured(0.5, 0.6))}
        for series, some in growth.points(TINY).items()
        for x, label, own, _ in some
    ]
    assert rows[0]["wall_median"] == pytest.approx(550) and rows[0]["cpu_median"] == pytest.approx(1100)
    growth.plot(rows, tmp_path / "growth.png", TINY)
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["wrn_40_2", "wrn_16_2", "wrn_16_1", "resnet56", "resnet20", "resnet8"])
def test_torch_networks_have_as_many_parameters(name):
    pytest.importorskip("torch")
    from benchmarks import torch_networks

    network = torch_networks.build(name)
    assert sum(parameter.numel() for parameter in network.parameters()) == NETWORKS[name]["params"]


def _copied(source, name):
    """The PyTorch network of that name with a Keras network's weights."""
    import torch

    from benchmarks import torch_networks

    target = torch_networks.build(name, 5)
    modules = dict(target.named_modules())
    for layer in source.layers:
        if not layer.weights:
            continue
        # The first normalization of a stage is named after the one before in Keras's wide networks.
        before = {f"block{stage}_preact": f"block{stage + 1}_unit0.bn1" for stage in (1, 2)}
        module = modules[before.get(layer.name) or re.sub(r"(_unit\d+)_", r"\1.", layer.name)]
        values = [torch.from_numpy(np.array(keras.ops.convert_to_numpy(weight))) for weight in layer.weights]
        if isinstance(layer, keras.layers.BatchNormalization):
            places = (module.weight, module.bias, module.running_mean, module.running_var)
        else:
            axes = (3, 2, 0, 1) if values[0].ndim == 4 else (1, 0)
            values[0] = values[0].permute(axes)
            places = (module.weight, module.bias)
        with torch.no_grad():
            for parameter, value in zip(places, values):
                parameter.copy_(value)
    return target


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_torch_step_has_our_loss(name):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_arms

    torch.set_num_threads(1)  # On a machine that others use, more would wait for each other.
    x, labels = (values[0] for values in TINY.arrays())
    ours = [shake(models.build(name, 5, input_shape=(8, 8, 3)), seed) for seed in (1, 2)]
    theirs = [_copied(model, name) for model in ours]
    theirs[0].eval()
    teacher, student = (
        keras.ops.convert_to_numpy(model(x, training=training)) for model, training in zip(ours, (False, True))
    )
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    logits = [network(images) for network in theirs]
    np.testing.assert_allclose(logits[0].detach(), teacher, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(logits[1].detach(), student, rtol=1e-3, atol=1e-4)
    loss = losses.WSL(temperature=TEMPERATURE, objective="cross_entropy")
    rows = loss(labels, {"logits": keras.ops.array(student)}, {"logits": keras.ops.array(teacher)})
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, student)
    expected = float(hard + loss.weight * keras.ops.mean(rows))
    update = torch_arms.optimizer(theirs[1])
    logged = torch_arms.step(*theirs, update, images, torch.from_numpy(labels).long())
    assert logged[0] == pytest.approx(expected, rel=1e-3)

"""Values and gradients of each loss against its original code. Its maps are NCHW; ours are channels-last."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_wsl import losses
from keras_wsl.adapters import MemoryBank
from keras_wsl.losses.feature.overhaul import margins
from keras_wsl.losses.logit.dist import inter_class_loss, intra_class_loss
from keras_wsl.losses.logit.dkd import non_target_class_loss, target_class_loss
from keras_wsl.losses.logit.knowledge_adjustment import probability_shift
from keras_wsl.losses.logit.masked_kd import masked_soft_label_loss
from keras_wsl.losses.logit.mlkd import batch_level_loss, class_level_loss
from keras_wsl.losses.logit.tf_kd import virtual_teacher_loss
from keras_wsl.ops import standardize
from tests.common import golden, gradient

CASES = golden("logits")["cases"]
FEATURES = golden("features")
VECTORS = {name: np.array(value, "float32") for name, value in FEATURES["embeddings"]["in"].items()}
MAPS = {
    name: np.array(value, "float32").transpose(0, 2, 3, 1) for name, value in FEATURES["feature_maps"]["in"].items()
}


def _mean(values):
    return float(np.mean(ops.convert_to_numpy(values), dtype="float64"))


@pytest.fixture(params=sorted(CASES))
def case(request):
    case = CASES[request.param]
    arrays = (np.array(case["labels"], "int32"), *(np.array(case[f"logits_{x}"], "float32") for x in "st"))
    return *arrays, case["out"]


@pytest.mark.parametrize(
    "beta, temperature, key", [(8, 4, "beta=8,tau=4"), (2, 4, "beta=2,tau=4"), (0.5, 1, "beta=0.5,tau=1")]
)
def test_dkd_matches_reference(case, beta, temperature, key):
    labels, student, teacher, out = case
    expected = out["dkd"][f"alpha=1,{key}"]
    labels = ops.convert_to_tensor(labels)
    pair = (ops.convert_to_tensor(student), ops.convert_to_tensor(teacher))
    assert _mean(target_class_loss(labels, *pair, temperature=temperature)) == pytest.approx(expected["tckd"], rel=1e-5)
    assert _mean(non_target_class_loss(labels, *pair, temperature=temperature)) == pytest.approx(
        expected["nckd"], rel=1e-5
    )
    loss = losses.DKD(temperature=temperature, alpha=1.0, beta=beta)
    rows = loss(labels, {"logits": student}, {"logits": teacher})
    assert _mean(rows) == pytest.approx(expected["total"], rel=1e-5)


@pytest.mark.parametrize("temperature", [1, 4])
def test_dist_matches_reference(case, temperature):
    labels, student, teacher, out = case
    expected = out["dist"][f"tau={temperature}"]
    assert _mean(inter_class_loss(student, teacher, temperature=temperature)) == pytest.approx(
        expected["inter"], rel=1e-5
    )
    assert _mean(intra_class_loss(student, teacher, temperature=temperature)) == pytest.approx(
        expected["intra"], rel=1e-5
    )
    rows = losses.DIST(temperature=temperature, beta=1.0, gamma=1.0)(labels, {"logits": student}, {"logits": teacher})
    assert _mean(rows) == pytest.approx(expected["total_beta1_gamma1"], rel=1e-5)


def test_lskd_matches_reference(case):
    labels, student, teacher, out = case
    expected = out["lskd"]
    np.testing.assert_allclose(
        ops.convert_to_numpy(standardize(ops.convert_to_tensor(student))),
        expected["standardized_student_ddof1"],
        atol=1e-5,
    )
    ends = {"logits": student}, {"logits": teacher}
    assert _mean(losses.LSKD()(labels, *ends)) == pytest.approx(expected["kd_tau2"], rel=1e-5)
    rows = losses.DKD(standardize=True, temperature=2.0, alpha=9.0, beta=72.0)(labels, *ends)
    assert _mean(rows) == pytest.approx(expected["dkd_alpha9_beta72_tau2"], rel=1e-5)


@pytest.mark.parametrize("temperature", [2, 4])
def test_mlkd_matches_reference(case, temperature):
    labels, student, teacher, out = case
    expected = out["mlkd"][f"tau={temperature}"]
    pair = (ops.convert_to_tensor(student), ops.convert_to_tensor(teacher))
    classes, batch = (_mean(level(*pair, temperature=temperature)) for level in (class_level_loss, batch_level_loss))
    assert classes == pytest.approx(expected["cc"], rel=1e-5)
    assert batch == pytest.approx(expected["bc"], rel=1e-5)
    rows = losses.MLKD(temperatures=[temperature])(labels, {"logits": student}, {"logits": teacher})
    assert _mean(rows) == pytest.approx(expected["kd"] + 0.5 * expected["cc"] + 0.5 * expected["bc"], rel=1e-5)


def test_mlkd_has_the_gradient_of_the_norm(case):
    _, student, teacher, _ = case

    def norm(z):
        q, p = ops.softmax(z / 4.0), ops.softmax(ops.convert_to_tensor(teacher) / 4.0)
        gap = ops.matmul(ops.transpose(q), q) - ops.matmul(ops.transpose(p), p)
        return ops.sum(gap**2) / z.shape[-1]

    ours = gradient(lambda z: ops.mean(class_level_loss(z, ops.convert_to_tensor(teacher), temperature=4.0)), student)
    np.testing.assert_allclose(ours, gradient(norm, student), atol=1e-6)


def test_rld_matches_reference(case):
    labels, student, teacher, out = case
    rows = losses.RLD(alpha=1.0, beta=8.0)(labels, {"logits": student}, {"logits": teacher})
    assert _mean(rows) == pytest.approx(out["rld_alpha1_beta8_tau4_alphaT4"], rel=1e-5)


def test_tf_kd_matches_reference(case):
    labels, student, teacher, out = case
    ends = {"logits": student}, {"logits": teacher}
    hard = out["label_smoothing_uniform_eps0.1"], np.mean(out["ce_student"])
    loss = losses.TfKD(temperature=20.0, weight=0.95)
    total = 0.05 * hard[1] + loss.weight * _mean(loss(labels, *ends))
    assert total == pytest.approx(out["tfkd_self_alpha0.95_T20_mult1"], rel=1e-5)
    loss = losses.TfKDReg(virtual_temperature=20.0, weight=0.1 * 100)
    total = 0.9 * hard[1] + loss.weight * _mean(loss(labels, *ends))
    assert total == pytest.approx(out["tfkd_reg_alpha0.1_T20_mult100"], rel=1e-5)
    assert _mean(virtual_teacher_loss(labels, student)) >= 0


def test_label_smoothing_matches_reference(case):
    labels, student, _, out = case
    classes = student.shape[-1]
    uniform = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    one_hot = np.eye(classes, dtype="float32")[labels]
    assert float(uniform(one_hot, student)) == pytest.approx(out["label_smoothing_uniform_eps0.1"], rel=1e-5)
    # Tf-KD has epsilon / (C - 1) for the other classes, as uniform smoothing by epsilon C / (C - 1).
    tf_kd = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1 * classes / (classes - 1))
    assert float(tf_kd(one_hot, student)) == pytest.approx(out["label_smoothing_tfkd_eps0.1"], rel=1e-5)


def test_kd_matches_pkd_reference(case):
    labels, student, teacher, out = case
    _, kd, hard = out["pkd_kd_T5_alpha0.7"]
    loss = losses.KD(temperature=5.0, weight=0.7, divide_by_num_classes=True)
    value = _mean(loss(labels, {"logits": student}, {"logits": teacher}))
    assert value == pytest.approx(kd, rel=1e-5)
    assert 0.3 * hard + loss.weight * value == pytest.approx(out["pkd_kd_T5_alpha0.7"][0], rel=1e-5)


def test_masked_kd_matches_reference(case):
    labels, student, teacher, out = case
    labels = ops.convert_to_tensor(labels)
    expected = 16 * np.array(out["formula"]["masked_kd_literal_tau4_per_sample_no_tau2"])
    ends = {"logits": student}, {"logits": teacher}
    for reading in ("literal", "stop_gradient"):
        np.testing.assert_allclose(
            ops.convert_to_numpy(losses.MaskedKD(reading=reading)(labels, *ends)), expected, rtol=1e-5
        )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(losses.MaskedKD(reading="renormalized")(labels, *ends)),
        ops.convert_to_numpy(
            non_target_class_loss(labels, ops.convert_to_tensor(student), ops.convert_to_tensor(teacher))
        ),
    )


def test_masked_kd_readings_differ_in_the_gradient_of_the_label(case):
    labels, student, teacher, _ = case
    at_label = np.eye(student.shape[1], dtype=bool)[labels]
    z = np.float64(student) / 4
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p = np.exp(np.float64(teacher) / 4)
    p /= p.sum(1, keepdims=True)
    rest = 1 - p[at_label]

    def slope(reading):
        def total(z):
            return ops.sum(
                masked_soft_label_loss(
                    ops.convert_to_tensor(labels), z, ops.convert_to_tensor(teacher), reading=reading
                )
            )

        return gradient(total, student)[at_label]

    np.testing.assert_allclose(slope("literal"), 4 * q[at_label] * rest, rtol=1e-4)
    np.testing.assert_array_equal(slope("stop_gradient"), 0)
    np.testing.assert_array_equal(slope("renormalized"), 0)


def test_knowledge_adjustment_matches_reference(case):
    labels, student, teacher, out = case
    labels = ops.convert_to_tensor(labels)
    shifted = probability_shift(labels, ops.convert_to_tensor(teacher))
    expected = out["formula"]
    np.testing.assert_allclose(ops.convert_to_numpy(shifted), expected["probability_shift_teacher_logits"], rtol=1e-6)
    rows = losses.KnowledgeAdjustment()(labels, {"logits": student}, {"logits": teacher})
    assert _mean(rows) == pytest.approx(expected["probability_shift_kl_tau4_batchmean_x_tau2"], rel=1e-5)
    rows = losses.KD(weighting="teacher_correct")(labels, {"logits": student}, {"logits": teacher})
    assert _mean(rows) == pytest.approx(expected["teacher_correct_kd_tau4_mean_over_batch"], rel=1e-5)


def _compare(loss, student, teacher, expected, *, rel=1e-5, layout=None):
    """Compare value and gradient of a loss on one pair of outputs."""
    student, teacher = ([x] if isinstance(x, np.ndarray) else x for x in (student, teacher))
    labels = np.zeros(len(student[0]), "int32")
    logits = np.zeros((len(student[0]), 3), "float32")

    def total(values):
        ends = [dict(zip(names, arrays)) for names, arrays in zip(_names(loss), (values, teacher))]
        return ops.mean(loss(labels, *({"logits": logits, **end} for end in ends)))

    value = total(student)
    assert float(value) == pytest.approx(expected["loss"], rel=rel)
    slope = gradient(lambda x: total([x, *student[1:]]), student[0])
    if slope.ndim == 4:
        slope = slope.transpose(0, 3, 1, 2)
    expected = np.array(expected["grad_student"])
    np.testing.assert_allclose(slope, expected, atol=2e-5 * max(np.abs(expected).max(), 1e-2), rtol=2e-4)


def _names(loss):
    return loss.student_layers, loss.teacher_layers


@pytest.mark.parametrize(
    "key, make",
    [
        ("rkd_distance", lambda: losses.RKD(distance_weight=1.0, angle_weight=0.0)),
        ("rkd_angle", lambda: losses.RKD(distance_weight=0.0, angle_weight=1.0)),
        ("rkd_25d_50a", losses.RKD),
        ("pkt", losses.PKT),
    ],
)
def test_losses_on_embeddings_match_reference(key, make):
    _compare(make(), VECTORS["f_s"], VECTORS["f_t_wide"], FEATURES["embeddings"]["out"][key])


def _without(loss, *adapters):
    """Replace adapters by the identity, as in the golden values."""
    for name in adapters:
        object.__setattr__(loss, name, [_same] if name == "regressors" else _same)
    loss.built = True
    return loss


def _same(x):
    return x


def test_cc_matches_reference():
    loss = _without(losses.CC(), "student_embedding", "teacher_embedding")
    _compare(loss, VECTORS["f_s"], VECTORS["f_t"], FEATURES["embeddings"]["out"]["cc"])


def test_fitnet_matches_reference():
    loss = _without(losses.FitNet(), "regressors")
    _compare(loss, VECTORS["f_s"], VECTORS["f_t"], FEATURES["embeddings"]["out"]["hint_mse"])


def test_weighted_rkd_matches_reference():
    expected = FEATURES["embeddings"]["out"]["wsl_rkd_A3_interpretation"]
    weights = np.array(expected["weights"], "float32")
    logits = np.zeros((4, 3), "float32")
    for distance, angle, key in ((1.0, 0.0, "distance"), (0.0, 1.0, "angle"), (25.0, 50.0, "total_25d_50a")):
        loss = losses.RKD(
            distance_weight=distance, angle_weight=angle, weighting=lambda *args: ops.convert_to_tensor(weights)
        )
        ends = {"logits": logits, "pooled": VECTORS["f_s"]}, {"logits": logits, "pooled": VECTORS["f_t_wide"]}
        assert _mean(loss(np.zeros(4, "int32"), *ends)) == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.parametrize(
    "key, make, pair",
    [
        ("at_s1_t1", lambda: losses.AT(layers=["a"]), ("s1", "t1")),
        ("at_s2_t2", lambda: losses.AT(layers=["a"]), ("s2", "t2")),
        ("nst_s1_t1", lambda: losses.NST(layers=["a"]), ("s1", "t1")),
        ("nst_s2_t2", lambda: losses.NST(layers=["a"]), ("s2", "t2")),
        ("sp_s1_t1", losses.SP, ("s1", "t1")),
        ("sp_s2_t2", losses.SP, ("s2", "t2")),
        ("factor_transfer_s1_t1", lambda: _without(losses.FT(), "translator", "paraphraser"), ("s1", "t1")),
        ("ab_two_maps_w0.5_1", lambda: losses.AB(layers=["a", "b"]), (("s2", "s3"), ("t2", "t3"))),
        ("fsp_s2s3_t2t3", lambda: losses.FSP(layers=["a", "b"]), (("s2", "s3"), ("t2", "t3"))),
    ],
)
def test_losses_on_feature_maps_match_reference(key, make, pair):
    student, teacher = ([MAPS[name] for name in names] if isinstance(names, tuple) else MAPS[names] for names in pair)
    _compare(make(), student, teacher, FEATURES["feature_maps"]["out"][key])


def _mapped(function):
    """Return a loss that computes this function of one pair of maps."""
    loss = losses.FeatureLoss(layers=["a"])
    loss.per_example = lambda labels, student, teacher: function(student["a"], teacher["a"])
    return loss


def test_overhaul_matches_reference():
    from keras_wsl.losses.feature.overhaul import partial_l2_loss

    expected = dict(FEATURES["feature_maps"]["out"]["ofd_official_sum_s2_t2"])
    margin = np.array(expected["margin"], "float32")
    loss = _mapped(lambda s, t: partial_l2_loss(s, t, ops.convert_to_tensor(margin)) * len(MAPS["s2"]))
    _compare(loss, MAPS["s2"], MAPS["t2"], expected)
    known = FEATURES["feature_maps"]["out"]["ofd_margin_from_bn"]
    np.testing.assert_allclose(margins(known["gamma"], known["beta"]), known["margin"], rtol=1e-6)


@pytest.mark.parametrize("key, pair", [("reviewkd_hcl_s2_t2", ("s2", "t2")), ("reviewkd_hcl_s8_t8", ("s8", "t8"))])
def test_reviewkd_matches_reference(key, pair):
    from keras_wsl.losses.feature.reviewkd import hierarchical_context_loss

    maps = (MAPS[name] for name in pair)
    _compare(_mapped(hierarchical_context_loss), *maps, FEATURES["feature_maps"]["out"][key])


@pytest.mark.parametrize(
    "key, size, normalize", [("catkd_res2_nonorm_s8_t8", 2, False), ("catkd_res4_norm_s8_t8", 4, True)]
)
def test_catkd_matches_reference(key, size, normalize):
    from keras_wsl.losses.feature.catkd import class_map_loss

    loss = _mapped(lambda s, t: class_map_loss(s, t, pool_size=size, normalize=normalize))
    _compare(loss, MAPS["s8"], MAPS["t8"], FEATURES["feature_maps"]["out"][key])


def test_vid_matches_reference():
    expected = FEATURES["feature_maps"]["out"]["vid_s1_t1"]
    loss = losses.VID(layers=["a"])
    loss.build((4,), {"a": MAPS["s1"].shape}, {"a": MAPS["t1"].shape})
    loss.built = True
    np.testing.assert_allclose(ops.convert_to_numpy(loss.scales[0]), expected["log_scale_init"], rtol=1e-6)
    for layer, weight in zip(loss.regressors[0], expected["regressor_weights_out_in"]):
        layer.kernel.assign(np.array(weight, "float32").T[None, None])
    _compare(loss, MAPS["s1"], MAPS["t1"], expected)


class TestCRD:
    """Two calls on the same batch update the memories and not the partition constants."""

    def _loss(self):
        inputs = FEATURES["crd"]["in"]
        # Each of the twelve examples has its own class, so that all pairs of the reference are negatives.
        loss = losses.CRD(np.arange(inputs["n_data"]), negatives=inputs["K"], dimensions=4)
        vectors = [np.array(inputs[name], "float32") for name in ("f_s", "f_t")]
        loss.build((4,), *({"pooled": x.shape} for x in vectors))
        loss.built = True
        for layer, letter in ((loss.student_embedding, "s"), (loss.teacher_embedding, "t")):
            layer.kernel.assign(np.array(inputs[f"W_{letter}"], "float32").T)
            layer.bias.assign(np.array(inputs[f"b_{letter}"], "float32"))
        loss.student_memory.features.assign(np.array(inputs["memory_v1_student"], "float32"))
        loss.teacher_memory.features.assign(np.array(inputs["memory_v2_teacher"], "float32"))
        pairs = np.array(inputs["contrast_idx_first_is_positive"], "int32")

        def call(student):
            args = [ops.convert_to_tensor(x) for x in (vectors[1], np.array(inputs["idx"], "int32"), pairs)]
            return loss.contrast(
                ops.convert_to_tensor(student), *args, ops.convert_to_tensor(np.ones_like(pairs, bool))
            )

        return loss, vectors[0], call

    def test_contrast_matches_reference_in_two_calls(self):
        loss, student, call = self._loss()
        first, second = FEATURES["crd"]["out"]["first_call"], FEATURES["crd"]["out"]["second_call_same_batch_loss"]
        assert _mean(call(student)) == pytest.approx(first["loss"], rel=1e-5)
        # Z_v1 is the constant of the student's vectors.
        np.testing.assert_allclose(
            ops.convert_to_numpy(loss.partition_constants), [first["Z_v1"], first["Z_v2"]], rtol=1e-4
        )
        np.testing.assert_allclose(
            ops.convert_to_numpy(loss.student_memory.features), first["memory_v1_after"], atol=1e-6
        )
        np.testing.assert_allclose(
            ops.convert_to_numpy(loss.teacher_memory.features), first["memory_v2_after"], atol=1e-6
        )
        assert _mean(call(student)) == pytest.approx(second, rel=1e-5)

    def test_contrast_gradient_matches_reference(self):
        _, student, call = self._loss()
        with keras.StatelessScope():  # Does not update the memories.
            slope = gradient(lambda x: ops.mean(call(x)), student)
        np.testing.assert_allclose(slope, FEATURES["crd"]["out"]["first_call"]["grad_f_s"], rtol=1e-3, atol=1e-4)

    def test_memory_bank_starts_in_the_range_of_the_reference(self):
        rows = ops.convert_to_numpy(MemoryBank(1000, 12).features)
        assert 0.45 < np.abs(rows).max() <= 0.5

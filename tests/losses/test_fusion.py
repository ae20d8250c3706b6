"""Attention fusion of ReviewKD: the output for the next, shallower map."""

import numpy as np
from keras import ops

from keras_wsl.adapters import AttentionFusion


def test_what_is_handed_on_has_the_teachers_size():
    fusion = AttentionFusion(3, (None, 2, 2, 5), has_deeper_input=False)
    maps = np.random.default_rng(0).normal(size=(2, 4, 4, 6)).astype("float32")
    fusion.build(maps.shape)
    compared, deeper_output = fusion(maps)
    assert tuple(compared.shape) == (2, 2, 2, 5)
    entered = ops.convert_to_numpy(fusion.input_normalization(fusion.input_projection(maps)))
    np.testing.assert_allclose(ops.convert_to_numpy(deeper_output), entered[:, ::2, ::2], rtol=1e-6)


def test_fusing_is_a_weighted_sum():
    fusion = AttentionFusion(3, (None, 4, 4, 5), has_deeper_input=True)
    generator = np.random.default_rng(1)
    maps, deeper = (generator.normal(size=shape).astype("float32") for shape in ((2, 4, 4, 6), (2, 2, 2, 3)))
    fusion.build(maps.shape)
    _, deeper_output = fusion(maps, deeper)
    entered = ops.convert_to_numpy(fusion.input_normalization(fusion.input_projection(maps)))
    upsampled = deeper.repeat(2, axis=1).repeat(2, axis=2)
    kernel, bias = (ops.convert_to_numpy(variable) for variable in fusion.attention.weights)
    weights = 1 / (1 + np.exp(-(np.concatenate([entered, upsampled], -1) @ kernel[0, 0] + bias)))
    np.testing.assert_allclose(
        ops.convert_to_numpy(deeper_output),
        entered * weights[..., :1] + upsampled * weights[..., 1:],
        rtol=1e-5,
        atol=1e-6,
    )

"""Logit standardization: Sun et al., CVPR 2024, https://arxiv.org/abs/2403.01427."""

import keras

from keras_wsl.losses.logit.kd import KD


@keras.saving.register_keras_serializable("keras_wsl")
class LSKD(KD):
    r"""`KD` of standardized logits: what teacher and student share is their shape, and not their scale.

    $$\ell_i = \tau^2 \mathrm{KL}(\mathrm{softmax}(Z(z_t) / \tau) \Vert \mathrm{softmax}(Z(z_s) / \tau)), \qquad
      Z(z) = \frac{z - \bar z}{s(z) + 10^{-7}}$$

    $s$ is the standard deviation over the classes, with $n - 1$. Published with 0.1 of the cross-entropy. Other losses
    of this package standardize too: `DKD(standardize=True, temperature=2.0, alpha=9.0, beta=72.0)`.

    Args:
        temperature: Positive float, $\tau$, the paper's base temperature.
        weight: Float, the factor of the mean in the total.
        **kwargs: As of `KD`.
    """

    def __init__(self, *, temperature=2.0, weight=9.0, standardize=True, **kwargs):
        super().__init__(temperature=temperature, weight=weight, standardize=standardize, **kwargs)

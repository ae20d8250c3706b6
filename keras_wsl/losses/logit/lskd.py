"""Logit standardization: Sun et al., CVPR 2024, https://arxiv.org/abs/2403.01427."""

import keras

from keras_wsl.losses.logit.kd import KD


@keras.saving.register_keras_serializable("keras_wsl")
class LSKD(KD):
    r"""`KD` of standardized logits, whose scale does not matter.

    $$\ell_i = \tau^2 \mathrm{KL}(\mathrm{softmax}(Z(z_t) / \tau) \Vert \mathrm{softmax}(Z(z_s) / \tau)), \qquad
      Z(z) = \frac{z - \bar z}{s(z) + 10^{-7}}$$

    $s$ is the standard deviation over the classes, with the divisor $n - 1$. Published with `student_loss_weight=0.1`.
    Other losses can standardize too: `DKD(standardize=True, temperature=2.0, alpha=9.0, beta=72.0)`.

    Args:
        temperature: Positive float, $\tau$, the base temperature of the paper.
        **kwargs: See `KD`.
    """

    def __init__(self, *, temperature=2.0, weight=9.0, standardize=True, **kwargs):
        super().__init__(temperature=temperature, weight=weight, standardize=standardize, **kwargs)

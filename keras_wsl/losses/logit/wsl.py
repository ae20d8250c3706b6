"""Weighted soft labels: Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.00650."""

import keras

from keras_wsl.losses.logit.kd import KD


@keras.saving.register_keras_serializable("keras_wsl")
class WSL(KD):
    r"""Weighted soft labels: small weights if the student fits the label better than the teacher.

    $$\ell_i = \omega_i \tau^2 \mathrm{KL}(p^\tau_i \Vert q^\tau_i), \qquad
      \omega_i = 1 - \exp(-\mathrm{CE}^s_i / \mathrm{CE}^t_i)$$

    `KD` with the weighting `"wsl"`. The total of the paper, $\mathrm{CE} + \alpha L$, has $\tau = 4$ and
    $\alpha = 2.25$ on CIFAR-100, $\tau = 2$ and $\alpha = 2.5$ on ImageNet. The paper and its code use
    `objective="cross_entropy"`: its gradient is equal, but its value varies with $\omega$ and has little meaning.

    Args:
        temperature: Positive float, $\tau$.
        weight: Float, $\alpha$.
        weighting: Another one is possible, such as `"wsl_sigmoid"`.
        **kwargs: See `KD`.
    """

    def __init__(self, *, temperature=4.0, weight=2.25, weighting="wsl", **kwargs):
        super().__init__(temperature=temperature, weight=weight, weighting=weighting, **kwargs)

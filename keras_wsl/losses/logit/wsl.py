"""Weighted soft labels: Zhou et al., ICLR 2021, https://arxiv.org/abs/2102.00650."""

import keras

from keras_wsl.losses.logit.kd import KD


@keras.saving.register_keras_serializable("keras_wsl")
class WSL(KD):
    r"""Weighted soft labels: distillation that fades where the student fits the label better than its teacher.

    $$\ell_i = \omega_i \tau^2 \mathrm{KL}(p^\tau_i \Vert q^\tau_i), \qquad
      \omega_i = 1 - \exp(-\mathrm{CE}^s_i / \mathrm{CE}^t_i)$$

    `KD` with the weighting `"wsl"`. The total of the paper, $\mathrm{CE} + \alpha L$, has $\tau = 4$ and
    $\alpha = 2.25$ on CIFAR-100, $\tau = 2$ and $\alpha = 2.5$ on ImageNet. The paper and its code write the
    cross-entropy in place of the divergence: the gradient is the same, but that value moves with $\omega$ and says
    little (`form`).

    Args:
        temperature: Positive float, $\tau$.
        weight: Float, $\alpha$.
        form: `"kl"` or `"cross_entropy"`.
        **kwargs: As of `KD`. `weighting` may be another one, such as `"wsl_sigmoid"`.
    """

    def __init__(self, *, temperature=4.0, weight=2.25, weighting="wsl", **kwargs):
        super().__init__(temperature=temperature, weight=weight, weighting=weighting, **kwargs)

"""What a method's name stands for: its loss, its published weight, and the share of the labels."""

from typing import NamedTuple

from keras_wsl import losses


class Recipe(NamedTuple):
    """A method as its numbers were published."""

    loss: str | None
    student_loss_weight: float = 1.0


METHODS = {
    "none": Recipe(None),
    "kd": Recipe("kd", student_loss_weight=0.1),
    "wsl": Recipe("wsl"),
}


def build(method, *, temperature, alpha=None):
    """The distillation losses of a method, and the weight of the labels' loss beside them.

    Args:
        method: One of `METHODS`.
        temperature: Positive float.
        alpha: Float, the weight of the loss, or `None` for the published one.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"There is no method {method!r}. Expected one of {sorted(METHODS)}.")
    recipe = METHODS[method]
    if recipe.loss is None:
        return [], recipe.student_loss_weight
    weight = {} if alpha is None else {"weight": alpha}
    return [losses.get(recipe.loss, temperature=temperature, **weight)], recipe.student_loss_weight

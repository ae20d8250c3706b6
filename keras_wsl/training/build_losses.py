"""The distillation losses of a run, from its recipe and settings."""

import ast
import inspect

from keras_wsl import losses, weighting
from keras_wsl.training.recipes import get_extra_recipes, get_recipe

MAX_CHARACTERS = 200  # Of a value in --loss_kwargs.
MAX_NUMBER = 2**53  # In --loss_kwargs.


def build_main_losses(config, train, teacher=None, student=None):
    """Return the distillation losses of a run's main stage: the method's and those of `--extra_losses`.

    Args:
        config: `Config`.
        train: Training data set.
        teacher: Teacher network, whose depth selects the compared layers. If `None`, the default layers of the losses
            are used.
        student: Student network, likewise.

    Returns:
        List of losses, empty for a method without a loss in the main stage.

    Raises:
        ValueError: If a setting does not fit the method.
    """
    recipe = get_recipe(config)
    if recipe.loss is None:
        names = ("alpha", "temperature", "loss_kwargs") if recipe.stage is None else ()
        unused = [name for name in ("extra_losses", *names) if getattr(config, name) not in (None, ())]
        if unused:
            raise ValueError(
                f"`--{unused[0]}` needs a distillation loss, and --method={config.method} has none. Leave it out, or "
                "choose another method."
            )
        return []
    networks = (config, train, teacher, student)
    return [
        _build_loss(recipe.loss, config, _published_kwargs(recipe, *networks)),
        *(_build_loss(name, None, kwargs) for name, kwargs in recipe.extra_losses),
        *(_build_loss(extra.loss, None, _published_kwargs(extra, *networks)) for extra in get_extra_recipes(config)),
    ]


def published_defaults(config):
    """Return what the flags of a method default to: a dict of values by the name of the flag.

    `loss_kwargs` is a dict of the other arguments of the loss. Flags that the method does not have are left out.

    Raises:
        ValueError: If the method is unknown.
    """
    recipe = get_recipe(config)
    defaults = {"student_loss_weight": recipe.student_loss_weight, "warmup_epochs": recipe.warmup_epochs}
    name = recipe.loss or (recipe.stage and recipe.stage.loss)
    if name is None:
        return {"student_loss_weight": recipe.student_loss_weight}
    names = losses.argument_names(name)
    kwargs = {
        parameter.name: parameter.default
        for base in reversed(losses.REGISTRY[name].__mro__)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.name in names and isinstance(parameter.default, (bool, int, float, str))
    }
    kwargs |= {**(recipe.published or {}), **(recipe.pairs or {}).get((config.teacher, config.student), {})}
    for flag, argument in (("alpha", "weight"), ("temperature", "temperature"), ("weighting", "weighting")):
        if argument in kwargs:
            defaults[flag] = kwargs.pop(argument)
    return {**defaults, "loss_kwargs": {key: kwargs[key] for key in sorted(kwargs)}}


def _published_kwargs(recipe, config, train, teacher, student):
    """Return the arguments of a recipe's loss, as published for these networks and data."""
    return {
        **_layers(recipe.loss, teacher, student),
        **(recipe.published or {}),
        **(recipe.pairs or {}).get((config.teacher, config.student), {}),
        **(recipe.data_dependent_kwargs(train) if recipe.data_dependent_kwargs else {}),
    }


def build_stage_loss(config, teacher=None, student=None):
    """Return the loss of the pretraining stage. The run's settings apply to it if the main stage has no loss."""
    recipe = get_recipe(config)
    layers = _layers(recipe.stage.loss, teacher, student)
    return _build_loss(recipe.stage.loss, config if recipe.loss is None else None, layers)


def _layers(loss, teacher, student):
    """Return `{"layers": ...}` if networks of this depth are compared at other layers than by default, else `{}`."""
    default = getattr(losses.REGISTRY[loss], "default_layers", ())
    if teacher is None or student is None:
        return {}
    if loss == "pkd":
        return {"layers": _patient_layers(_depth(teacher), _depth(student))}
    if not (default and _has_layer(teacher, "block4") and _has_layer(student, "block4")):
        return {}
    if len(default) == 1:  # The last map: the fourth stage's.
        return {"layers": [default[0].replace("block3", "block4")]}
    # The maps of all stages: the fourth in addition.
    return {
        "layers": [
            name for last in default for name in ([last, last.replace("3", "4")] if "block3" in last else [last])
        ]
    }


def _patient_layers(teacher, student):
    """Return the pairs of PKD-skip: student layer i, except the last, with layer (i + 1) * teacher // student - 1.

    Args:
        teacher: Number of the teacher's layers.
        student: Number of the student's layers.

    Raises:
        ValueError: If the student has a single layer, or more than the teacher.
    """
    if not 2 <= student <= teacher:
        raise ValueError(
            f"`--method=pkd` needs a student with at least 2 layers and at most as many as its teacher. Received: a "
            f"student of {student} layers and a teacher of {teacher}."
        )
    return [
        (f"transformer_layer_{i}", f"transformer_layer_{(i + 1) * teacher // student - 1}") for i in range(student - 1)
    ]


def _depth(network):
    return sum(layer.name.startswith("transformer_layer_") for layer in network._flatten_layers())


def _has_layer(network, name):
    return any(layer.name == name for layer in network._flatten_layers())


def _build_loss(name, config, kwargs):
    """Return a loss by name, with the given arguments, which the settings of a run override."""
    allowed = {*losses.argument_names(name)} - {"name"}
    if config is not None:
        overrides = {
            "weight": config.alpha,
            "temperature": config.temperature,
            "weighting": _weighting(config),
            **dict(_parse_item(item) for item in config.loss_kwargs),
        }
        kwargs = {**kwargs, **{key: value for key, value in overrides.items() if value is not None}}
    if unknown := sorted(set(kwargs) - allowed):
        raise ValueError(f"The loss of --method={name} has no arguments {unknown}. Expected some of {sorted(allowed)}.")
    try:
        return losses.REGISTRY[name](**kwargs)
    except (TypeError, AttributeError, OverflowError) as error:
        if config is None or not config.loss_kwargs:
            raise
        raise ValueError(
            f"`--loss_kwargs` must be arguments of --method={name}. Received: "
            f"--loss_kwargs={','.join(config.loss_kwargs)}, which raises: {error}."
        ) from error


def _weighting(config):
    """Return the `weighting` argument of a loss, or `None`."""
    if not config.weighting:
        return None
    names = config.weighting.split("*")
    if config.keep_probability and not any("keep_probability" in weighting.argument_names(name) for name in names):
        raise ValueError(
            "`--keep_probability` needs --weighting=exclude_regularization_samples or only_regularization_samples. "
            f"Received: --keep_probability={config.keep_probability}, --weighting={config.weighting}."
        )
    specs = [_weighting_spec(name, config) for name in names]
    return specs[0] if len(specs) == 1 else specs


def _weighting_spec(name, config):
    spec, takes = {"name": name}, weighting.argument_names(name)
    if config.keep_probability and "keep_probability" in takes:
        spec["keep_probability"] = config.keep_probability
    if "temperature" in takes:
        spec["temperature"] = config.temperature or 4.0  # Many losses have no temperature.
    return spec


def _parse_item(item):
    """Parse `"beta=8"` to `("beta", 8)`. A value that is not a Python literal is a string."""
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise ValueError(f"`--loss_kwargs` must be name=value pairs, separated by commas. Received: {item}.")
    if len(value) > MAX_CHARACTERS:
        raise ValueError(
            f"--loss_kwargs={name}=... must have at most {MAX_CHARACTERS} characters. Received: {len(value):,} "
            "characters."
        )
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    except (TypeError, MemoryError, RecursionError):  # Such as `{[]}`, and thousands of brackets.
        parsed = ...
    if not _is_allowed(parsed):
        raise ValueError(
            f"--loss_kwargs={name} must be a number up to 2**53, True, False, None, text, or a list of these. "
            f"Received: {name}={value}."
        )
    return name, parsed


def _is_allowed(value):
    """Return whether a literal may be an argument of a loss: no infinite, huge or complex number."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_allowed, value))
    if isinstance(value, dict):
        return all(map(_is_allowed, [*value, *value.values()]))
    if isinstance(value, (int, float)):
        return abs(value) <= MAX_NUMBER
    return value is None or isinstance(value, str)

"""The text of `--help`: all flags of a script in groups, with the published defaults of the chosen method."""

import pathlib
import sys
import textwrap

from absl import flags

from keras_wsl.training import build_losses, recipes

WIDTH = 100
INDENT = 34
NAMES = {"--help", "-help", "-h", "-?"}
GROUPS = {
    "Network": "student student_weights student_layers teacher teacher_weights teacher_layers",
    "Method": "method temperature alpha student_loss_weight extra_losses weighting keep_probability loss_kwargs "
    "warmup_epochs pretrain_epochs teacher_batch_statistics soft_labels online teacher_update_epochs "
    "teacher_checkpoints",
    "Training": "epochs batch_size optimizer learning_rate schedule decay_epochs lr_warmup_fraction momentum nesterov "
    "weight_decay global_clipnorm label_smoothing seed deterministic",
    "Data": "data data_dir download max_train_examples validation_examples padding_mode num_views image_size resize "
    "max_corrupt_images vocabulary lowercase sequence_length",
    "Output": "output_dir resume eval_every backup_every_steps checkpoint_every",
    "Devices": "dtype_policy strategy steps_per_execution worker_timeout logical_devices",
}


def format_help(values, *, config=None, arguments=()):
    """Return the help text of the script that runs.

    Args:
        values: `absl.flags.FlagValues`.
        config: `Config` whose method's published defaults are shown, or `None`.
        arguments: Names of the positional arguments.
    """
    script = sys.modules["__main__"]
    usage = " ".join(["usage: python", sys.argv[0], "[--flagfile=FILE] [FLAGS]", *(f"<{name}>" for name in arguments)])
    names = _script_flags(values)
    groups = {title: [name for name in group.split() if name in names] for title, group in GROUPS.items()}
    others = sorted(names.difference(*groups.values()))
    published = _published(config) if config else {}
    blocks = [(script.__doc__ or "").strip(), usage]
    for title, group in {"This script": others, **groups}.items():
        if group:
            lines = [_format_flag(values[name], published.get(name, "")) for name in group]
            blocks.append("\n".join([f"{title}:", *lines, *(_method_lines(config) if title == "Method" else ())]))
    blocks.append("--flagfile=FILE reads flags from a file, one per line. --helpfull lists all flags of all packages.")
    return "\n\n".join(filter(None, blocks))


def _script_flags(values):
    """Return the names of the flags that this package and the files in the directory of the script define."""
    directories = {pathlib.Path(__file__).parent, pathlib.Path(sys.argv[0]).resolve().parent}
    result = set()
    for module, module_flags in values.flags_by_module_dict().items():
        path = getattr(sys.modules.get(module), "__file__", None) or module
        if directories & set(pathlib.Path(path).resolve().parents):
            result |= {flag.name for flag in module_flags}
    return result


def _published(config):
    """Return a text with the published value of each flag of the method, by the name of the flag."""
    try:
        defaults = build_losses.published_defaults(config)
    except ValueError:  # An unknown method.
        return {}
    kwargs = defaults.get("loss_kwargs", {})
    defaults["loss_kwargs"] = ",".join(f"{name}={value}" for name, value in kwargs.items())
    return {name: f"{config.method}: {value}" for name, value in defaults.items() if value not in ("", None)}


def _method_lines(config):
    if config is None:
        return ()
    methods = ", ".join(sorted(recipes.RECIPES_BY_DATASET[type(config)]))
    return textwrap.wrap(
        f"Methods: {methods}.", WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
    )


def _format_flag(flag, published):
    name = f"  --{'[no]' if flag.boolean else ''}{flag.name}"
    default = "" if flag.default in (None, "", []) else f"default: {flag.default_as_str}".replace("'", "")
    note = published or default
    text = f"{flag.help} ({note})" if note else flag.help
    lines = textwrap.wrap(" ".join(text.split()), WIDTH - INDENT, break_on_hyphens=False)
    return "\n".join([f"{name:{INDENT}}{lines[0]}", *(" " * INDENT + line for line in lines[1:])])


def wants_help(argv):
    """Return whether a command line has `--help`."""
    flag_part = argv[: argv.index("--")] if "--" in argv else argv
    return bool(NAMES & set(flag_part[1:]))


def print_help(argv, *, config_class=None, arguments=(), values=flags.FLAGS):
    """Print the help text for a command line.

    Args:
        argv: List of strings. Its other flags select the method whose published defaults are shown.
        config_class: Class of the script's settings, or `None`.
        arguments: Names of the positional arguments.
        values: `absl.flags.FlagValues`.
    """
    config = None
    try:
        values([argument for argument in argv if argument not in NAMES], known_only=True)
    except flags.Error:  # Such as a required flag that is missing.
        pass
    if config_class:
        config = config_class(**{name: values[name].value for name in ("method", "teacher", "student")})
    print(format_help(values, config=config, arguments=arguments))

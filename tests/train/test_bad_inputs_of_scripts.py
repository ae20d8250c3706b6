"""Invalid command lines of the scripts: exit status 2, one line with what was received and the remedy, no files.

A row is a command line, run in this process, and two patterns of its error. Errors of a `Config` alone are tested in
`tests/training/`. Flags that absl refuses, such as `--epochs=0`, end with its usage message.
"""

import os
import re

import pytest
from absl import flags

import cache_soft_labels
import cifar100
import evaluate
from keras_wsl import data, models
from keras_wsl.training import cli, config, runner
from tests.common import bright_splits, run_script

RUN = ["--data_dir=HERE/images.npz", "--student=resnet8", "--method=none", "--epochs=1", "--decay_epochs="]
KD = ["--method=kd", "--teacher=resnet8", "--teacher_weights=HERE/teacher.keras"]
STORE = ["--data=cifar100", "--data_dir=HERE/images.npz", *KD[1:]]

# cifar100.py: the command line, and the two patterns.
ROWS = {
    "decay before the start": (
        ["--decay_epochs=-1"],
        "`--decay_epochs` must be increasing",
        "Received: --decay_epochs=-1",
    ),
    "decay twice": (["--decay_epochs=2,2"], "`--decay_epochs` must be increasing", "Received: --decay_epochs=2,2"),
    "decay backwards": (["--decay_epochs=3,1"], "`--decay_epochs` must be increasing", "Received: --decay_epochs=3,1"),
    "decay is text": (["--decay_epochs=1,x"], "`--decay_epochs` must be integers", "Received: --decay_epochs=1,x"),
    "learning rate is not a number": (["--learning_rate=nan"], "--learning_rate=nan must be a finite", "Leave it out"),
    "learning rate is infinite": (["--learning_rate=inf"], "--learning_rate=inf must be a finite", "Leave it out"),
    "weight decay is not a number": (["--weight_decay=nan"], "--weight_decay=nan must be a finite", "Leave it out"),
    "clipping is not a number": (
        ["--global_clipnorm=nan"],
        "--global_clipnorm=nan must be a finite number",
        "Leave it out",
    ),
    "warm-up is not a number": (["--lr_warmup_fraction=nan"], "--lr_warmup_fraction=nan must", "Leave it out"),
    "alpha is not a number": ([*KD, "--alpha=nan"], "--alpha=nan must be a finite number", "Leave it out"),
    "alpha is negative": ([*KD, "--alpha=-1"], "non-negative number", "Received: weight=-1.0"),
    "temperature is infinite": ([*KD, "--temperature=inf"], "--temperature=inf must be a finite", "Leave it out"),
    "temperature is negative": ([*KD, "--temperature=-4"], "positive number", "Received: temperature=-4.0"),
    "temperature of labels": (
        ["--temperature=4"],
        "`--temperature` needs a distillation loss, and --method=none has none",
        "or choose",
    ),
    "loss_settings of labels": (["--loss_kwargs=beta=3"], "`--loss_kwargs` needs a distillation loss", "or choose"),
    "smoothing is all": (["--label_smoothing=1"], r"`--label_smoothing` must be in \[0, 1\)", "Received: .*=1.0"),
    "method is misspelt": (["--method=reviewdk"], "no method 'reviewdk'", "Did you mean 'reviewkd'"),
    "student is misspelt": (["--student=resnet_8"], "Unknown network 'resnet_8'", "Did you mean 'resnet8'"),
    "teacher is misspelt": ([*KD, "--teacher=wrn40_2"], "Unknown network 'wrn40_2'", "Did you mean 'wrn_40_2'"),
    "teacher of another depth": ([*KD, "--teacher=resnet14"], "does not match resnet14", "Build that network, or pass"),
    "teacher's file is torn": (
        [*KD, "--teacher_weights=HERE/torn.weights.h5"],
        "torn.weights.h5' is not a complete HDF5 file",
        "Copy or write it again",
    ),
    "teacher's file is of images": (
        [*KD, "--teacher_weights=HERE/images.npz"],
        "Received: '.*images.npz'",
        "must be a '.weights.h5' or a '.keras' file",
    ),
    "student's file is not there": (
        ["--student_weights=absent.keras"],
        "weight file 'absent.keras' .* does not exist",
        "Train one and write it",
    ),
    "weighting without a name": (
        [*KD, "--keep_probability=0.5"],
        "--keep_probability=0.5 needs a weighting",
        "Pass --weighting=",
    ),
    "probability is 2": (
        [*KD, "--weighting=exclude_regularization_samples", "--keep_probability=2"],
        r"`keep_probability` must be a number in \[0, 1\]",
        "Received: keep_probability=2.0",
    ),
    "probability of wsl": (
        [*KD, "--weighting=wsl", "--keep_probability=0.5"],
        "`--keep_probability` needs --weighting=exclude_regularization_samples",
        "Received: .* --weighting=wsl",
    ),
    "switch is text": (
        [*KD, "--loss_kwargs=standardize=true"],
        "standardize='true'",
        "must be True or False",
    ),
    "objective is misspelt": ([*KD, "--loss_kwargs=objective=kll"], "Received: objective='kll'", "one of .'kl'"),
    "dtype_policy": (
        ["--dtype_policy=float8"],
        "`--dtype_policy` must be a Keras dtype policy such as float32",
        "Received: --dtype_policy=float8",
    ),
    "steps do not divide": (
        ["--steps_per_execution=7"],
        "--steps_per_execution=7 must divide .* 1",
        "Choose a divisor",
    ),
    "backups do not divide": (
        ["--batch_size=5", "--backup_every_steps=3", "--steps_per_execution=2"],
        "--steps_per_execution=2 must divide --backup_every_steps, 3",
        "Choose a divisor",
    ),
    "limit is beyond the data": (
        ["--max_train_examples=31"],
        "Received: 31 of 30",
        "integer from 1 to 30",
    ),
    "nothing is left to train on": (
        ["--validation_examples=30"],
        "Received: 30 of 30",
        "integer from 1 to 29",
    ),
    "limit is beyond the rest": (
        ["--validation_examples=20", "--max_train_examples=11"],
        "Received: 11 of 10",
        "from 1 to 10",
    ),
    "holdout is negative": (["--validation_examples=-5"], "Received: -5 of 30", "integer from 1 to 29"),
    "checkpoints are not there": ([*KD, "--online"], "checkpoints has no checkpoints", "with --checkpoint_every=1"),
    "soft labels are not there": (
        ["--method=kd", "--soft_labels=HERE/full"],
        "full has no soft labels",
        "with train/cache_soft_labels.py",
    ),
    "data are not there": (
        ["--data_dir=HERE/absent.npz"],
        "file .*absent.npz does not exist",
        "Write it with `save` or `save_npz`",
    ),
    "data are a folder of other things": (
        ["--data_dir=HERE/full"],
        "full.cifar100 must have a directory such as 3.0.2",
        "--download in the scripts",
    ),
    "data are text": (["--data_dir=HERE/text.npz"], "text.npz is not a complete .npz file", "Write it again"),
    **{
        f"loss_settings: {name}": (
            [*KD, f"--loss_kwargs=weight={value}"],
            r"--loss_kwargs=weight(=\.\.\.)? must (be a number up to 2\*\*53|have at most 200 characters)",
            "Received: ",
        )
        for name, value in {
            "deep brackets": "(" * 5000 + ")" * 5000,
            "deep list": "[" * 90 + "1e999" + "]" * 90,
            "many signs": "-" * 100_000 + "1",
            "infinite": "1e999",
            "negative infinite": "-1e999",
            "huge integer": "1" + "0" * 150,
            "unhashable": "{[]}",
            "unhashable key": "{{}: 1}",
            "complex": "1j",
            "bytes": "b'x'",
            "ellipsis": "...",
            "set": "{1}",
        }.items()
    },
    "loss_settings is NaN": (
        [*KD, "--loss_kwargs=weight=nan"],
        "Received: weight='nan'",
        "must be a non-negative number",
    ),
    "loss_settings is a list": (
        [*KD, "--loss_kwargs=weight=[1]"],
        r"Received: weight=\[1\]",
        "must be a non-negative number",
    ),
    "name is not the loss's to give": (
        [*KD, "--loss_kwargs=layers=5"],
        "has no arguments .'layers'",
        "Expected some of",
    ),
    "epochs are huge": (["--epochs=99999999999999999999"], "--epochs must be at most 1,000,000", "Received"),
    "decay is huge": (["--decay_epochs=1,99999999999"], "--decay_epochs must be at most 1,000,000", "Received"),
    "batch is huge": (["--batch_size=99999999999"], "--batch_size must be at most 2,147,483,647", "Received"),
    "seed is huge": (["--seed=4294967296"], "--seed must be at most 4,294,967,295", "Received"),
    "name of two lines": (["--student_weights=a\nb.keras"], "--student_weights must be one line", "Received"),
    "teacher's file is a pipe": ([*KD, "--teacher_weights=HERE/pipe.keras"], "pipe.keras'", "Train one"),
    "student's file is a pipe": (["--student_weights=HERE/pipe.keras"], "pipe.keras'", "Train one"),
    "data are a pipe": (
        ["--data_dir=HERE/pipe.npz"],
        "file .*pipe.npz does not exist",
        "Write it with `save` or `save_npz`",
    ),
    "out is a link to nothing": (
        ["--output_dir=HERE/dangling"],
        "dangling must be a directory. Received: it is a symbolic link without a target",
        "Pass another path",
    ),
    "out is below a link to nothing": (
        ["--output_dir=HERE/dangling/a/b"],
        "dangling must be a directory. Received: it is a symbolic link",
        "Pass another",
    ),
    "out is a link to itself": (
        ["--output_dir=HERE/loop"],
        "loop must be a directory. Received: it is a symbolic link",
        "Pass another",
    ),
    "out is below a pipe": (
        ["--output_dir=HERE/pipe.npz/run"],
        "pipe.npz must be a directory. Received: it is a named pipe",
        "Pass",
    ),
    "out is a file": (
        ["--output_dir=HERE/file"],
        "file must be a directory. Received: it is a file",
        "Pass another path",
    ),
    "out is below a file": (
        ["--output_dir=HERE/file/run"],
        "file must be a directory. Received: it is a file",
        "Pass another path",
    ),
    "out holds other things": (
        ["--output_dir=HERE/full"],
        "--output_dir=.*full holds other files and no run",
        "Choose a directory",
    ),
    "out is missing": (["--output_dir="], "--output_dir is missing", "Pass a directory for the results"),
}
EVALUATED = {
    "no such run": (["HERE/absent"], "absent does not exist", "Expected the directory of a run"),
    "no run": (["HERE/full"], "full holds no finished run", "Resume it with --resume"),
    "network without data": (["HERE/teacher.keras"], "does not record its data set", "Pass --data, one of"),
    "network of other data": (
        ["--data=digits", "HERE/teacher.keras"],
        r"inputs of shape \(8, 8, 3\)",
        "Evaluate it on",
    ),
    "results in a file": (
        ["--data=cifar100", "--data_dir=HERE/images.npz", "--output_dir=HERE/file", "HERE/teacher.keras"],
        "file must be a directory. Received: it is a file",
        "Pass another path",
    ),
}
WRITTEN = {
    "temperatures are not numbers": (["--top_k=2", "--temperatures=1,nan"], "1,nan must be finite numbers", "such as"),
    "temperatures are infinite": (["--top_k=2", "--temperatures=1e999"], "1e999 must be finite numbers", "such as"),
    "temperatures are text": (["--top_k=2", "--temperatures=1,a"], "--temperatures=1,a must be numbers", "such as"),
    "store is a file": (
        ["--output_dir=HERE/file"],
        "file must be a directory. Received: it is a file",
        "Pass another path",
    ),
    "store of more than there is": (["--max_train_examples=31"], "Received: 31 of 30", "from 1 to 30"),
}


def train(arguments):
    """Parse a command line of cifar100.py and train, in this process."""
    values = flags.FlagValues()
    config.define_flags(values)
    flags.DEFINE_string("data_dir", None, "", flag_values=values)
    flags.DEFINE_bool("download", False, "", flag_values=values)
    values(["cifar100.py", *arguments])
    settings = config.from_flags(values)
    return runner.run(
        settings, cifar100.load_splits(settings, values), values.output_dir, resume=values.resume, verbose=0
    )


def _evaluate(arguments):
    values = flags.FlagValues()
    evaluate.define_flags(values)
    return evaluate.evaluate(values(["evaluate.py", *arguments])[1:], values)


def _write(arguments):
    values = flags.FlagValues()
    cache_soft_labels.define_flags(values)
    values(["cache_soft_labels.py", *arguments])
    return cache_soft_labels.write(values)


TABLES = {"train": (ROWS, RUN, train), "evaluate": (EVALUATED, [], _evaluate), "write": (WRITTEN, STORE, _write)}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    data.save_npz(bright_splits(30), folder / "images.npz")
    network = models.build("resnet8", 3, input_shape=(8, 8, 3))
    network.save(folder / "teacher.keras")
    models.save_weights(network, folder / "whole.weights.h5")
    (folder / "torn.weights.h5").write_bytes((folder / "whole.weights.h5").read_bytes()[:900])
    (folder / "full").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    for name in ("pipe.keras", "pipe.npz"):
        os.mkfifo(folder / name)
    for name in ("file", "text.npz", "full/thesis.tex"):
        (folder / name).write_text("text")
    return folder


def _files(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "script, name", [(script, name) for script, (rows, *_) in TABLES.items() for name in rows], ids=str
)
def test_script_prints_an_error_in_one_line(script, name, here, tmp_path, capsys):
    rows, common, run = TABLES[script]
    arguments, problem, remedy = rows[name]
    before = _files(here)
    arguments = [argument.replace("HERE", str(here)) for argument in [*common, *arguments]]
    arguments.insert(0, f"--output_dir={tmp_path / 'out'}")
    assert cli.status(lambda: run(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(r"\w+Error: ", line) and re.search(problem, line) and re.search(remedy, line), line
    assert not (tmp_path / "out").exists() and _files(here) == before


@pytest.mark.parametrize(
    "script, arguments, status, words",
    [
        ("cifar100.py", ["--method=none", "--decay_epochs=3,1", "--data_dir=HERE/images.npz"], 2, "must be increasing"),
        ("evaluate.py", ["HERE/full"], 2, "holds no finished run"),
        ("cifar100.py", ["--epoch=3"], 1, "Did you mean: epochs"),
        ("cifar100.py", ["--warmup_epochs=-3"], 1, "not a non-negative"),
        ("cifar100.py", ["runs/wsl"], 1, "Expected flags only"),
    ],
)
def test_script_refuses_a_bad_command_line(script, arguments, status, words, here, tmp_path):
    arguments = [argument.replace("HERE", str(here)) for argument in arguments]
    ended = run_script(script, f"--output_dir={tmp_path / 'out'}", *arguments)
    assert ended.returncode == status and "Traceback" not in ended.stderr, ended.stderr[-2000:]
    printed = ended.stderr.strip().splitlines()[-1] if status == 2 else ended.stderr + ended.stdout
    assert words in printed and not (tmp_path / "out").exists()

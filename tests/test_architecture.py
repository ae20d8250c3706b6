"""Where things are imported, what importing costs, and what a commit may hold."""

import ast
import graphlib
import os
import pathlib
import sys

import pytest

from tests.common import run_child

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "keras_wsl"
TENSORFLOW = {
    "analysis/autodiff.py",
    "data/tf_data_pipeline.py",
    "data/image_decoding.py",
    "data/sentence_pairs.py",
    "data/image_files.py",
    "data/tfds_builder.py",
    "data/cifar100.py",
    "data/multinli.py",
    "backend/tensorflow/strategy_fixes.py",
    "backend/tensorflow/batch_normalization.py",
    "backend/tensorflow/checks.py",
    "backend/tensorflow/forward.py",
    "backend/tensorflow/replicas.py",
    "backend/tensorflow/trainer.py",
    "distribution.py",
    "export.py",
    "training/artifacts.py",
    "training/runner.py",
}
BUILT_ON_TENSORFLOW = {
    "data/tf_data_pipeline.py",
    "data/image_decoding.py",
    "backend/tensorflow/batch_normalization.py",
    "backend/tensorflow/checks.py",
    "backend/tensorflow/forward.py",
    "backend/tensorflow/replicas.py",
    "backend/tensorflow/strategy_fixes.py",
    "backend/tensorflow/trainer.py",
}
# What a package or module may import of keras_wsl in addition to itself.
ALLOWED = {
    "adapters": {"argument_checks", "ops"},
    "analysis": {"argument_checks", "features", "ops", "regularization_samples", "weighting"},
    "argument_checks": set(),
    "backend": {"argument_checks", "ops"},
    "callbacks": {
        "argument_checks",
        "analysis",
        "backend",
        "features",
        "files",
        "models",
        "ops",
        "regularization_samples",
        "targets",
        "teacher_checkpoints",
        "untrusted",
        "weighting",
    },
    "data": {"argument_checks", "files"},
    "distiller": {
        "argument_checks",
        "backend",
        "entry_points",
        "features",
        "losses",
        "metrics",
        "objective",
        "ops",
        "targets",
        "teachers",
        "validation",
    },
    "distribution": {"argument_checks", "backend"},
    "entry_points": {"argument_checks", "objective", "validation"},
    "export": {"argument_checks", "features", "files"},
    "features": {"argument_checks", "ops"},
    "file_lock": set(),
    "files": {"argument_checks", "file_lock"},
    "losses": {"argument_checks", "adapters", "features", "ops", "weighting"},
    "metrics": set(),
    "models": {"argument_checks", "files", "ops"},
    "objective": {"argument_checks", "backend", "ops", "regularization_samples", "teachers", "weighting"},
    "ops": set(),
    "optimizers": {"argument_checks", "ops"},
    "regularization_samples": {"argument_checks", "ops"},
    "soft_labels": {
        "argument_checks",
        "backend",
        "data",
        "features",
        "file_lock",
        "files",
        "models",
        "ops",
        "top_k_logits",
        "untrusted",
    },
    "targets": {"argument_checks", "backend", "ops"},
    "teacher_checkpoints": set(),
    "teachers": {"argument_checks", "features", "ops", "top_k_logits"},
    "top_k_logits": {"argument_checks", "ops"},
    "untrusted": {"argument_checks", "files"},
    "validation": {"argument_checks", "ops"},
    "weighting": {"argument_checks", "ops", "regularization_samples"},
}


def _imports(path):
    """Modules that a file imports, with the line's indentation: `(name, at module level)`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.col_offset == 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.col_offset == 0


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    inside = path.relative_to(PACKAGE)
    package = inside.parts[0].removesuffix(".py")
    for name, at_top in _imports(path):
        top = name.split(".")[0]
        if top in ("tensorflow", "tensorflow_datasets"):
            assert str(inside) in TENSORFLOW, f"{inside} imports {name}"
            assert not at_top or str(inside) in BUILT_ON_TENSORFLOW, f"{inside} imports {name} before it is needed"
        assert top not in ("train", "tests")
        if top in ("sklearn", "matplotlib", "tensorboard", "keras_cv", "keras_nlp"):
            assert not at_top, f"{inside} imports {name} before it is needed"
        if top == "keras_wsl" and package not in ("__init__", "training"):  # These may use everything.
            assert name.split(".")[1] in ALLOWED[package] | {package}, f"{inside} imports {name}"


def _import_graph():
    """Return the modules that each module of keras_wsl imports, at its top or in functions: `{name: {name}}`."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {}
    for module, path in names.items():
        imported = {name for name, _ in _imports(path)}
        # `from a import b` imports the module a.b if there is one, else a.
        graph[module] = {name if name in names else name.rpartition(".")[0] for name in imported} & set(names)
    return graph


def test_imports_have_no_cycle():
    sorter = graphlib.TopologicalSorter(_import_graph())
    sorter.prepare()  # Raises CycleError with the modules.


RUNS_WHAT_IT_READS = {"dill", "cloudpickle", "joblib", "marshal", "shelve"}
# Keywords that make a reader safe, and their value there.
SAFE = {"allow_pickle": False, "weights_only": True, "safe_mode": True}
NEEDED = {"np.load": "allow_pickle", "numpy.load": "allow_pickle", "torch.load": "weights_only"}


def _unsafe(code):
    """What in a file's code might run, or unpickle, what is read: `(line, what)`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module] if module else [alias.name for alias in node.names]
            banned = RUNS_WHAT_IT_READS | ({"pickle"} if module else set())
            yield from ((node.lineno, name) for name in names if name.split(".")[0] in banned)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("pickle.") and name != "pickle.UnpicklingError":
                yield node.lineno, name
            if node.attr == "enable_unsafe_deserialization":
                yield node.lineno, name
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in ("eval", "exec", "compile", "__import__"):
                yield node.lineno, name
            if NEEDED.get(name) not in {None, *given}:
                yield node.lineno, f"{name} without {NEEDED[name]}"
            for keyword, value in SAFE.items():
                if keyword in given and not (
                    isinstance(given[keyword], ast.Constant) and given[keyword].value is value
                ):
                    yield node.lineno, f"{name} with {ast.unparse(given[keyword])}"


@pytest.mark.parametrize("folder", ["keras_wsl", "train"])
def test_nothing_runs_what_it_reads(folder):
    found = {path: list(_unsafe(path.read_text())) for path in (ROOT / folder).rglob("*.py")}
    assert len(found) > 20
    assert not {path.name: unsafe for path, unsafe in found.items() if unsafe}


@pytest.mark.parametrize(
    "code",
    [
        "import marshal",
        "import joblib.numpy_pickle",
        "from pickle import loads",
        "import pickle\npickle.load(file)",
        "pickle.Unpickler(file)",
        "eval(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "keras.saving.load_model(path, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
    ],
)
def test_what_runs_what_it_reads_is_found(code):
    assert len(list(_unsafe(code))) == 1


# Where files may be opened for writing, or `tempfile` used; in benchmarks/ too, which damage files and fill disks.
WRITES_ITSELF = {
    "files.py": "the helper of all others",
    "launcher.py": "what a child prints",
    "multi_worker.py": "nothing, into the null device",
}
MODES = {"w", "wb", "a", "ab", "x", "xb", "w+", "w+b", "r+", "r+b"}


def _writes(code):
    """What in a file's code writes a file by itself: `(line, what)`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
            yield from ((node.lineno, name) for name in names if name == "tempfile")
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), [*node.args, *(keyword.value for keyword in node.keywords)]
            last, texts = name.split(".")[-1], {value.value for value in given if isinstance(value, ast.Constant)}
            arrays = last in ("savefig", "savez", "savez_compressed") or name == "np.save"
            # Into the open file of `atomic_write`, or into memory.
            if arrays and not (given and ast.unparse(given[0]) in ("file", "buffer")):
                yield node.lineno, name
            elif (last == "open" and texts & MODES) or last in (
                "write_bytes",
                "copyfile",
                "copy2",
                "copytree",
                "getpid",
            ):
                yield node.lineno, name


@pytest.mark.parametrize("folder", ["keras_wsl", "train"])
def test_files_are_written_by_one_helper(folder):
    paths = [path for path in (ROOT / folder).rglob("*.py") if path.name not in WRITES_ITSELF]
    paths = [path for path in paths if "benchmarks" not in path.parts]
    assert len(paths) > 20
    found = {path.name: list(_writes(path.read_text())) for path in paths}
    assert not {name: writes for name, writes in found.items() if writes}


@pytest.mark.parametrize(
    "code",
    [
        "import tempfile",
        "from tempfile import mkstemp",
        "open(path, 'w')",
        "path.open(mode='wb')",
        "path.write_bytes(content)",
        "shutil.copyfile(a, b)",
        "figure.savefig(path)",
        "np.save(path, array)",
        "np.savez(path, array)",
        "name = f'{path}.{os.getpid()}'",
    ],
)
def test_what_writes_a_file_itself_is_found(code):
    assert len(list(_writes(code))) == 1


def _run(code, **environment):
    return run_child(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment},
    )


@pytest.mark.child
def test_import_is_quick():
    # The least of several, of the part that is ours: other processes share the machine.
    code = "import time, keras; start = time.process_time(); import keras_wsl; print(time.process_time() - start)"
    seconds = min(float(_run(code, KERAS_BACKEND="tensorflow").stdout.split()[-1]) for _ in range(2))
    assert seconds < 0.5


@pytest.mark.child
def test_trains_where_tensorflow_is_not_installed():
    pytest.importorskip("jax")
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets", "torch"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import numpy as np, keras, keras_wsl
from keras_wsl import Distiller, callbacks, data, losses
from tests.common import image_network
splits = data.digits()
nets = [image_network(name, classes=10, input_shape=(8, 8, 1)) for name in ("teacher", "student")]
distiller = Distiller(*nets, losses.WSL())
distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
part = splits.train.stratified_subset(64)
history = distiller.fit(
    data.train_batches(part, seed=0, batch_size=32, padding=1), steps_per_epoch=2, epochs=1, verbose=0,
    validation_data=data.eval_batches(part, 32),
    callbacks=[
        callbacks.RegularizationSamples(sys.argv[1], data.eval_batches(part, 32)),
        callbacks.TensorBoardScalars(sys.argv[1])
    ],
).history
assert "tensorflow" not in sys.modules and np.isfinite(history["loss"]).all(), history
try:
    keras_wsl.export.export_saved_model(distiller.student, sys.argv[1] + "/saved")
except ImportError as error:
    print("said:", error)
"""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        result = _run(code.replace("sys.argv[1]", repr(folder)), KERAS_BACKEND="jax")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "said:" in result.stdout and "pip install tensorflow" in result.stdout


def test_every_test_file_is_found():
    for path in (ROOT / "tests").rglob("*.py"):
        named = path.name.startswith("test_") or path.stem in ("__init__", "common", "conftest") or "child" in path.stem
        assert named, f"{path.name} is named so that pytest does not run it"


SCRIPTS = [path for path in sorted((ROOT / "train").glob("*.py")) if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_set_the_environment_before_tensorflow_is_imported(path):
    harmless = {"absl", "matplotlib", "numpy", "scipy", *sys.stdlib_module_names}
    names = [name.split(".")[0] for name, at_top in _imports(path) if at_top]
    assert "before_tensorflow" in names
    assert set(names[: names.index("before_tensorflow")]) <= harmless


@pytest.mark.parametrize("folder", ["keras_wsl", "train"])
def test_no_file_edits_sys_path(folder):
    edits = {path.name for path in (ROOT / folder).rglob("*.py") if "sys.path" in path.read_text()}
    assert not edits

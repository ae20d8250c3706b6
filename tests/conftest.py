"""Settings of every test: one backend a run (`KERAS_BACKEND`), seeds set, quiet TensorFlow."""

import contextlib
import os
import signal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # Numbers are compared on the CPU.
# Whatever the processor, and in the scripts that tests start too: two passes of oneDNN may round differently.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import pytest


@pytest.fixture(scope="module", autouse=True)
def _eager(request):
    """Run functions eagerly in a module with the mark `eager`: to trace a step takes longer than to take a few."""
    if request.node.get_closest_marker("eager") and keras.backend.backend() == "tensorflow":
        with _functions_run_eagerly(True):
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def _traced(request, _eager):
    """Trace functions in a test with the mark `traced`, in a module with the mark `eager`."""
    if request.node.get_closest_marker("traced") and keras.backend.backend() == "tensorflow":
        with _functions_run_eagerly(False):
            yield
    else:
        yield


@contextlib.contextmanager
def _functions_run_eagerly(eagerly):
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(eagerly)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


@pytest.fixture
def default_signals():
    """Give SIGINT and SIGHUP their default actions, also where a shell or nohup has them ignored.

    A `PreemptionHandler` leaves ignored signals ignored, and processes inherit that.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session(free_memory=False)


def pytest_collection_modifyitems(items):
    """Skips by name, and so counts, what needs the TensorFlow backend."""
    if keras.backend.backend() == "tensorflow":
        return
    skip = pytest.mark.skip(reason="needs KERAS_BACKEND=tensorflow")
    for item in items:
        if item.get_closest_marker("tensorflow"):
            item.add_marker(skip)

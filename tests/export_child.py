"""Runs exported files where keras_wsl cannot be imported: `python export_child.py FOLDER [MODULE ...]`.

The modules, such as keras_nlp, are those whose layers or operations the files have.

`FOLDER/inputs.npz` has arrays `serve` and `serve_raw`, or `serve.NAME` of a dict. Of a SavedModel both endpoints are
run; any other file is given `serve_raw` if its name starts with "raw". Writes `outputs.npz`: `FILE/ENDPOINT`.
"""

import importlib
import pathlib
import sys

import numpy as np

sys.modules["keras_wsl"] = None  # An import of it fails.


def read_inputs(path):
    """The inputs of each endpoint: an array, or a dict of them."""
    inputs = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            endpoint, _, name = key.partition(".")
            inputs[endpoint] = {**inputs.get(endpoint, {}), name: arrays[key]} if name else arrays[key]
    return inputs


def of_keras(path, inputs):
    """A `.keras` file."""
    import keras

    return keras.ops.convert_to_numpy(keras.saving.load_model(path)(inputs, training=False))


def of_litert(path, inputs):
    """A LiteRT file."""
    import tensorflow as tf

    runner = tf.lite.Interpreter(str(path)).get_signature_runner()
    inputs = inputs if isinstance(inputs, dict) else {next(iter(runner.get_input_details())): inputs}
    (outputs,) = runner(**inputs).values()
    return outputs


def of_onnx(path, inputs):
    """An ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    inputs = inputs if isinstance(inputs, dict) else {session.get_inputs()[0].name: inputs}
    (outputs,) = session.run(None, inputs)
    return outputs


RUN = {".keras": of_keras, ".tflite": of_litert, ".onnx": of_onnx}


def main(folder):
    """Writes what each file gives."""
    inputs, outputs = read_inputs(folder / "inputs.npz"), {}
    for path in sorted(folder.iterdir()):
        if path.suffix in RUN:
            endpoint = "serve_raw" if path.name.startswith("raw") else "serve"
            outputs[f"{path.name}/{endpoint}"] = RUN[path.suffix](path, inputs[endpoint])
        elif path.is_dir():
            import tensorflow as tf

            loaded = tf.saved_model.load(str(path))
            for endpoint in set(loaded.signatures) - {"serving_default"}:
                given = inputs[endpoint]
                given = {k: tf.constant(v) for k, v in given.items()} if isinstance(given, dict) else tf.constant(given)
                outputs[f"{path.name}/{endpoint}"] = getattr(loaded, endpoint)(given).numpy()
    np.savez(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    for module in sys.argv[2:]:
        importlib.import_module(module)
    main(pathlib.Path(sys.argv[1]))

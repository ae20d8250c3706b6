"""Parts that depend on the backend: the training step, checks inside it, and a compiled forward pass."""

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    from keras_wsl.backend.tensorflow.checks import check_range
    from keras_wsl.backend.tensorflow.forward import compile_forward
    from keras_wsl.backend.tensorflow.trainer import TensorFlowTrainer as Trainer
elif keras.backend.backend() == "jax":
    from keras_wsl.backend.default import check_range, compile_forward
    from keras_wsl.backend.jax.trainer import JaxTrainer as Trainer
else:
    from keras_wsl.backend.default import DefaultTrainer as Trainer
    from keras_wsl.backend.default import check_range, compile_forward


def predict_batch(model, inputs):
    """Compute a model's outputs on a batch in inference mode, by a function that is compiled once per model.

    Args:
        model: A built `keras.Model`.
        inputs: Arrays or tensors, as the model takes them: one, or a dict or list.

    Returns:
        NumPy arrays, in the structure of the model's outputs.
    """
    outputs = compile_forward(model)(keras.tree.map_structure(np.asarray, inputs))
    return keras.tree.map_structure(np.asarray, outputs)


__all__ = ["Trainer", "check_range", "predict_batch"]

"""Build classifiers of sentence pairs from keras-nlp's BERT: Devlin et al., NAACL 2019, https://arxiv.org/abs/1810.04805."""

import io
import os
import re
import zipfile

import h5py
import keras
from keras import layers

from keras_wsl.models.weights import load_weights

_BASE = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072, "max_sequence_length": 512}
_NETWORKS = {
    "bert_base_cased": {**_BASE, "vocabulary_size": 28_996},
    "bert_base_uncased": {**_BASE, "vocabulary_size": 30_522},
}


def names():
    """Return the names of the networks that do not need a preset, a tuple of strings."""
    return tuple(_NETWORKS)


def build(name, classes=3, weights=None, *, layers=None, input_shape=(None,), dtype=None, dropout=0.1):
    """Build a BERT with a linear head on its pooled first token.

    With the first `layers` of a preset, this is the pre-trained student of PKD, Sun et al., EMNLP 2019,
    https://arxiv.org/abs/1908.09355: embeddings, the first transformer layers and the pooler are the preset's, and the
    head is new. With 12 and 3 layers, "bert_base_cased" is the teacher and the student T3 of the WSL paper.

    keras-nlp's BERT uses the tanh approximation of GELU, like Google's code. PyTorch checkpoints of Hugging Face were
    trained with the exact GELU: the outputs of such a preset differ from theirs in the third decimal, until it is
    fine-tuned here. `BertBackbone` has no argument for the exact GELU, and a saved one would not store it.

    Endpoints: `transformer_layer_0` and so on, `pooled`, `logits`.

    Args:
        name: One of `names()`, with new weights; or a preset of keras-nlp, with its weights: a directory, which may be
            one of Hugging Face, or a name such as "bert_base_en", which keras-nlp downloads.
        classes: Integer, the number of logits.
        weights: Path of a `.weights.h5` or `.keras` file of a network that this function built with at least as many
            layers, of which the first are used. `None` for the weights of the preset.
        layers: Integer, the number of transformer layers, the first ones. Default: all.
        input_shape: `(length,)`, the maximum length of sequences. `(None,)` if it is not known.
        dtype: Dtype policy of all layers except `logits`, which is float32. `None` for the global policy.
        dropout: Float, the dropout rate before the head.

    Returns:
        A functional `keras.Model` that maps `{"token_ids", "segment_ids", "padding_mask"}`, int32 `(batch, length)`, to
        logits, `(batch, classes)`.

    Raises:
        FileNotFoundError: If there is no file `weights`.
        ImportError: If a preset's files need a package that is not installed: `safetensors` for Hugging Face's.
        ValueError: If there is no such network, it has fewer layers or shorter sequences, or the file is damaged or of
            another network.
    """
    encoder = _build_encoder(name, layers, dtype)
    length = input_shape[0]
    if length is not None and length > encoder.max_sequence_length:
        raise ValueError(
            f"{name} accepts sequences of at most {encoder.max_sequence_length} tokens. Received: {length}. Use "
            "shorter ones (--sequence_length in the scripts)."
        )
    model = _make_classifier(encoder, classes, dropout)
    if weights is not None:
        _load_first_layers(model, weights, classes, dropout, dtype)
    return model


def tokenizer(name=None, *, vocabulary=None, lowercase=None):
    """Return the WordPiece tokenizer of a preset, or of a file of tokens.

    Args:
        name: A preset of keras-nlp: its directory or name.
        vocabulary: Path of a file with one token per line. Overrides the preset's vocabulary.
        lowercase: Whether the tokens of the file are in lower case. Unused for a preset.

    Returns:
        `keras_nlp.models.BertTokenizer`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If neither is passed, there is no such preset, or it has no vocabulary.
    """
    import keras_nlp

    if vocabulary:
        if not os.path.isfile(vocabulary):
            raise FileNotFoundError(
                f"`vocabulary` must be a file with one token per line. The file {vocabulary!r} does not exist."
            )
        return keras_nlp.models.BertTokenizer(vocabulary, lowercase=bool(lowercase))
    if name is None or name in _NETWORKS:
        raise ValueError(
            f"{name} is a network without a vocabulary. Pass `vocabulary`, the file of its tokens (--vocabulary in the "
            "scripts)."
        )
    return _from_preset(keras_nlp.models.BertTokenizer, name)


def check_vocabulary(tokenizer, model):
    """Raise `ValueError` unless a tokenizer has as many tokens as a network has embeddings."""
    expected = next(layer for layer in model._flatten_layers() if layer.name == "token_embedding").input_dim
    if tokenizer.vocabulary_size() != expected:
        raise ValueError(
            f"The vocabulary must have {expected} tokens, as the weights of {model.name} do. Received: "
            f"{tokenizer.vocabulary_size()} tokens. Use the vocabulary that the network was trained with."
        )


def _build_encoder(name, num_layers, dtype):
    """Build a new encoder, or copy the first `num_layers` layers of a preset's, `None` for all.

    Raises:
        ValueError: If there is no such network, it has fewer layers, or `num_layers` is less than 1.
    """
    import keras_nlp

    if name in _NETWORKS:
        num_layers = _validate_num_layers(name, num_layers, _NETWORKS[name]["num_layers"])
        kwargs = {**_NETWORKS[name], "num_layers": num_layers}
        return keras_nlp.models.BertBackbone(**kwargs, dtype=dtype, name="backbone")
    preset = _from_preset(keras_nlp.models.BertBackbone, name, dtype=dtype)
    encoder = _build_encoder_like(preset, _validate_num_layers(name, num_layers, preset.num_layers), dtype)
    _copy_weights(preset, encoder)
    return encoder


def _from_preset(cls, name, **kwargs):
    """Load the network or the tokenizer of a preset.

    Raises:
        ImportError: If its files need a package that is not installed: `safetensors` for Hugging Face's.
        ValueError: If there is none, in one line.
    """
    try:
        return cls.from_preset(name, **kwargs)
    except ImportError as error:
        raise ImportError(
            f"{name!r} requires a package that is not installed. {' '.join(str(error).split())}"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is neither a network nor a preset that keras-nlp can load. Expected one of "
            f"{', '.join(_NETWORKS)}, a preset's directory, or its name with network access. "
            f"{' '.join(str(error).split())}"
        ) from error


def _validate_num_layers(name, num_layers, maximum):
    if num_layers is not None and not 1 <= num_layers <= maximum:
        raise ValueError(f"`layers` must be from 1 to {maximum}, the layers of {name}. Received: layers={num_layers}.")
    return maximum if num_layers is None else num_layers


def _build_encoder_like(encoder, num_layers, dtype):
    """Build a new encoder with another number of layers."""
    kwargs = {name: getattr(encoder, name) for name in (*_BASE, "vocabulary_size", "dropout", "num_segments")}
    return type(encoder)(**{**kwargs, "num_layers": num_layers}, dtype=dtype, name="backbone")


def _copy_weights(source, target):
    """Set the weights of the layers of `target` to those of the layers with the same names in `source`."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def _make_classifier(encoder, classes, dropout):
    x = encoder(encoder.input)["pooled_output"]
    x = layers.Activation("linear", name="pooled", dtype=encoder.dtype_policy)(x)
    x = layers.Dropout(dropout, name="classifier_dropout", dtype=encoder.dtype_policy)(x)
    logits = layers.Dense(
        classes,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="logits",
        dtype="float32",  # Softmax and losses of float16 logits can overflow.
    )(x)
    return keras.Model(encoder.input, logits, name=f"bert_{encoder.num_layers}")


def _load_first_layers(model, path, classes, dropout, dtype):
    """Load a file of the same network; or of a deeper one, without its last layers and its head."""
    encoder = model.get_layer("backbone")
    num_layers = _read_num_layers(path)
    if num_layers <= encoder.num_layers:
        load_weights(model, path)
        return
    deeper = _make_classifier(_build_encoder_like(encoder, num_layers, dtype), classes, dropout)
    load_weights(deeper, path)
    _copy_weights(deeper.get_layer("backbone"), encoder)


def _read_num_layers(path):
    """Return the number of transformer layers in a weight file, 0 for a file that `load_weights` will refuse."""
    if not os.path.isfile(path):
        return 0
    try:
        if str(path).endswith(".keras"):
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
                return _count_encoders(io.BytesIO(file.read()))
        return _count_encoders(path)
    except (OSError, RuntimeError, KeyError, zipfile.BadZipFile):
        return 0


def _count_encoders(file):
    names = set()
    with h5py.File(file, "r") as weights:
        weights.visit(lambda name: names.update(re.findall(r"transformer_encoder(?:_\d+)?(?=/|$)", name)))
    return len(names)

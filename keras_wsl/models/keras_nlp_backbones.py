"""Classifiers of sentence pairs on keras-nlp's BERT: Devlin et al., NAACL 2019, https://arxiv.org/abs/1810.04805."""

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
    """The names of the networks that need no preset: a tuple of strings."""
    return tuple(_NETWORKS)


def build(name, classes=3, weights=None, *, layers=None, input_shape=(None,), dtype=None, dropout=0.1):
    """A BERT with a linear head on its pooled first token.

    The first `layers` of a preset are the pre-trained student of PKD, Sun et al., EMNLP 2019,
    https://arxiv.org/abs/1908.09355: embeddings, the first transformer layers and the pooler are the preset's, the head
    is new. With 12 and 3 layers, "bert_base_cased" is the teacher and the student T3 of the WSL paper.

    keras-nlp's BERT has the tanh form of GELU, as Google's code does. PyTorch's checkpoints of Hugging Face were
    trained with the exact one: the outputs of such a preset differ from theirs in the third decimal, until it is
    fine-tuned here. A `BertBackbone` cannot be told to use the other form, nor would a saved one remember it.

    Endpoints, layers' names: `transformer_layer_0` and so on, `pooled`, `logits`.

    Args:
        name: One of `names()`, with new weights; or a preset of keras-nlp, with its weights: a folder, which may be one
            of Hugging Face, or a name such as "bert_base_en", which keras-nlp downloads.
        classes: Integer, the number of logits.
        weights: Path of a `.weights.h5` or `.keras` file of a network that this function has built, with as many layers
            or more, of which the first are taken; `None` for those of the preset.
        layers: Integer, how many transformer layers, the first ones; all by default.
        input_shape: `(length,)`, the longest sequence that it will be given; `(None,)` if that is not known.
        dtype: Policy of all layers but `logits`, which is float32; `None` for the global one.
        dropout: Float, before the head.

    Returns:
        A functional `keras.Model` that maps `{"token_ids", "segment_ids", "padding_mask"}`, int32 `(batch, length)`, to
        logits, `(batch, classes)`.

    Raises:
        FileNotFoundError: If there is no file `weights`.
        ImportError: If a preset's files need a package that is not installed: `safetensors` for Hugging Face's.
        ValueError: If there is no such network, it has fewer layers or shorter sequences, or the file is damaged or of
            another network.
    """
    encoder = _encoder(name, layers, dtype)
    length = input_shape[0]
    if length is not None and length > encoder.max_sequence_length:
        raise ValueError(
            f"{name} takes sequences of {encoder.max_sequence_length} tokens at most. Received: {length}. Make them "
            "shorter (--sequence_length in the scripts)."
        )
    model = _classifier(encoder, classes, dropout)
    if weights is not None:
        _load(model, weights, classes, dropout, dtype)
    return model


def tokenizer(name=None, *, vocabulary=None, lowercase=None):
    """The WordPiece tokenizer of a preset, or of a file of tokens.

    Args:
        name: A preset of keras-nlp: its folder or name.
        vocabulary: Path of a file with a token on each line; overrides the preset's.
        lowercase: Whether its tokens are in lower case; a preset says so itself.

    Returns:
        `keras_nlp.models.BertTokenizer`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If neither is given, there is no such preset, or it has none.
    """
    import keras_nlp

    if vocabulary:
        if not os.path.isfile(vocabulary):
            raise FileNotFoundError(
                f"There is no vocabulary {vocabulary!r}; expected a file with a token on each line."
            )
        return keras_nlp.models.BertTokenizer(vocabulary, lowercase=bool(lowercase))
    if name is None or name in _NETWORKS:
        raise ValueError(
            f"{name} is a network without a vocabulary. Give the file of its tokens (--vocabulary in the scripts)."
        )
    return _from_preset(keras_nlp.models.BertTokenizer, name)


def check_vocabulary(tokenizer, model):
    """Raises ValueError if a tokenizer has not as many tokens as a network has embeddings."""
    expected = next(layer for layer in model._flatten_layers() if layer.name == "token_embedding").input_dim
    if tokenizer.vocabulary_size() != expected:
        raise ValueError(
            f"The vocabulary has {tokenizer.vocabulary_size()} tokens, and the weights of {model.name} are of "
            f"{expected}. Take the vocabulary that they were trained with."
        )


def _encoder(name, count, dtype):
    """A new encoder, or a copy of a preset's: its first `count` layers, `None` for all.

    Raises:
        ValueError: If there is no such network, it has fewer layers, or `count` is less than 1.
    """
    import keras_nlp

    if name in _NETWORKS:
        settings = _NETWORKS[name]
        count = _count(name, count, settings["num_layers"])
        return keras_nlp.models.BertBackbone(**{**settings, "num_layers": count}, dtype=dtype, name="backbone")
    preset = _from_preset(keras_nlp.models.BertBackbone, name, dtype=dtype)
    encoder = _like(preset, _count(name, count, preset.num_layers), dtype)
    _copy(preset, encoder)
    return encoder


def _from_preset(kind, name, **settings):
    """The network or the tokenizer of a preset.

    Raises:
        ImportError: If its files need a package that is not installed: `safetensors` for Hugging Face's.
        ValueError: If there is none, in one line.
    """
    try:
        return kind.from_preset(name, **settings)
    except ImportError as error:
        raise ImportError(f"{name!r} needs a package that is not installed. {' '.join(str(error).split())}") from error
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is no network and no preset that keras-nlp can load. Expected one of {', '.join(_NETWORKS)}, a "
            f"preset's folder, or its name while online. {' '.join(str(error).split())}"
        ) from error


def _count(name, count, layers):
    """How many layers are wanted of so many."""
    if count is not None and not 1 <= count <= layers:
        raise ValueError(f"{name} has {layers} layers. Received: layers={count}.")
    return layers if count is None else count


def _like(encoder, count, dtype):
    """A new encoder of so many layers, else as another."""
    settings = {name: getattr(encoder, name) for name in (*_BASE, "vocabulary_size", "dropout", "num_segments")}
    return type(encoder)(**{**settings, "num_layers": count}, dtype=dtype, name="backbone")


def _copy(source, target):
    """Sets the weights of the layers of `target` to those of the layers of the same names."""
    for layer in target.layers:
        if layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())


def _classifier(encoder, classes, dropout):
    x = encoder(encoder.input)["pooled_output"]
    x = layers.Activation("linear", name="pooled", dtype=encoder.dtype_policy)(x)
    x = layers.Dropout(dropout, name="classifier_dropout", dtype=encoder.dtype_policy)(x)
    logits = layers.Dense(
        classes,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="logits",
        dtype="float32",  # Softmax and losses of float16 logits overflow.
    )(x)
    return keras.Model(encoder.input, logits, name=f"bert_{encoder.num_layers}")


def _load(model, path, classes, dropout, dtype):
    """Loads a file of the same network; of a deeper one, its embeddings, first layers and pooler, and not its head."""
    encoder = model.get_layer("backbone")
    depth = _depth(path)
    if depth <= encoder.num_layers:
        load_weights(model, path)
        return
    deeper = _classifier(_like(encoder, depth, dtype), classes, dropout)
    load_weights(deeper, path)
    _copy(deeper.get_layer("backbone"), encoder)


def _depth(path):
    """How many transformer layers a weight file holds; 0 for one that `load_weights` will refuse."""
    if not os.path.isfile(path):
        return 0
    try:
        if str(path).endswith(".keras"):
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
                return _encoders(io.BytesIO(file.read()))
        return _encoders(path)
    except (OSError, RuntimeError, KeyError, zipfile.BadZipFile):
        return 0


def _encoders(file):
    found = set()
    with h5py.File(file, "r") as weights:
        weights.visit(lambda name: found.update(re.findall(r"transformer_encoder(?:_\d+)?(?=/|$)", name)))
    return len(found)

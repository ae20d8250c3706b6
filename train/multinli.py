"""Train a BERT on MultiNLI, on labels only or with a deeper BERT as its teacher.

    python train/multinli.py --method=none --student=bert_base_en --learning_rate=2e-5 --output_dir=runs/bert_12
    python train/multinli.py --teacher=bert_base_en --teacher_weights=runs/bert_12/student.keras \\
        --student=bert_base_en --student_layers=3 --method=wsl --output_dir=runs/bert_3-wsl

--student is a keras-nlp preset (name or directory) with its weights, cut to --student_layers; or bert_base_cased or
bert_base_uncased without weights, which need --vocabulary. With --student_weights, a file of a fine-tuned network, the
student starts from its first layers. The defaults are the recipe of the PKD paper: 4 epochs of batches of 32, AdamW
with learning rate 5e-5, linear warmup and decay; hours on a GPU. Published, BERT-12 to its first 3 layers:

    WSL paper (teacher 83.57):  labels 75.06, KD 75.50, WSL 76.28
    PKD's code:                 labels 74.94, KD 75.64, PKD 77.61
"""

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data, training
from keras_wsl.models import keras_nlp_backbones


def make_tokenizer(config):
    """Return the tokenizer of the student."""
    return keras_nlp_backbones.tokenizer(config.student, vocabulary=config.vocabulary, lowercase=config.lowercase)


def load_splits(config, values):
    """Return the `data.MultiNLI` that the settings and the parsed flags name."""
    return data.multinli(
        values.data_dir, tokenizer=make_tokenizer(config), length=config.sequence_length, download=values.download
    )


def check_network(config, model):
    """Raise `ValueError` if a network was trained with another vocabulary."""
    keras_nlp_backbones.check_vocabulary(make_tokenizer(config), model)


def train(config):
    """Train one network and return its results."""

    def build(name, **kwargs):
        model = keras_nlp_backbones.build(name, **kwargs)
        check_network(config, model)
        return model

    values = flags.FLAGS
    splits, source = load_splits(config, values), values.data_dir or "multi_nli or glue/mnli of TFDS"
    return training.run(
        config,
        splits,
        values.output_dir,
        build=build,
        extra_test_sets={"mismatched": splits.mismatched},
        resume=values.resume,
        source=source,
    )


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "TFDS directory with glue/mnli or multi_nli.")
    flags.DEFINE_bool("download", False, "Let TFDS download glue/mnli.")
    training.cli.main(train, training.MultiNLIConfig)

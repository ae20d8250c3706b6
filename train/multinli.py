"""Trains a BERT on MultiNLI: on labels alone, or a shallow one with a deep one as its teacher.

    python train/multinli.py --method=none --student=bert_base_en --learning_rate=2e-5 --output_dir=runs/bert_12
    python train/multinli.py --teacher=bert_base_en --teacher_weights=runs/bert_12/student.keras \
        --student=bert_base_en --student_layers=3 --method=wsl --output_dir=runs/bert_3-wsl

`--student` is a preset of keras-nlp, a folder or a name, with its weights, of which `--student_layers` takes the
first; or `bert_base_cased` or `bert_base_uncased`, without weights and with `--vocabulary`. With `--student_weights`, a
file of a fine-tuned network, the student starts from its first layers. The defaults are the recipe of the PKD paper:
4 epochs of batches of 32, AdamW at 5e-5 with a linear warm-up and decay; hours on a GPU.
Paper, BERT-12 (83.57) to its first 3 layers: labels 75.06, KD 75.50, WSL 76.28; PKD's code: 74.94, KD 75.64, PKD 77.61.
"""

import before_tensorflow  # noqa: F401
from absl import flags

from keras_wsl import data
from keras_wsl.models import keras_nlp_backbones
from keras_wsl.training import cli, config, runner


def tokenizer(wanted):
    """The tokenizer of a run's settings."""
    return keras_nlp_backbones.tokenizer(wanted.student, vocabulary=wanted.vocabulary, lowercase=wanted.lowercase)


def splits(wanted, values):
    """The data of a run: `data.MultiNLI`, from its settings and the parsed flags."""
    return data.multinli(
        values.data_dir, tokenizer=tokenizer(wanted), length=wanted.sequence_length, download=values.download
    )


def check(wanted, model):
    """Raises ValueError if a network was trained with another vocabulary than the settings'."""
    keras_nlp_backbones.check_vocabulary(tokenizer(wanted), model)


def train(wanted):
    """One run, and what is said of it at the end."""

    def build(name, **config):
        model = keras_nlp_backbones.build(name, **config)
        check(wanted, model)
        return model

    values = flags.FLAGS
    pairs, source = splits(wanted, values), values.data_dir or "multi_nli or glue/mnli of TFDS"
    also = {"mismatched": pairs.mismatched}
    return runner.run(wanted, pairs, values.output_dir, build=build, also=also, resume=values.resume, source=source)


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "A TFDS folder with glue/mnli or multi_nli.")
    flags.DEFINE_bool("download", False, "Whether TFDS may download glue/mnli.")
    cli.main(train, config.MultiNLI)

"""Writes the weights of a PyTorch network as a `.weights.h5` file, which `keras_wsl.models.build` reads.

    python train/convert_weights.py --network=imagenet_resnet34 --source=resnet34.pth --out=resnet34.weights.h5

The source is a `.pth` or `.pt` file, such as torchvision's of https://pytorch.org/vision/stable/models.html (the
papers' teachers are its first weights, IMAGENET1K_V1), a `.safetensors` or an `.npz` file with torchvision's names.
"""

import sys

import numpy as np
from absl import app, flags

from keras_wsl import files, models
from keras_wsl.models import torchvision


def main(argv):
    """Runs what the flags say; an error of the user's is one line, and exit status 2."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}.")
    wanted = flags.FLAGS
    try:
        model = models.build(wanted.network, classes=wanted.classes)
        torchvision.load_torchvision(model, wanted.source)
        models.save_weights(model, wanted.out, dtype="float32")
    except (ValueError, FileNotFoundError, ImportError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(f"{wanted.network}: {count:,} parameters, sha256 {files.sha256(wanted.out)}: {wanted.out}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("network", None, "The network's name, as in keras_wsl.models.names().", required=True)
    flags.DEFINE_string("source", None, "A .pth, .pt, .safetensors or .npz file of PyTorch's arrays.", required=True)
    flags.DEFINE_string("out", None, "The .weights.h5 file to write.", required=True)
    flags.DEFINE_integer("classes", 1000, "The number of logits.", lower_bound=1)
    app.run(main)

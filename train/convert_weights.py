"""Write the weights of a PyTorch network as a `.weights.h5` file, which `keras_wsl.models.build` reads.

    python train/convert_weights.py --network=imagenet_resnet34 --source=resnet34.pth --output=resnet34.weights.h5

The source is a `.pth` or `.pt` file, such as torchvision's of https://pytorch.org/vision/stable/models.html (the
papers' teachers are its first weights, IMAGENET1K_V1), a `.safetensors` or an `.npz` file with torchvision's names.
"""

import before_tensorflow  # noqa: F401
import numpy as np
from absl import flags

from keras_wsl import files, models
from keras_wsl.models import convert_torchvision
from keras_wsl.training import cli


def main():
    """Convert the weights and print their size."""
    values = flags.FLAGS
    model = models.build(values.network, classes=values.classes)
    convert_torchvision.load_torchvision(model, values.source)
    models.save_weights(model, values.output, dtype="float32")
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(f"{values.network}: {count:,} parameters, sha256 {files.sha256(values.output)}: {values.output}")


if __name__ == "__main__":
    flags.DEFINE_string("network", None, "The network's name, as in keras_wsl.models.names().", required=True)
    flags.DEFINE_string("source", None, "A .pth, .pt, .safetensors or .npz file of PyTorch's arrays.", required=True)
    flags.DEFINE_string("output", None, "The .weights.h5 file to write.", required=True)
    flags.DEFINE_integer("classes", 1000, "The number of logits.", lower_bound=1)
    cli.start(main)

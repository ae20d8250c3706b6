"""Convert the weights of a PyTorch network to a `.weights.h5` file, which `keras_wsl.models.build` reads.

    python train/convert_weights.py --network=imagenet_resnet34 --source=resnet34.pth --output_file=resnet34.weights.h5

The source is a .pth, .pt, .safetensors or .npz file with torchvision's names of arrays, such as the weights at
https://pytorch.org/vision/stable/models.html. The teachers of the papers are torchvision's IMAGENET1K_V1 weights.
"""

import before_tensorflow  # noqa: F401
import numpy as np
from absl import flags

from keras_wsl import files, models
from keras_wsl.models import convert_torchvision
from keras_wsl.training import cli


def main():
    """Convert the file that the flags name."""
    values = flags.FLAGS
    model = models.build(values.network, classes=values.classes)
    convert_torchvision.load_torchvision(model, values.source)
    models.save_weights(model, values.output_file, dtype="float32")
    count = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    print(f"{values.network}: {count:,} parameters, sha256 {files.sha256(values.output_file)}: {values.output_file}")


if __name__ == "__main__":
    flags.DEFINE_string("network", None, "Name of the network, one of keras_wsl.models.names().", required=True)
    flags.DEFINE_string("source", None, "A .pth, .pt, .safetensors or .npz file of PyTorch arrays.", required=True)
    flags.DEFINE_string("output_file", None, "The .weights.h5 file to write.", required=True)
    flags.DEFINE_integer("classes", 1000, "Number of classes.", lower_bound=1)
    cli.start(main)

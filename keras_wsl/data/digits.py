"""The 1,797 handwritten digits of scikit-learn: a data set for tests and first runs."""

import numpy as np

from keras_wsl.data.image_arrays import ImageArrays, Splits


def digits(*, test_fraction=0.25, seed=0):
    """Load gray images, 8 x 8 x 1, of 10 classes. Both splits have the same class proportions, up to one example.

    The values 0 to 16 become `floor(255 v / 16 + 1/2)`: 0 is black, 16 is 255, and all are distinct. Mean and standard
    deviation are those of all training pixels.

    Args:
        test_fraction: Float in `(0, 1)`.
        seed: Integer in `[0, 2**32)`. Each seed gives another split.

    Returns:
        `Splits`, in each of which examples are numbered from 0.

    Raises:
        ValueError: If one of the splits would be empty.
    """
    import sklearn.datasets

    data = sklearn.datasets.load_digits()
    count = round(test_fraction * len(data.target))
    if not 0 < count < len(data.target):
        raise ValueError(
            f"`test_fraction` must leave examples in both splits. Received: test_fraction={test_fraction!r}."
        )
    images = ((data.images.astype("int64") * 255 + 8) // 16).astype("uint8")[..., None]
    classes = tuple(str(name) for name in data.target_names)
    train, test = ImageArrays(images, data.target, classes, (0.0,), (1.0,)).stratified_split(count, seed=seed)
    mean, std = np.mean(train.images / 255), np.std(train.images / 255)
    return Splits(*(ImageArrays(part.images, part.labels, classes, (mean,), (std,)) for part in (train, test)))

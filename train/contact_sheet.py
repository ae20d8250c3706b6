"""The examples with the highest and the lowest WSL weights of a trained student and its teacher, as one picture.

    python train/contact_sheet.py --data_dir=cifar100.npz --output_dir=runs/sheet runs/wsl

reads a finished run of train/cifar100.py with a teacher, weighs the clean training examples, and writes
`contact_sheet.png` (images with class, weight, and the cross-entropies of student and teacher) and `contact_sheet.csv`
into --output_dir. Seconds to minutes: one forward pass of each network.
"""

import pathlib

import before_tensorflow  # noqa: F401
import keras
import matplotlib
import numpy as np
from absl import flags

import jobs
from keras_wsl import ops, weighting
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, cli, plots

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLUMNS = 8  # Images beside each other.


def weigh(pair):
    """WSL's weight and both cross-entropies of each example: three float32 arrays."""
    labels, to_numpy = pair.examples.labels, keras.ops.convert_to_numpy
    student, teacher = (keras.ops.convert_to_tensor(z) for z in (pair.student_logits, pair.teacher_logits))
    return (
        to_numpy(weighting.wsl(labels, student, teacher)),
        to_numpy(ops.cross_entropy(labels, student)),
        to_numpy(ops.cross_entropy(labels, teacher)),
    )


def rows_of(pair, count):
    """So many examples of either end, the most extreme first: dicts, with the position in `pair.examples`."""
    weights, student, teacher = weigh(pair)
    # Many weights may be 1 in float32: among those, what the student finds hardest comes first.
    order = np.lexsort((-student, -weights))
    count = min(count, len(order) // 2)
    rows = []
    for end, positions in (("highest", order[:count]), ("lowest", order[::-1][:count])):
        for position in map(int, positions):
            rows.append(
                {
                    "end": end,
                    "position": position,
                    "index": int(pair.examples.index[position]),
                    "class": pair.examples.classes[pair.examples.labels[position]],
                    "weight": float(weights[position]),
                    "student_cross_entropy": float(student[position]),
                    "teacher_cross_entropy": float(teacher[position]),
                }
            )
    return rows


def plot(rows, images, title, path):
    """Two blocks of images, those with the highest weights above."""
    ends = [[row for row in rows if row["end"] == end] for end in ("highest", "lowest")]
    lines = -(-len(ends[0]) // COLUMNS)
    figure = plt.figure(figsize=(1.5 * COLUMNS, 4.0 * lines + 1.2), layout="constrained")
    figure.suptitle(title)
    for part, block in zip(figure.subfigures(2, 1), ends):
        part.suptitle(f"{block[0]['end']} weights of the soft labels", fontsize="medium")
        axes = part.subplots(lines, COLUMNS, squeeze=False).ravel()
        for axis in axes:
            axis.axis("off")
        for axis, row in zip(axes, block):
            image = images[row["position"]]
            axis.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None, vmin=0, vmax=255)
            axis.set_title(
                f"{row['class']}\nω {row['weight']:.3g}\nCE {row['student_cross_entropy']:.2g}, teacher "
                f"{row['teacher_cross_entropy']:.2g}",
                fontsize=7,
            )
    plots.save(figure, path)
    plt.close(figure)


def run(folder, values):
    """Writes the two files of one run.

    Raises:
        FileNotFoundError: There is no finished run, or a file of it or of the data is missing.
        ValueError: The run has no teacher.
    """
    if not values.output_dir:
        raise ValueError("--output_dir is missing: name a folder for the files, such as --output_dir=runs/sheet.")
    pair = jobs.pair(folder, jobs.splits_of(values.data_dir), values.split)
    rows, out, wanted = rows_of(pair, values.count), pathlib.Path(values.output_dir), pair.config
    make_directory(out)
    artifacts.write_csv(out / "contact_sheet.csv", rows)
    title = f"{wanted.teacher} to {wanted.student}, {wanted.method}, {len(pair.examples)} examples"
    plot(rows, pair.examples.images, title, out / "contact_sheet.png")


if __name__ == "__main__":
    flags.DEFINE_string("data_dir", None, "As of cifar100.py; digits for those of scikit-learn.", required=True)
    flags.DEFINE_string("output_dir", "", "Folder of the files; made if it is missing.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Of which examples.")
    flags.DEFINE_integer("count", 16, "Examples of either end.", lower_bound=1)
    cli.start(lambda folder: run(folder, flags.FLAGS), "the folder of one run")

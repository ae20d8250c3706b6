"""Contact sheet of the examples with the highest and the lowest WSL weights of a trained student and its teacher.

    python train/reproduce.py --study=contact_sheet --data_dir=cifar100.npz --output_dir=runs/sheet --run=runs/wsl

The run is a finished one of train/cifar100.py with a teacher. Weights are those of the unaugmented training examples.
Writes `contact_sheet.png` (images with class, weight, and the cross-entropies of student and teacher) and
`contact_sheet.csv` to --output_dir. It takes seconds to minutes: one forward pass of each network.
"""

import pathlib

import keras
import matplotlib
import numpy as np
from absl import flags

from keras_wsl import ops, weighting
from keras_wsl.files import make_directory
from keras_wsl.training import artifacts, plots
from reproduction import launcher

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLUMNS = 8  # Images per row.


def compute_weights(pair):
    """Return WSL's weight and both cross-entropies of each example: three float32 arrays."""
    labels, to_numpy = pair.examples.labels, keras.ops.convert_to_numpy
    student, teacher = (keras.ops.convert_to_tensor(z) for z in (pair.student_logits, pair.teacher_logits))
    return (
        to_numpy(weighting.wsl(labels, student, teacher)),
        to_numpy(ops.cross_entropy(labels, student)),
        to_numpy(ops.cross_entropy(labels, teacher)),
    )


def select_rows(pair, count):
    """Return rows of the `count` examples with the highest and the lowest weights, the most extreme first."""
    weights, student, teacher = compute_weights(pair)
    # Many weights may be 1 in float32: among those, the highest cross-entropy of the student comes first.
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
    """Plot two blocks of images: highest weights, then lowest."""
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
    """Write the two files of one run.

    Raises:
        FileNotFoundError: If there is no finished run, or a file of it or of the data is missing.
        ValueError: If the run has no teacher.
    """
    if not values.output_dir:
        raise ValueError("--output_dir is missing: pass a directory for the files, such as --output_dir=runs/sheet.")
    pair = launcher.load_logits(folder, launcher.load_splits(values.data_dir), values.split)
    rows, out, settings = select_rows(pair, values.count), pathlib.Path(values.output_dir), pair.config
    make_directory(out)
    artifacts.write_csv(out / "contact_sheet.csv", rows)
    title = f"{settings.teacher} to {settings.student}, {settings.method}, {len(pair.examples)} examples"
    plot(rows, pair.examples.images, title, out / "contact_sheet.png")


def define_flags():
    """Define the flags of this study."""
    flags.DEFINE_string("run", None, "Directory of the run.", required=True)
    flags.DEFINE_string("data_dir", None, "See cifar100.py; or digits, those of scikit-learn.", required=True)
    flags.DEFINE_string("output_dir", "", "Directory of the files; made if it is missing.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Which examples.")
    flags.DEFINE_integer("count", 16, "Examples with the highest, and with the lowest, weights.", lower_bound=1)


def main():
    """Write the two files."""
    run(flags.FLAGS.run, flags.FLAGS)

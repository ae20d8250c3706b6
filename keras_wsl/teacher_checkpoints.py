"""Checkpoints of a teacher for online distillation: Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245.

A teacher's predictions become more complex during its training. A student that is trained with its successive
checkpoints gets targets that it can learn at that time.
"""

import pathlib
import re

UNITS = ("epochs", "steps")
_NAME = re.compile(r"(epoch|step)-(\d+)\.weights\.h5")


def file_name(count, unit="epochs"):
    """Return the file name of the checkpoint after `count` epochs or steps, such as `"epoch-000012.weights.h5"`."""
    check_unit(unit)
    return f"{unit.removesuffix('s')}-{count:0{6 if unit == 'epochs' else 9}d}.weights.h5"


def check_unit(unit, name="unit"):
    """Raise `ValueError` if a unit is neither `"epochs"` nor `"steps"`."""
    if unit not in UNITS:
        raise ValueError(f"`{name}` must be one of {UNITS}. Received: {name}={unit!r}.")


class Checkpoints:
    """The weight files in a directory that `callbacks.PeriodicCheckpoint` wrote.

    Args:
        directory: Path of the directory.
        unit: `"epochs"` or `"steps"`. Files of the other unit are ignored.

    Attributes:
        paths: Dict of the number of epochs or steps to the path of the checkpoint.

    Raises:
        FileNotFoundError: If the directory does not exist, or has no such file.
        ValueError: If the unit is unknown.
    """

    def __init__(self, directory, unit="epochs"):
        check_unit(unit)
        self.directory, self.unit = pathlib.Path(directory), unit
        matches = [_NAME.fullmatch(path.name) for path in self.directory.glob("*.weights.h5") if path.is_file()]
        counts = sorted(int(match[2]) for match in matches if match and f"{match[1]}s" == unit)
        # `callbacks.PeriodicCheckpoint` did not write a file with fewer zeros or other digits in its name.
        counts = [count for count in counts if (self.directory / file_name(count, unit)).is_file()]
        self.paths = {count: self.directory / file_name(count, unit) for count in counts}
        if not counts:
            raise FileNotFoundError(
                f"{self.directory} has no checkpoints such as {file_name(1, unit)}. Train the teacher with "
                "callbacks.PeriodicCheckpoint, or with --checkpoint_every=1 in the scripts."
            )

    @property
    def latest(self):
        """The path of the last checkpoint: the fully trained teacher."""
        return self.paths[max(self.paths)]

    def checkpoint_at(self, count, update_freq=1):
        r"""Return the path of the checkpoint to use after `count` epochs or steps of the student.

        The teacher is ahead: for $e$ finished epochs and a period of $m$, the checkpoint is that after
        $m (\lfloor e / m \rfloor + 1)$ epochs, or if it is missing the next one, or the last.

        Args:
            count: Integer, the number of epochs or steps that the student has been trained.
            update_freq: Positive integer, the period.
        """
        minimum = update_freq * (count // update_freq + 1)
        return self.paths[min((saved for saved in self.paths if saved >= minimum), default=max(self.paths))]

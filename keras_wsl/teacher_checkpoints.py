"""A teacher's successive checkpoints: online distillation, Harutyunyan et al., ICLR 2023, https://arxiv.org/abs/2301.12245.

What a teacher predicts grows more complex while it trains. A student that follows its checkpoints is asked for no more
than it can learn by then.
"""

import pathlib
import re

UNITS = ("epochs", "steps")
_NAME = re.compile(r"(epoch|step)-(\d+)\.weights\.h5")


def file_name(count, unit="epochs"):
    """The name of the checkpoint after so many epochs, or steps: `"epoch-000012.weights.h5"`."""
    check_unit(unit)
    return f"{unit.removesuffix('s')}-{count:0{6 if unit == 'epochs' else 9}d}.weights.h5"


def check_unit(unit):
    """A `ValueError` where a unit is neither epochs nor steps."""
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is unknown. Expected one of {UNITS}.")


class Checkpoints:
    """The weight files that `callbacks.Checkpoints` wrote into a folder, by their number of epochs or steps.

    Args:
        folder: Path of the folder.
        unit: `"epochs"` or `"steps"`: which of its files count.

    Raises:
        FileNotFoundError: If there is no such folder, or no such file in it.
        ValueError: If the unit is unknown.
    """

    def __init__(self, folder, unit="epochs"):
        check_unit(unit)
        self.folder, self.unit = pathlib.Path(folder), unit
        matches = [_NAME.fullmatch(path.name) for path in self.folder.glob("*.weights.h5") if path.is_file()]
        counts = sorted(int(match[2]) for match in matches if match and f"{match[1]}s" == unit)
        # A name with fewer zeros, or other digits than these, is not one that `callbacks.Checkpoints` wrote.
        counts = [count for count in counts if (self.folder / file_name(count, unit)).is_file()]
        self.paths = {count: self.folder / file_name(count, unit) for count in counts}
        if not counts:
            raise FileNotFoundError(
                f"{self.folder} has no checkpoints such as {file_name(1, unit)}. Train the teacher with "
                "callbacks.Checkpoints, or with --checkpoint_every=1 in the scripts."
            )

    @property
    def last(self):
        """The path of the last one: the teacher as it is when it is trained."""
        return self.paths[max(self.paths)]

    def teaching(self, done, every=1):
        r"""The path of the checkpoint that teaches a student after so many epochs or steps of its own.

        The teacher goes first: for $e$ done and a period of $m$, its checkpoint of $m (\lfloor e / m \rfloor + 1)$, or
        the next that there is, or the last.

        Args:
            done: Integer, how many epochs or steps the student has been trained.
            every: Positive integer, the period.
        """
        wanted = every * (done // every + 1)
        return self.paths[min((count for count in self.paths if count >= wanted), default=max(self.paths))]

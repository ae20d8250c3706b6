"""A CSV file with one row per epoch, rewritten atomically after each epoch."""

import csv
import io
import os
import pathlib
import warnings

from keras_wsl.files import atomic_write, check_regular, make_directory


class EpochCSV:
    """A table with one row per epoch.

    A resumed run keeps the rows of the epochs before it, and replaces those of the epochs that it trains again.

    Args:
        path: Path of the file. Missing parent directories are created.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        make_directory(self.path.parent)
        self.rows = []

    def read(self):
        """Read the existing rows. If the file is damaged, warn and start without rows."""
        if not os.path.lexists(self.path):
            return
        try:
            with open(check_regular(self.path), newline="") as file:
                self.rows = [{**row, "epoch": int(row["epoch"])} for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError, FileNotFoundError, csv.Error) as error:
            self.rows = []
            warnings.warn(f"{self.path} is damaged ({error}). It will be overwritten.", stacklevel=3)

    def put(self, epoch, row):
        """Set the row of an epoch, drop the rows of later epochs, and write the file with the columns of this row."""
        self.write([old for old in self.rows if old["epoch"] < epoch] + [{"epoch": epoch, **row}])

    def write(self, rows):
        """Replace all rows, and write the file."""
        self.rows = rows
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[-1]), restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)  # It may have been removed since.
        atomic_write(self.path, lambda file: file.write(text.getvalue().encode()))

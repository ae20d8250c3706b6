"""A CSV file with a row for each epoch, whole after every one of them."""

import csv
import io
import os
import pathlib
import warnings

from keras_wsl.files import atomic_write, check_regular, make_directory


class EpochCSV:
    """Rows by epoch. A resumed run goes on with those before it, and replaces those of the epochs it trains again.

    Args:
        path: The file; its folder is made if it is missing.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        make_directory(self.path.parent)
        self.rows = []

    def read(self):
        """Read the rows that are there; of a damaged file none, with a warning."""
        if not os.path.lexists(self.path):
            return
        try:
            with open(check_regular(self.path), newline="") as file:
                self.rows = [{**row, "epoch": int(row["epoch"])} for row in csv.DictReader(file)]
        except (ValueError, KeyError, TypeError, FileNotFoundError, csv.Error) as error:
            self.rows = []
            warnings.warn(f"{self.path} is damaged ({error}) and is written again.", stacklevel=3)

    def put(self, epoch, row):
        """Set the row of an epoch, drop later ones, and write the file; columns are those of this row."""
        self.write([old for old in self.rows if old["epoch"] < epoch] + [{"epoch": epoch, **row}])

    def write(self, rows):
        """Set all rows, and write the file."""
        self.rows = rows
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[-1]), restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)  # Somebody may have removed it meanwhile.
        atomic_write(self.path, lambda file: file.write(text.getvalue().encode()))

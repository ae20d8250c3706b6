"""A CSV file with a row for each epoch, whole after every one of them."""

import csv
import io
import pathlib

from keras_wsl.files import make_folder, write_atomically


class EpochTable:
    """Rows by epoch. A resumed run goes on with those before it, and replaces those of the epochs it trains again.

    Args:
        path: The file; its folder is made if it is missing.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        make_folder(self.path.parent)
        self.rows = []

    def read(self):
        """Reads the rows that are there."""
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = [{**row, "epoch": int(row["epoch"])} for row in csv.DictReader(file)]

    def put(self, epoch, row):
        """Sets the row of an epoch, drops later ones, and writes the file; columns are those of this row."""
        self.rows = [old for old in self.rows if old["epoch"] < epoch] + [{"epoch": epoch, **row}]
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(self.rows[-1]), restval="", extrasaction="ignore")
        table.writeheader()
        table.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)  # Somebody may have removed it meanwhile.
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))

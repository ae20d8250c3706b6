"""Runs a script of train/ that also knows the network `tiny`: `python -m tests.script_child cifar100.py FLAGS`."""

import runpy
import sys

from tests.common import TRAIN

sys.argv = [str(TRAIN / sys.argv[1]), *sys.argv[2:]]
sys.path.insert(0, str(TRAIN))  # As Python does for the script that it starts with.
runpy.run_path(sys.argv[0], run_name="__main__")

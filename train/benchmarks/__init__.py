"""Measurements: the tangent kernel, the methods, the step against its alternatives, and what runs withstand."""

import pathlib

SCRIPT = pathlib.Path(__file__).parents[1] / "benchmark.py"  # What runs each suite.

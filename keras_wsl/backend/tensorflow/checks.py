"""Checks inside a traced step."""

import tensorflow as tf


def check_range(name, values, limit):
    """Return `values` after a check that all are in [0, limit). An error stops the step. XLA removes the check."""
    in_range = tf.reduce_all((values >= 0) & (values < limit))
    assertion = tf.debugging.Assert(in_range, [f"{name} must be in [0, {limit}). Received:", values], 16)
    with tf.control_dependencies([assertion] if assertion is not None else []):
        return tf.identity(values)

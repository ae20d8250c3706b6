"""The training step where Keras's own does."""


class DefaultTrainer:
    """JAX and Torch: Keras's own step, which calls `compute_loss` and `compute_metrics`."""

    def _check_devices(self):
        """Nothing: what differs between devices is TensorFlow's."""

    def _check_range(self, what, values, limit):
        """`values` as they are; the loss of an example out of range is NaN."""
        return values

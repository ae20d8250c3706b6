"""The logs of each epoch as TensorBoard scalars."""

import keras

from keras_wsl.callbacks.summary_writer import SummaryWriter


class TensorBoardScalars(keras.callbacks.Callback):
    """Write the logs of each epoch to TensorBoard on any backend; Keras's `TensorBoard` requires TensorFlow.

    Put it after callbacks that add to the logs. The first epoch is step 1.

    Args:
        directory: Path of the directory of the event file.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
    """

    def __init__(self, directory):
        super().__init__()
        self.events = SummaryWriter(directory)

    def on_epoch_end(self, epoch, logs=None):
        """Write one scalar per log entry."""
        for name, value in (logs or {}).items():
            self.events.scalar(name, value, epoch + 1)
        self.events.flush()

    def on_train_end(self, logs=None):
        """Close the event file."""
        self.events.close()

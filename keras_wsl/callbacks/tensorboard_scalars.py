"""Every epoch's logs as TensorBoard scalars."""

import keras

from keras_wsl.callbacks.summary_writer import SummaryWriter


class TensorBoardScalars(keras.callbacks.Callback):
    """Writes the logs of every epoch to TensorBoard, on any backend; Keras's `TensorBoard` needs TensorFlow.

    Put it behind callbacks that add to the logs. The first epoch is step 1.

    Args:
        log_dir: Folder of the events file.

    Raises:
        ImportError: If the package `tensorboard` is not installed.
    """

    def __init__(self, log_dir):
        super().__init__()
        self.events = SummaryWriter(log_dir)

    def on_epoch_end(self, epoch, logs=None):
        """Writes one scalar for each entry."""
        for name, value in (logs or {}).items():
            self.events.scalar(name, value, epoch + 1)
        self.events.flush()

    def on_train_end(self, logs=None):
        """Ends the file."""
        self.events.close()

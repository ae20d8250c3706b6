"""Handling of signals that end a process: the state is saved first, and then the run ends."""

import contextlib
import os
import signal
import threading

# Ctrl-C, the signal of schedulers before they kill, and the closing of the terminal, which Windows does not have.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class PreemptedError(Exception):
    """Training was ended by a signal, and its state is saved.

    Args:
        message: String, what was saved.
        number: The signal that was received.

    Attributes:
        status: Integer, the exit status that a shell reports for a process ended by this signal: 130 for SIGINT, 129
            for SIGHUP, 143 for SIGTERM.
    """

    def __init__(self, message, number=signal.SIGTERM):
        super().__init__(message)
        self.status = 128 + number


class PreemptionHandler:
    """A context manager that records SIGINT, SIGTERM and SIGHUP instead of ending the process at once.

    ```python
    with PreemptionHandler() as handler:
        model.fit(..., callbacks=[ExactBackupAndRestore(..., preemption_handler=handler), ...])
    ```

    Before its next step, `ExactBackupAndRestore` saves and raises `PreemptedError`. A second SIGINT raises
    `KeyboardInterrupt` at once, and a third one ends the process. A signal that was ignored before, such as SIGHUP with
    `nohup`, is still ignored. Python handles signals in the main thread only: in another thread nothing changes.

    Attributes:
        requested: Whether a signal was received.
        number: The first signal that was received.
        repeated: Whether SIGINT was received again.
    """

    def __init__(self):
        self.requested, self.number, self.repeated = False, signal.SIGTERM, False
        self._previous_handlers = {}

    @property
    def name(self):
        """The name of the first signal that was received, such as `"SIGINT"`."""
        return signal.Signals(self.number).name

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's.
                    self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if number == signal.SIGINT and self.requested and self.number == number:
            self.repeated = True
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self.number = True, number
        if number != signal.SIGINT:
            _leave_closed_terminal()


def _leave_closed_terminal():
    """Redirect standard output and errors to null if their terminal is closed: a progress bar would fail there."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)

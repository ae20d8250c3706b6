"""Signals that ask a process to end: the state is saved first, and then the run ends."""

import contextlib
import os
import signal
import threading

# Ctrl-C; what schedulers send before they kill; the end of the terminal, which Windows does not have.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class PreemptedError(Exception):
    """Training was asked to end, and its state is saved.

    Args:
        message: What was saved, a string.
        number: The signal that asked for it.

    Attributes:
        status: Integer, what a shell shows of a process that this signal has ended: 130 for SIGINT, 129 for SIGHUP,
            143 for SIGTERM.
    """

    def __init__(self, message, number=signal.SIGTERM):
        super().__init__(message)
        self.status = 128 + number


class PreemptionHandler:
    """Notes SIGINT, SIGTERM and SIGHUP while it is entered, instead of ending the process at once.

    ```python
    with PreemptionHandler() as termination:
        model.fit(..., callbacks=[Backup(..., termination=termination), ...])
    ```

    Before its next step `Backup` then saves and raises `PreemptedError`. A second SIGINT raises `KeyboardInterrupt` at
    once, and a third one ends the process. A signal that was ignored before, such as SIGHUP under `nohup`, stays
    ignored. Python handles signals in the main thread only: in another thread nothing changes.

    Attributes:
        asked: Whether a signal was received.
        number: The first signal that was received.
        repeated: Whether SIGINT was received again.
    """

    def __init__(self):
        self.asked, self.number, self.repeated = False, signal.SIGTERM, False
        self._before = {}

    @property
    def name(self):
        """The name of the signal that was received first, such as `"SIGINT"`."""
        return signal.Signals(self.number).name

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's.
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if number == signal.SIGINT and self.asked and self.number == number:
            self.repeated = True
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.number = True, number
        if number != signal.SIGINT:
            _leave_closed_terminal()


def _leave_closed_terminal():
    """Sends standard output and errors nowhere if their terminal is gone, as a progress bar would fail there."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

"""SIGTERM, which schedulers send before they kill: the state is saved first, and then the run ends."""

import signal
import threading


class Terminated(Exception):
    """Training was asked to end, and its state is saved."""


class Termination:
    """Notes SIGTERM for as long as it is entered, in place of the process's end at once.

    ```python
    with Termination() as termination:
        model.fit(..., callbacks=[Backup(..., termination=termination), ...])
    ```

    Before its next step `Backup` then saves and raises `Terminated`. Python hears signals in the main thread alone:
    in another one nothing changes.
    """

    status = 128 + signal.SIGTERM  # What a shell shows of a process that this signal has ended.

    def __init__(self):
        self.asked = False

    def __enter__(self):
        self._here = threading.current_thread() is threading.main_thread()
        if self._here:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error):
        if self._here:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number, frame):
        self.asked = True

"""Locks of files, which the system releases when a process ends."""

import contextlib
import errno
import os
import pathlib
import stat

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

# Do not follow a symbolic link, and do not wait for a FIFO. Windows has neither flag.
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def file_lock(path):
    """Try to acquire a lock that one process holds at a time: `with file_lock(path) as acquired`.

    The locks of a killed process are released.

    Args:
        path: Path of the lock's file, which exists only while the lock is held. The content of an existing file is not
            changed until the file is removed with the lock.

    Yields:
        Boolean. False at once if another process or thread holds the lock. True if the system or the file system has
        no such locks.

    Raises:
        ValueError: If the path is a symbolic link, a directory or anything else than a regular file.
    """
    if fcntl is None:
        yield True
        return
    while True:
        with _open_lock_file(path) as file:
            if try_lock(file) is False:
                yield False
                return
            if not is_at(file, path):  # The previous holder has removed this file since it was opened.
                continue
            try:
                yield True
            finally:
                pathlib.Path(path).unlink(missing_ok=True)
            return


@contextlib.contextmanager
def _open_lock_file(path):
    """Open a lock's file without following a link or changing its content, and yield the descriptor."""
    error = ValueError(f"{path} must be a regular file, because it is a lock. Received: something else. Remove it.")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
    except OSError as cause:
        if cause.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # A link, a directory, a socket.
            raise error from cause
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise error
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(file):
    """Try to lock an open file: True, False if another process or thread holds it, `None` if there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # Such as a network file system without locks.
        return None
    return True


def is_at(file, path):
    """Return whether a path leads to an open file, or to a descriptor's file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file if isinstance(file, int) else file.fileno()), status)

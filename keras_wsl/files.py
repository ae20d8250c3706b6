"""Atomic writes: a file or directory is either complete or absent."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time

from keras_wsl.file_lock import NO_FOLLOW, fcntl, is_at, try_lock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"(?P<name>.+)\.[0-9a-f]+\.writing", re.DOTALL)
_REPLACED = "before"  # In a temporary directory: the directory that the new one replaces.
_MAX_AGE = 24 * 3600  # Seconds without a change, on a file system without locks.
_TEMPFILE = threading.RLock()  # Held by the thread whose calls of `tempfile` are redirected.


@contextlib.contextmanager
def explain_disk_full(path, size=None):
    """Re-raise an error of a full disk with the name of the file and the free space.

    Args:
        path: Path of what is written in the context. Its directory exists.
        size: Its size in bytes, if known.

    Raises:
        OSError: In place of an error, of any class, that is due to a full disk, a quota or a limit of file sizes.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if number not in DISK_FULL:  # Errors of TensorFlow and h5py have only the system's text.
            number = next((code for code in DISK_FULL if os.strerror(code) in str(error)), None)
        if number is None:
            raise
        free = shutil.disk_usage(pathlib.Path(path).parent).free
        needed = "" if size is None else f"It has {size:,} bytes. "
        raise OSError(
            number,
            f"{os.strerror(number)}: {path} does not fit. {needed}{free:,} bytes are free. Free space and start again: "
            "complete files are kept",
        ) from error


def atomic_write(path, write, size=None):
    """Write a file that gets its name once all of it is on the disk.

    If the process is killed, the previous file remains, and at most a temporary file next to it,
    `NAME.RANDOM.writing`, which the next write of that file or `remove_orphans` removes. If the path is a symbolic
    link, the link is replaced and its target is not changed.

    Args:
        path: Path of the file. Its directory exists.
        write: Function of a binary file open for writing. Its result is ignored.
        size: The file's size in bytes, if known, for the error.

    Raises:
        OSError: If the directory cannot be written to, or the disk is full. The temporary file is removed.
    """
    path = pathlib.Path(path)
    with explain_disk_full(path, size), _temporary(path, _new_file) as (temporary, file):
        write(file)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:  # Windows cannot rename an open file.
            file.close()
        os.replace(temporary, path)  # Before the lock is released, so that no other process removes the file.
        _sync_directory(path.parent)


def copy_atomically(source, path):
    """Copy a file with `atomic_write`."""
    with open(source, "rb") as opened:
        atomic_write(path, lambda file: shutil.copyfileobj(opened, file))


def rename_atomically(written, path):
    """Give a file its name once all of it is on the disk.

    Args:
        written: Path of the file, in a `temporary_directory` of `path`.
        path: Its new path. An existing file or symbolic link is replaced.
    """
    with open(written, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    _sync_directory(pathlib.Path(path).parent)


def replace_directory(written, path):
    """Replace a directory by another.

    If the process is killed in between, `remove_orphans` restores the replaced one.

    Args:
        written: Path of the new directory, in a `temporary_directory` of `path`.
        path: Its new path. An existing directory or symbolic link is replaced.
    """
    replaced = written.with_name(_REPLACED)
    while True:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, replaced)
        try:
            os.replace(written, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if os.path.lexists(replaced):
                    os.replace(replaced, path)
                raise
        # Another process has created the directory in the meantime.
        if replaced.is_symlink():
            replaced.unlink()
        shutil.rmtree(replaced, ignore_errors=True)


def check_writable(directory):
    """Create, rename and remove a file of a random name in a directory.

    Raises:
        OSError: If that fails.
    """
    probe = pathlib.Path(directory, f"probe.{secrets.token_hex(8)}.writing")
    atomic_write(probe, lambda file: None)
    probe.unlink(missing_ok=True)  # Another process may have removed it as an orphan.


@contextlib.contextmanager
def temporary_directory(path):
    """Create a directory next to a file or directory that will be written, and remove it at the end.

    Args:
        path: Path of what will be written. Its directory exists.

    Yields:
        Path of the directory, `NAME.RANDOM.writing`. If this process is killed, the next one for the same path or
        `remove_orphans` removes it.
    """
    with _temporary(pathlib.Path(path), _new_directory) as (temporary, _):
        yield temporary


@contextlib.contextmanager
def scratch_directory(path):
    """Create a `temporary_directory` that this thread's calls of `tempfile` also use.

    Keras and TensorFlow write parts of an export with `tempfile`, whose directory may be too small. Other threads keep
    their directory. A thread that enters this context waits until the first has left it.

    Args:
        path: Path of what will be written. Its directory exists.

    Yields:
        Path of the directory.

    Raises:
        OSError: If the disk is full, with the name of `path`.
    """
    with explain_disk_full(path), temporary_directory(path) as directory, _TEMPFILE:
        thread, default = threading.get_ident(), tempfile.gettempdir
        # Not `tempfile.tempdir`, which all threads share.
        tempfile.gettempdir = lambda: str(directory) if threading.get_ident() == thread else default()
        try:
            yield directory
        finally:
            tempfile.gettempdir = default


def is_temporary(name):
    """Return whether a name is that of a temporary file or directory of this module."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_orphans(directory, name=None):
    """Remove the temporary files and directories that killed processes left in a directory.

    A process holds a lock on each while it writes, which the system releases when the process ends. So those of
    running processes stay, also in other containers on the same file system. On a file system without locks, those
    that did not change for a day are removed; on Windows none is. Symbolic links and other files are not changed.

    Args:
        directory: Path. It may be missing. Its subdirectories are not searched.
        name: Name of the file that was being written. Default: any.
    """
    if fcntl is None or not os.path.isdir(directory):
        return
    for entry in os.listdir(directory):
        match = _TEMPORARY.fullmatch(entry)
        if match and name in (None, match["name"]):
            with contextlib.suppress(OSError):  # Another process removed it first, or this one has no permission.
                _remove_orphan(pathlib.Path(directory, entry))


def _remove_orphan(path):
    mode = path.lstat().st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return
    # NFS locks only files that are open for writing. Directories cannot be opened for writing.
    descriptor = os.open(path, (os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR) | NO_FOLLOW)
    try:
        is_orphan = try_lock(descriptor)
        if is_orphan is None:
            is_orphan = time.time() - os.fstat(descriptor).st_mtime > _MAX_AGE
        if is_orphan and is_at(descriptor, path):
            _restore(path)
            shutil.rmtree(path) if stat.S_ISDIR(mode) else path.unlink()
    finally:
        os.close(descriptor)


def _restore(orphan):
    """Restore the directory of a `replace_directory` that was killed before the new one had its path."""
    path = orphan.with_name(_TEMPORARY.fullmatch(orphan.name)["name"])
    if os.path.lexists(orphan / _REPLACED) and not os.path.lexists(path):
        os.replace(orphan / _REPLACED, path)


@contextlib.contextmanager
def _temporary(path, create):
    """Create and lock a file or directory with a random name next to a path: `(its path, the open file)`."""
    remove_orphans(path.parent, path.name)
    while True:
        # In the same directory, because a rename is atomic only within one file system, and that disk has the space.
        # Random, because process ids repeat in containers that share a file system.
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.writing")
        with create(temporary) as opened:
            # Until the lock is held, another process may remove the new file as an orphan.
            if fcntl is None or (opened is not None and try_lock(opened) is not False and is_at(opened, temporary)):
                yield temporary, opened
                return


@contextlib.contextmanager
def _new_file(path):
    file = open(path, "xb")
    try:
        with file:
            yield file
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _new_directory(path):
    path.mkdir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open a directory, or another process has removed it.
        descriptor = None
    try:
        yield descriptor
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def sha256(path):
    """Return the SHA-256 of a file's bytes.

    Args:
        path: Path of the file.

    Returns:
        String of 64 hexadecimal digits.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is not a regular file.
    """
    with open(check_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(directory):
    """Flush a directory's new name to the disk. Windows cannot open a directory, and does this by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path):
    """Create a directory and its parents, if they are missing.

    Raises:
        NotADirectoryError: If a path is something else, such as a file or a symbolic link without a target.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        taken = next(entry for entry in (path, *path.parents) if os.path.lexists(entry) and not entry.is_dir())
        raise NotADirectoryError(
            f"{taken} must be a directory. Received: it is {describe(taken)}. Pass another path."
        ) from error


def describe(path):
    """Describe what a path leads to, such as `"a file"` or `"a symbolic link without a target"`."""
    path = pathlib.Path(path)
    kinds = {
        "a file": path.is_file,
        "a directory": path.is_dir,
        "a named pipe": path.is_fifo,
        "a socket": path.is_socket,
        "a device": lambda: path.is_char_device() or path.is_block_device(),
        "a symbolic link without a target": path.is_symlink,
    }
    return next((kind for kind, applies in kinds.items() if applies()), "missing")


def check_regular(path):
    """Return a path if it leads to a regular file. Reading a named pipe or a device could wait forever.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is something else, such as a directory or a named pipe.
    """
    if (kind := describe(path)) == "a file":
        return path
    error = FileNotFoundError if kind == "missing" else ValueError
    raise error(f"{path} must be a regular file. Received: it is {kind}.")

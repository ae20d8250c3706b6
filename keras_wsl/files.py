"""Files that are either whole or absent."""

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

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"(?P<name>.+)\.[0-9a-f]+\.writing", re.DOTALL)
_BEFORE = "before"  # In a temporary directory: what the new directory replaces.
_ABANDONED = 24 * 3600  # Seconds without a change, on a file system without locks.
_TEMPFILE = threading.RLock()  # Held by the thread whose calls of `tempfile` are redirected.
# A symbolic link is not followed, and a FIFO is not waited for. Windows has neither flag.
_AS_IT_IS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextlib.contextmanager
def explain_disk_full(path, size=None):
    """Says of an error that comes of a full disk which file did not fit, and how much room there is.

    Args:
        path: Path of what is written inside; its folder exists.
        size: Its bytes, where they are known.

    Raises:
        OSError: In place of an error, of whatever class, that tells of a full disk, a quota or a limit of files.
    """
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        if number not in FULL:  # TensorFlow's errors, and h5py's, have the system's text alone.
            number = next((one for one in FULL if os.strerror(one) in str(error)), None)
        if number is None:
            raise
        free = shutil.disk_usage(pathlib.Path(path).parent).free
        needed = "" if size is None else f"it takes {size:,} bytes, and "
        raise OSError(
            number,
            f"{os.strerror(number)}: {path} does not fit; {needed}{free:,} bytes are free there. Make room, and start "
            "again: what was written before is kept",
        ) from error


def atomic_write(path, write, size=None):
    """Write a file that has its name only once all of it is on the disk.

    A process that is killed meanwhile leaves the file that was there before, and at most a temporary file beside it,
    `NAME.RANDOM.writing`, which the next write of that file or `remove_orphans` removes. Where the path is a symbolic
    link, the link is replaced; the file that it points to is not changed.

    Args:
        path: Path of the file; its folder exists.
        write: Function of a binary file open for writing; what it returns is ignored.
        size: The file's bytes, where they are known, for the error.

    Raises:
        OSError: The folder cannot be written to, or the disk is full. The temporary file is then gone.
    """
    path = pathlib.Path(path)
    with explain_disk_full(path, size), _temporary(path, _new_file) as (temporary, file):
        write(file)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:  # Windows renames no open file.
            file.close()
        os.replace(temporary, path)  # Before the lock is released, so that no other process removes the file.
        _sync_directory(path.parent)


def copy_atomically(source, path):
    """Copy a file so that the copy has its name only once it is whole. See `atomic_write`."""
    with open(source, "rb") as opened:
        atomic_write(path, lambda file: shutil.copyfileobj(opened, file))


def rename_atomically(written, path):
    """Give a file its name once all of it is on the disk.

    Args:
        written: Path of the file, in a `temporary_directory` of `path`.
        path: Path that it gets. A file or symbolic link that is there is replaced.
    """
    with open(written, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(written, path)
    _sync_directory(pathlib.Path(path).parent)


def replace_directory(written, path):
    """Put a directory in the place of another, which is removed.

    If the process is killed in between, `remove_orphans` puts the other one back.

    Args:
        written: Path of the new directory, in a `temporary_directory` of `path`.
        path: Path that it gets. A directory or symbolic link that is there is replaced.
    """
    before = written.with_name(_BEFORE)
    while True:
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, before)
        try:
            os.replace(written, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if os.path.lexists(before):
                    os.replace(before, path)
                raise
        # Another process has put its directory there in the meantime.
        if before.is_symlink():
            before.unlink()
        shutil.rmtree(before, ignore_errors=True)


def check_writable(directory):
    """Create, rename and remove a file of a random name in a directory.

    Raises:
        OSError: If that fails.
    """
    probe = pathlib.Path(directory, f"probe.{secrets.token_hex(8)}.writing")
    atomic_write(probe, lambda file: None)
    probe.unlink(missing_ok=True)  # Another process may have taken it for an orphan.


@contextlib.contextmanager
def temporary_directory(path):
    """Make a directory beside a file or directory that is about to be written, and remove it at the end.

    Args:
        path: Path of what is about to be written; its folder exists.

    Yields:
        Path of the directory, `NAME.RANDOM.writing`. If this process is killed, the next one for the same path or
        `remove_orphans` removes it.
    """
    with _temporary(pathlib.Path(path), _new_directory) as (temporary, _):
        yield temporary


@contextlib.contextmanager
def scratch_directory(path):
    """Make a `temporary_directory` in which this thread's calls of `tempfile` also make their files.

    Keras and TensorFlow write parts of an export through `tempfile`, whose directory may be too small. Other threads
    keep theirs; one that enters this context waits until the first has left it.

    Args:
        path: Path of what is about to be written; its folder exists.

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
    """Return whether a file or directory of this name is a temporary one of this module."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_orphans(directory, name=None):
    """Remove the temporary files and directories that killed processes left in a directory.

    A process holds a lock on each while it writes, which the system releases when the process ends. So those of
    other processes, also in other containers on the same file system, stay. On a file system without locks, those
    that were not changed for a day are removed; on Windows none is. Symbolic links and other files are not touched.

    Args:
        directory: Path; directories inside it are not searched. It may be missing.
        name: Name of the file that was to be written; by default of any.
    """
    if fcntl is None or not os.path.isdir(directory):
        return
    for entry in os.listdir(directory):
        match = _TEMPORARY.fullmatch(entry)
        if match and name in (None, match["name"]):
            with contextlib.suppress(OSError):  # Another process removed it first, or this one may not.
                _remove_orphan(pathlib.Path(directory, entry))


def _remove_orphan(path):
    mode = path.lstat().st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return
    # NFS gives a lock only to those who can write, and no directory can be opened for that.
    descriptor = os.open(path, (os.O_RDONLY if stat.S_ISDIR(mode) else os.O_RDWR) | _AS_IT_IS)
    try:
        dead = _lock(descriptor)
        if dead is None:
            dead = time.time() - os.fstat(descriptor).st_mtime > _ABANDONED
        if dead and _is_at(descriptor, path):
            _put_back(path)
            shutil.rmtree(path) if stat.S_ISDIR(mode) else path.unlink()
    finally:
        os.close(descriptor)


def _put_back(orphan):
    """Put back what `replace_directory` took away, if it was killed before the new directory was there."""
    path = orphan.with_name(_TEMPORARY.fullmatch(orphan.name)["name"])
    if os.path.lexists(orphan / _BEFORE) and not os.path.lexists(path):
        os.replace(orphan / _BEFORE, path)


@contextlib.contextmanager
def _temporary(path, create):
    """Create something beside a path under a random name, and hold a lock on it: `(its path, the open file)`."""
    remove_orphans(path.parent, path.name)
    while True:
        # Beside, because a rename is atomic only within one file system, and because that disk has the room. Random,
        # because process ids repeat in containers that share a file system.
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.writing")
        with create(temporary) as opened:
            # Before the lock is held, another process may take the new file for an orphan.
            if fcntl is None or (opened is not None and _lock(opened) is not False and _is_at(opened, temporary)):
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
    except OSError:  # Windows opens no directory; or another process has removed it.
        descriptor = None
    try:
        yield descriptor
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _lock(file):
    """Try to lock an open file: True, False if another process or thread has it, `None` where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # Such as a network file system without locks.
        return None
    return True


@contextlib.contextmanager
def exclusive(path):
    """Try to get a lock that one process has at a time: `with exclusive(path) as mine`.

    A killed process gives its locks back.

    Args:
        path: Path of the lock's file, which is there only while somebody has the lock. What is in a file that is
            there stays as it is until the file is removed with the lock.

    Yields:
        Boolean; False at once if another has it. Where the system or the file system has no such locks, True.

    Raises:
        ValueError: If the path is a symbolic link, a directory or anything else that is no file.
    """
    if fcntl is None:
        yield True
        return
    while True:
        with _opened_lock(path) as file:
            if _lock(file) is False:
                yield False
                return
            if not _is_at(file, path):  # Who had the lock has removed this file since it was opened.
                continue
            try:
                yield True
            finally:
                pathlib.Path(path).unlink(missing_ok=True)
            return


@contextlib.contextmanager
def _opened_lock(path):
    """Open a lock's file without following a link, and without changing what is in it: its descriptor."""
    refused = ValueError(f"{path} must be a regular file, because it is a lock. Received: something else. Remove it.")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _AS_IT_IS, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):  # A link, a directory, a socket.
            raise refused from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise refused
        yield descriptor
    finally:
        os.close(descriptor)


def _is_at(file, path):
    """Return whether an open file, or its descriptor, is what a path names."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file if isinstance(file, int) else file.fileno()), found)


def sha256(path):
    """Return the SHA-256 of a file's bytes.

    Args:
        path: Path of the file.

    Returns:
        String of 64 hexadecimal digits.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is no regular file.
    """
    with open(check_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(directory):
    """Puts the new name itself on the disk; Windows cannot open a folder, and does this by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path):
    """Make a folder, and those above it, where they are missing.

    Raises:
        NotADirectoryError: If something else is in the way, such as a file or a symbolic link without a target.
    """
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        taken = next(there for there in (path, *path.parents) if os.path.lexists(there) and not there.is_dir())
        raise NotADirectoryError(
            f"{taken} is {kind_of(taken)}, and a folder was expected there. Choose another path."
        ) from error


def kind_of(path):
    """Describe what a path leads to, such as `"a file"` or `"a symbolic link without a target"`."""
    path = pathlib.Path(path)
    kinds = {
        "a file": path.is_file,
        "a folder": path.is_dir,
        "a named pipe": path.is_fifo,
        "a socket": path.is_socket,
        "a device": lambda: path.is_char_device() or path.is_block_device(),
        "a symbolic link without a target": path.is_symlink,
    }
    return next((kind for kind, applies in kinds.items() if applies()), "missing")


def check_regular(path):
    """Return a path if it leads to a regular file; reading a named pipe or a device could wait forever.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is something else, such as a folder or a named pipe.
    """
    if (kind := kind_of(path)) == "a file":
        return path
    error = FileNotFoundError if kind == "missing" else ValueError
    raise error(f"{path} must be a regular file. Received: it is {kind}.")

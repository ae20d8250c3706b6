"""Files that are either whole or absent."""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def named_if_full(path, size=None):
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


def write_atomically(path, write, size=None):
    """Writes a file that has its name only once all of it is on the disk.

    A process that is killed meanwhile leaves the file that was there before, and at most a `*.writing` beside it.

    Args:
        path: Path of the file; its folder exists.
        write: Function of a binary file open for writing; what it returns is ignored.
        size: The file's bytes, where they are known, for the error.

    Raises:
        OSError: The folder cannot be written to, or the disk is full. The temporary file is then gone.
    """
    path = pathlib.Path(path)
    # In the same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.writing")
    with named_if_full(path, size):
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def exclusive(path):
    """Whether this process alone has a lock: `with exclusive(path) as mine`. A killed process gives its locks back.

    Args:
        path: Path of the lock's file, which is there only while somebody has the lock.

    Yields:
        Boolean; False at once if another has it. Where the system has no such locks, True.
    """
    if fcntl is None:
        yield True
        return
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if not _is_at(file, path):  # Who had the lock has removed this file since it was opened.
                continue
            try:
                yield True
            finally:
                pathlib.Path(path).unlink(missing_ok=True)
            return


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def sha256(path):
    """The SHA-256 of a file's bytes.

    Args:
        path: Path of the file.

    Returns:
        String of 64 hexadecimal digits.
    """
    with open(path, "rb") as file:
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


def make_folder(path):
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

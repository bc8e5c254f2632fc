"""Machine faults: full or missing disks, failing devices, killed processes.

`describe_fault` turns such an error into one line and returns None for any other. Completed work is kept and the same
command continues it, so a fault has its own exit code (`EXIT_CODE`): rerun the command after the machine is repaired.
Without torch.
"""

from __future__ import annotations

import contextlib
import errno
import re
import signal
from collections.abc import Iterator

EXIT_CODE = 3
SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}  # the exit code is 128 more, as shells have it
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of a user-given path, and the advice.
PATH_ADVICE = {
    errno.ENOENT: "",
    errno.ENOTDIR: "a file is in the way; name another place",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "a file or a broken link is in the way; name another place, or delete it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "links lead in a circle; name another place",
    errno.EACCES: "change its permissions, or name another place",
    errno.EPERM: "change its permissions, or name another place",
    errno.EINVAL: "name another place",
}
DISK_GONE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.EREMOTEIO)
MAX_PATH = 200  # characters of a path that a message shows
NO_ROOM = "No space left on device"
# Messages of libraries that raise no OSError.
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|File too large", re.IGNORECASE)
WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed|exited)")
NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE)
DEVICE = re.compile(r"(CUDA|HIP|cuDNN|cuBLAS|CUBLAS|CUDNN|NCCL|XLA)[\w ]* (error|failure)\b|device-side assert")


class Fault(ValueError):
    """A fault outside the program; the message has the cause, the place and the remedy."""


class Termination(SystemExit):
    """Ctrl-C or SIGTERM; the message has the point where the same command continues.

    Args:
        number: the signal's number.
        text: follows the signal's name: "interrupted at step 3; ...".
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(128 + number)
        self.text = f"{SIGNALS[signal.Signals(number)]}{text}"


def name_file(error: BaseException, path: object) -> None:
    """Add the file name to an OSError that lacks one, such as that of a write to a full disk."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


@contextlib.contextmanager
def name_errors(path: object) -> Iterator[None]:
    """Context in which an OSError without a file name gets this one."""
    try:
        yield
    except OSError as error:
        name_file(error, path)
        raise


def describe_fault(error: BaseException, *, where: object = None) -> str | None:
    """Cause and remedy of a machine fault; None for any other error.

    Args:
        error: the exception; its causes are checked too.
        where: the current file or folder, for errors that name none.
    """
    for one in _chain(error):
        found = _of_disk(one, where) if isinstance(one, OSError) else None
        found = found or (_of_library(one, where) if isinstance(one, RuntimeError | MemoryError) else None)
        if found is None and type(one).__name__ == "SafetensorError" and NO_SPACE.search(str(one)):
            found = _full(where, NO_ROOM)
        if found is not None:
            return found
    return None


def describe_bad_path(error: BaseException) -> str | None:
    """Cause and remedy of an error in a user-given path; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in PATH_ADVICE or error.filename is None:
        return None
    advice = PATH_ADVICE[error.errno]
    return f"{short_name(error.filename)}: {error.strerror}{f'; {advice}' if advice else ''}"


def short_name(place: object) -> str:
    """A path for a message, truncated if very long."""
    text = str(place)
    return text if len(text) <= MAX_PATH else f"{text[:MAX_PATH]}..."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes: torch wraps a failed write in an error of its own."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_disk(error: OSError, where: object) -> str | None:
    place = error.filename or where
    said = error.strerror or str(error)
    if error.errno in DISK_FULL:
        return _full(place, said)
    if error.errno == errno.EROFS:
        return f"{_at(place)}{said}; make it writable, or choose another folder"
    if error.errno in DISK_GONE:
        return f"{_at(place)}{said}; bring the disk back"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{_at(place)}{said}; raise the limit (ulimit -n)"
    return None


def _of_library(error: BaseException, where: object) -> str | None:
    text = " ".join(str(error).split())
    if worker := WORKER.search(text):
        return (
            f"a process that reads data was killed (pid {worker[1].strip()}), mostly for want of memory; "
            "lower workers or batch_size"
        )
    if NO_SPACE.search(text):
        return _full(where, NO_ROOM)
    if NO_MEMORY.search(text) or isinstance(error, MemoryError):
        return f"out of memory{_first(text)}; lower batch_size, crop or the size of the images (docs/speed.md)"
    if DEVICE.search(text):
        return f"the device failed{_first(text)}; see that it is there and well (nvidia-smi)"
    return None


def _full(place: object, said: str) -> str:
    return f"{_at(place)}{said}; free some"


def _at(place: object) -> str:
    return f"{place}: " if place else ""


def _first(text: str) -> str:
    """The first sentence of a library's message."""
    return (
        f" ({re.split(r'(?<=[a-z0-9])[.;] |Compile with|CUDA kernel errors', text)[0].strip()[:160]})" if text else ""
    )

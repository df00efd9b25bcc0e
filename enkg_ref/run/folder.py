"""The folder of a run: what it may hold, who works in it, what is removed.

While a run is under way its folder holds ``run/`` with ``ensemble-K.npz`` (checkpoint), ``ensemble-K.jsonl`` (history),
``ensemble-K.lock``, ``command.json`` (the command, so that it need not be repeated) and ``enkg-run``, which says that
``run/`` is ours and is locked by the process at work. Nothing of another origin is ever touched.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None

OUTPUTS = ("summary.json", "result.npz", "history.jsonl", "figure.png")
MARKER, COMMAND = "enkg-run", "command.json"


@contextlib.contextmanager
def claimed(folder, resume, ensembles, command=()):
    """Hold ``folder`` for one run while the block runs; yields its working folder.

    A block that ends in an exception leaves the working folder as it is if something is there to go on with, and
    removes what it has put there if not, so that the corrected command may use the folder.

    Raises ValueError for a folder that is finished, of another origin, unfinished without ``resume``, begun with more
    ``ensembles``, held by another process, or not writable.
    """
    folder = Path(folder)
    work = folder / "run"
    try:
        _check(folder, work, resume, ensembles)
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        work.mkdir(parents=True, exist_ok=True)
        with alone(work / MARKER, folder):
            _check(folder, work, resume, ensembles)  # another process may have been quicker
            if not (work / COMMAND).exists():
                (work / COMMAND).write_text(json.dumps(list(command)))
            try:
                yield work
            except BaseException:
                if not begun(work):
                    clear(work)
                    for path in missing:
                        with contextlib.suppress(OSError):  # it holds something by now
                            path.rmdir()
                raise
    except OSError as error:
        if error.filename is None or not str(error.filename).startswith(str(folder)):
            raise
        raise ValueError(f"out: got {folder}, which cannot be written ({error.strerror}), expected a writable "
                         "folder") from None


def _check(folder, work, resume, ensembles):
    there = [name for name in OUTPUTS if (folder / name).exists()]
    ours = (work / MARKER).exists()
    unfinished = ours and begun(work)
    if "summary.json" in there:
        raise ValueError(f"{'resume' if resume else 'out'}: got {folder}, which holds a finished run, expected another "
                         "folder")
    if work.exists() and not ours and any(work.iterdir()):
        raise ValueError(f"out: got {folder}, which holds a folder 'run' of another origin, expected another folder")
    if there and not unfinished:
        raise ValueError(f"out: got {folder}, which holds a file {there[0]}, expected another folder")
    if unfinished and not resume:
        raise ValueError(f"out: got {folder}, which holds an unfinished run (go on with --resume), expected another "
                         "folder")
    if unfinished and _ensembles(work) > ensembles:
        raise ValueError(f"ensembles: got {ensembles}, expected at least {_ensembles(work)}: so many are begun in "
                         f"{folder}")


@contextlib.contextmanager
def alone(path, out):
    """Hold the lock file while the block runs; ValueError if another process holds it. Falls with its process.

    out : the output folder that the message names
    """
    with open(path, "a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # its holder may have removed it
            except (BlockingIOError, FileNotFoundError):
                held = False
            if not held:
                raise ValueError(f"out: got {out}, where another process is at work, expected it finished or another "
                                 "folder")
        yield


def begun(work):
    """Whether the working folder holds an ensemble to go on with."""
    return any(Path(work).glob("ensemble-*.npz"))


def command(folder):
    """The command of the unfinished run in ``folder``, a list of words; None where there is none."""
    try:
        words = json.loads((Path(folder) / "run" / COMMAND).read_text())
    except (OSError, ValueError):
        return None
    return words if isinstance(words, list) and words and all(isinstance(word, str) for word in words) else None


def clear(work):
    """Remove what a run has left in its working folder, and nothing else."""
    work = Path(work)
    for path in [*work.glob("ensemble-*.npz*"), *work.glob("ensemble-*.jsonl"), *work.glob("ensemble-*.lock"),
                 work / COMMAND, work / MARKER]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it holds something of the user's
        work.rmdir()


def _ensembles(work):
    """The number of ensembles begun, those with a smaller number included."""
    numbers = (path.stem.removeprefix("ensemble-") for path in Path(work).glob("ensemble-*.npz"))
    return max((int(number) + 1 for number in numbers if number.isdecimal()), default=0)

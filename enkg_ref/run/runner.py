"""Running a solve from the shell: independent ensembles, history, checkpoints, progress. Consumes the generator.

While a run is under way its folder holds ``run/`` with ``ensemble-K.npz`` (checkpoint), ``ensemble-K.jsonl`` (history)
and ``ensemble-K.lock`` (held by the process at work), and the file ``MARKER``, which says that ``run/`` is ours.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..enkg import iterate
from . import checkpoint
from .ledger import Ledger
from .report import plain

MARKER = "enkg-run"


@dataclass(frozen=True)
class Run:
    """Everything one ensemble needs: a method, a forward model, the starting noise, and what it is, for checkpoints."""

    method: Any
    forward: Callable
    noise: Any
    state_type: type
    about: dict


def run_ensemble(build, options, k, folder, report=None):
    """Run (or go on with) ensemble k in ``folder``; its last state is left in the checkpoint.

    build : (options, k, ledger) -> Run;  report : called with (info, updates done) after every update.
    """
    folder = Path(folder)
    saved, history = folder / f"ensemble-{k}.npz", folder / f"ensemble-{k}.jsonl"
    ledger = Ledger()
    with alone(folder / f"ensemble-{k}.lock", folder.parent):
        _run(build, options, k, saved, history, ledger, report)


def _run(build, options, k, saved, history, ledger, report):
    with ledger.clock("setup"):
        run = build(options, k, ledger)
    if saved.exists():
        state, extra = checkpoint.load(saved, run.state_type, run.about, run.noise)
        ledger.restore(extra["ledger"])
        lines = history.read_text().splitlines()[:extra["updates"]] if history.exists() else []
        history.write_text("".join(line + "\n" for line in lines))
        updates = extra["updates"]
    else:
        with ledger.clock("record"):
            history.write_text("")
        with ledger.clock("update"):
            state = run.method.init(run.noise)
        updates = 0

    def save():
        checkpoint.save(saved, state, run.about, {"ledger": ledger.as_dict(), "updates": updates})

    last_level = None
    with open(history, "a") as file:
        updates_to_come = ledger.timed(iterate(run.method, run.forward, state))
        for state, info in updates_to_come:
            updates += 1
            with ledger.clock("record"):
                file.write(json.dumps(plain({"ensemble": k, **asdict(info)})) + "\n")
                file.flush()
                if state.level != last_level or run.method.done(state):
                    save()
                last_level = state.level
                if report is not None:
                    report(info, updates)
    save()


def run_ensembles(build, options, count, workers, folder, progress):
    """Run ``count`` independent ensembles, ``workers`` at a time in processes of their own.

    progress : called with (updates done over all ensembles, last history line or None), a few times a second.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if workers == 1:
        for k in range(count):
            run_ensemble(build, options, k, folder,
                         lambda info, done, k=k: progress(_updates(folder, k) + done, asdict(info)))
        return
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    os.environ.update({name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")})
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(_in_worker, os.getpid(), build, options, k, folder) for k in range(count)]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            progress(_updates(folder, count), _last_line(folder))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


def _in_worker(parent, build, options, k, folder):
    def report(info, updates):
        if os.getppid() != parent:  # killed without a word: nobody waits for this ensemble any more
            os._exit(1)

    run_ensemble(build, options, k, folder, report)


@contextlib.contextmanager
def alone(path, out):
    """Hold the lock file while the block runs; ValueError if another process holds it. Falls with its process.

    out : the output folder that the message names
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: got {out}, where another process is at work, expected it finished "
                             "or another folder") from None
        yield


def begun(folder):
    """Whether ``folder`` holds an ensemble to go on with."""
    return any(Path(folder).glob("ensemble-*.npz"))


def ensembles(folder):
    """The number of ensembles begun in ``folder``, those with a smaller number included."""
    numbers = (path.stem.removeprefix("ensemble-") for path in Path(folder).glob("ensemble-*.npz"))
    return max((int(number) + 1 for number in numbers), default=0)


def clear(folder):
    """Remove what a run has left in ``folder``, and nothing else."""
    folder = Path(folder)
    for path in [*folder.glob("ensemble-*.npz*"), *folder.glob("ensemble-*.jsonl"), *folder.glob("ensemble-*.lock"),
                 folder / MARKER]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty: it holds something of the user's
        folder.rmdir()


def collect(folder, count):
    """The saved last states of all ensembles, as mappings of arrays, with their extra data and history lines."""
    import numpy as np

    folder, out = Path(folder), []
    for k in range(count):
        with np.load(folder / f"ensemble-{k}.npz", allow_pickle=False) as file:
            fields = {name: file[name] for name in file.files if not name.startswith("_")}
            extra = json.loads(str(file["_extra"]))
        history = [json.loads(line) for line in (folder / f"ensemble-{k}.jsonl").read_text().splitlines()]
        out.append((fields, extra, history))
    return out


def _updates(folder, count):
    """History lines of the first ``count`` ensembles: how far they are."""
    return sum(path.read_bytes().count(b"\n") for path in
               (folder / f"ensemble-{k}.jsonl" for k in range(count)) if path.exists())


def _last_line(folder):
    paths = sorted(folder.glob("ensemble-*.jsonl"), key=lambda path: path.stat().st_mtime)
    for path in reversed(paths):
        lines = path.read_text().splitlines()
        if lines:
            try:
                return json.loads(lines[-1])
            except json.JSONDecodeError:  # the writer is in the middle of the line
                return None
    return None

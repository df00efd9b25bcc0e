"""Running independent ensembles: history, checkpoints, progress, processes. Consumes the generator of ``protocol``.

Without a folder nothing is written. With one, ``ensemble-K.npz`` is the checkpoint and ``ensemble-K.jsonl`` the history
of ensemble K, see ``folder``.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import warnings
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._xp import to_numpy
from ..protocol import Plan, iterate
from . import checkpoint
from .folder import alone
from .ledger import Ledger
from .report import plain

__all__ = ["Book", "Outcome", "Run", "advance", "alone", "plain", "run_ensemble", "run_ensembles"]


@dataclass(frozen=True)
class Run:
    """Everything one ensemble needs.

    plan : ``protocol.Plan``;  forward : with everything around it;  noise : (J, *event), the start
    observe, memory : of the method's record, see ``protocol.Method``;  likelihood : for ``observe``
    about : what it is, for checkpoints
    """

    plan: Plan
    forward: Callable
    noise: Any
    observe: Callable
    memory: Any
    likelihood: Any
    about: dict


@dataclass(frozen=True)
class Outcome:
    """What an ensemble has come to: x (J, *event) on the host, counts and seconds, history lines {name: number}."""

    x: Any
    ledger: dict
    history: list


@dataclass(frozen=True)
class Place:
    """How far a run is: all that a resume needs."""

    state: Any
    memory: Any
    updates: int = 0


def advance(run, place, ledger):
    """Generator of (`Place`, history line) after every update until the method is done."""
    for state, info in ledger.timed(iterate(run.plan.method, run.forward, place.state)):
        with ledger.clock("record"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of single updates: the summary counts what they warn of
                memory, line = run.observe(place.memory, info, run.likelihood)
            place = Place(state, memory, place.updates + 1)
        yield place, line


def run_ensemble(build, k, folder=None, report=None):
    """Run ensemble k, or go on with it where ``folder`` holds its checkpoint.  -> `Outcome`

    build : (k, ledger) -> `Run`;  report : called with (line, updates done) after every update.

    A wave of forward calls that fails altogether (FloatingPointError) and an interruption leave the last good state in
    the checkpoint.
    """
    ledger = Ledger()
    with contextlib.nullcontext() if folder is None else alone(Path(folder) / f"ensemble-{k}.lock",
                                                               Path(folder).parent):
        with ledger.clock("setup"):
            run = build(k, ledger)
        book = Book(folder, k, run.about, ledger)
        place, history = book.opened(run)
        try:
            for here, line in advance(run, place, ledger):
                place = here
                history.append(plain({"ensemble": k, **line}))
                with ledger.clock("record"):
                    book.enter(history[-1], place, run.plan.method.done(place.state))
                if report is not None:
                    report(history[-1], place.updates)
        except FloatingPointError:
            book.save(place, book.counted)
            raise
        except KeyboardInterrupt:
            if place.updates:
                book.save(place, book.counted)
            raise
        book.save(place)
    return Outcome(to_numpy(place.state.x), ledger.as_dict(), history)


class Book:
    """Checkpoint and history of one ensemble on disk; without a folder it keeps nothing.

    counted : the ledger after the last update: a wave that was cut short will be made again, and counted then
    """

    def __init__(self, folder, k, about, ledger):
        self.folder, self.about, self.ledger, self.level, self.counted = folder, about, ledger, None, None
        if folder is not None:
            self.saved, self.lines = Path(folder) / f"ensemble-{k}.npz", Path(folder) / f"ensemble-{k}.jsonl"

    def opened(self, run):
        """(Place, history so far)"""
        if self.folder is not None and self.saved.exists():
            state, memory, extra = checkpoint.load(self.saved, run.plan.state, run.about, run.noise, run.memory)
            self.ledger.restore(extra["ledger"])
            history = _read_history(self.lines, extra["updates"])
            self.lines.write_text("".join(json.dumps(line) + "\n" for line in history))
            self.counted = self.ledger.as_dict()
            return Place(state, memory, extra["updates"]), history
        if self.folder is not None:
            self.lines.write_text("")
        with self.ledger.clock("update"):
            place = Place(run.plan.method.init(run.noise), run.memory)
        self.counted = self.ledger.as_dict()
        return place, []

    def enter(self, line, place, done):
        """Write the history line, and a checkpoint after every level."""
        if self.folder is None:
            return
        self.counted = self.ledger.as_dict()
        with open(self.lines, "a") as file:
            file.write(json.dumps(line) + "\n")
        level = getattr(place.state, "level", place.updates)
        if level != self.level or done:
            self.save(place)
        self.level = level

    def save(self, place, counted=None):
        """Write the checkpoint.  counted : of the ledger, what stands in it now by default"""
        if self.folder is not None:
            extra = {"ledger": counted or self.ledger.as_dict(), "updates": place.updates}
            checkpoint.save(self.saved, place.state, self.about, extra, place.memory)


def _read_history(path, updates):
    """The first ``updates`` lines; a damaged history is no reason to lose a run: its bad lines are left out."""
    text = path.read_bytes().decode("utf-8", errors="replace") if path.exists() else ""
    history = []
    for line in text.splitlines()[:updates]:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict) and "ensemble" in found:
                history.append(found)
    if len(history) < updates:
        warnings.warn(f"history: got {path} with {len(history)} good lines, expected {updates}; the run goes on "
                      "without the others", stacklevel=2)
    return history


def run_ensembles(build, count, workers, folder, progress):
    """Run ``count`` independent ensembles, ``workers`` at a time in processes of their own.  -> [`Outcome`]

    build : (k, ledger) -> `Run`; picklable, and ``folder`` not None, where workers > 1
    progress : called with (updates done over all ensembles, last history line or None), a few times a second.
    """
    if workers == 1:
        before, outcomes = 0, []
        for k in range(count):
            outcomes.append(run_ensemble(build, k, folder,
                                         lambda line, done, before=before: progress(before + done, line)))
            before += len(outcomes[-1].history)
        return outcomes
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    os.environ.update({name: threads for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")})
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        futures = [pool.submit(_in_worker, os.getpid(), build, k, folder) for k in range(count)]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, timeout=0.5, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            progress(*_how_far(Path(folder), count))
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _in_worker(parent, build, k, folder):
    def report(line, updates):
        if os.getppid() != parent:  # killed without a word: nobody waits for this ensemble any more
            os._exit(1)

    return run_ensemble(build, k, folder, report)


def _how_far(folder, count):
    """(updates done over the first ``count`` ensembles, the latest history line or None)"""
    paths = [path for path in (folder / f"ensemble-{k}.jsonl" for k in range(count)) if path.exists()]
    texts = {path: path.read_bytes() for path in paths}
    last = max(paths, key=lambda path: path.stat().st_mtime, default=None)
    try:
        line = json.loads(texts[last].splitlines()[-1])
    except (KeyError, IndexError, ValueError):  # nothing yet, or the writer is in the middle of the line
        line = None
    return sum(text.count(b"\n") for text in texts.values()), line

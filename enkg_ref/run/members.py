"""Forward models that come in batches, fail, run elsewhere, or are programs. Each wrapper is Forward -> Forward."""

from __future__ import annotations

import contextlib
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._xp import array_namespace, like, numbers_like, to_numpy


class Failure(NamedTuple):
    """A member that was given up: its row in the wave, the error in one line, the traceback of the user's code."""

    row: int
    error: str
    trace: str


def chunked(call, size):
    """Evaluate at most ``size`` rows at a time, the remainder included: (x, ...) -> the same rows."""
    if size < 1:
        raise ValueError(f"chunk: got {size}, expected at least 1")

    def wrapped(x, *args):
        xp, J = array_namespace(x), x.shape[0]
        rows = [call(x[i:min(i + size, J), ...], *args) for i in range(0, J, size)]
        return rows[0] if len(rows) == 1 else xp.concat(rows, axis=0)

    return wrapped


class Named:
    """The function "package.module:function", found in the current folder or on the path; a process finds it anew.

    Raises ValueError in one sentence for whatever the import of foreign code may end in, and for what is no function.
    """

    def __init__(self, name):
        self.name = name
        module, _, function = name.partition(":")
        wanted = 'expected package.module:function or a command with {input} and {output}'
        sys.path.insert(0, os.getcwd())
        try:
            self.call = getattr(importlib.import_module(module), function)
        except (Exception, SystemExit) as error:
            raise ValueError(f"forward: got {name} ({type(error).__name__}: {error}), {wanted}") from None
        finally:
            sys.path.remove(os.getcwd())
        if not callable(self.call):
            raise ValueError(f"forward: got {name}, which is a {type(self.call).__name__}, {wanted}")

    def __call__(self, x):
        return self.call(x)

    def __reduce__(self):
        return Named, (self.name,)


class Tolerant:
    """A forward model of the user's, (J, *event) -> (J, size), that may raise: members at fault are given up.

    It is tried on the whole ensemble, then row by row, each up to 1 + ``retries`` times, every time with a fresh copy.
    Its answer may be anything that holds real numbers. ``evaluate`` returns the answer and the `Failure`s.
    """

    def __init__(self, call, size, retries=0):
        self.call, self.size, self.retries = call, size, retries

    def evaluate(self, x):
        try:
            answer = self.call(_copy(x))
        except (Exception, SystemExit):  # foreign code: whatever it raises is a failed member
            rows = [self._row(x[row:row + 1, ...], row) for row in range(x.shape[0])]
            return array_namespace(x).concat([y for y, _ in rows], axis=0), [f for _, f in rows if f is not None]
        return taken(answer, x, self.size), []

    def _row(self, x, row):
        for _ in range(1 + self.retries):
            try:
                return taken(self.call(_copy(x)), x, self.size), None
            except (Exception, SystemExit) as error:
                failure = Failure(row, f"{type(error).__name__}: {error}", traceback.format_exc())
        return like(np.full((1, self.size), np.nan), x), failure


def taken(answer, x, size):
    """What a forward model of the user's returned for the rows of ``x``, as an array (J, size) beside ``x``.

    Whole numbers, truth values, lists, data frames, tensors are numbers; ValueError for what is none, or another shape.
    """
    with contextlib.suppress(AttributeError, RuntimeError):
        answer = answer.detach()  # a tensor that remembers its gradient
    y, J = numbers_like(answer, x), x.shape[0]
    if y is None:
        kind = getattr(answer, "dtype", None)
        what = f"an array of {kind}" if kind is not None else f"a {type(answer).__name__}"
        raise ValueError(f"forward: got {what}, expected an array of real numbers, ({J}, {size})")
    shape, xp = tuple(y.shape), array_namespace(y)
    if len(shape) == 0 or shape[0] != J:
        raise ValueError(f"forward: got an output of shape {shape}, expected ({J}, {size}): forward must return one "
                         "row per particle")
    if int(np.prod(shape[1:])) != size:
        raise ValueError(f"forward: got an output of shape {shape}, expected ({J}, {size}): the data are {size} "
                         "numbers")
    return xp.reshape(xp.astype(y, xp.result_type(y, x)), (J, size))


def guarded(forward, size, retries=0, log=None, executor=None, rows=None):
    """``forward`` whose failed members become rows of NaN, see `Tolerant`.

    log : called with the list of `Failure`s of a wave that has some
    executor : of ``concurrent.futures`` or with the same ``map``; blocks of ``rows`` members are evaluated in parallel.
        With processes ``forward`` must be picklable; blocks travel as numpy arrays. The result does not depend on the
        executor, and a serial run in `chunked` blocks of as many rows has the same bits.
    """
    tolerant = Tolerant(forward, size, retries)

    def wrapped(x):
        if executor is None:
            y, failures = tolerant.evaluate(x)
        else:
            host, step = to_numpy(x), rows or 1
            starts = range(0, len(host), step)
            parts = list(executor.map(tolerant.evaluate, [host[i:i + step] for i in starts]))
            y = like(np.concatenate([np.asarray(part) for part, _ in parts]), x)
            failures = [f._replace(row=f.row + start) for (_, fs), start in zip(parts, starts) for f in fs]
        if failures and log is not None:
            log(failures, x.shape[0])
        return y

    return wrapped


class FailureLog:
    """Tells failed members: one line per wave on stderr, unless ``quiet``; the first traceback goes to ``path``."""

    def __init__(self, path=None, quiet=False):
        self.path, self.quiet, self.told = None if path is None else Path(path), quiet, False

    def __call__(self, failures, J):
        first, where = failures[0], ""
        if self.path is not None and not self.told:
            with contextlib.suppress(OSError):
                self.path.write_text(f"member {first.row} of {J}\n{first.trace}")
                where = f"; more in {self.path}"
        self.told = True
        if not self.quiet and sys.stderr is not None:
            words = " ".join(first.error.split())[:300]
            print(f"enkg: {len(failures)} of {J} members failed, the first (member {first.row}): {words}{where}",
                  file=sys.stderr)


class Asked(Exception):
    """Points (J, *event) at which somebody else is to run the simulator."""

    def __init__(self, points):
        super().__init__("points are wanted")
        self.points = points


class Told:
    """A forward model that hands out ``predictions`` (J, m) of its points; where they are None it raises `Asked`."""

    def __init__(self, predictions):
        self.predictions = predictions

    def __call__(self, x, size):
        if self.predictions is None:
            raise Asked(to_numpy(x))
        return taken(self.predictions, x, size)


class Program:
    """A program as forward model: "simulate {input} {output}" reads one member from an .npy file and writes another.

    Rows are independent runs, side by side on ``executor`` (threads are enough). A run that exits with an error, takes
    longer than ``timeout`` seconds (then it and the processes it started are killed) or writes no array of the right
    size is a failed member: its row is NaN, and ``log`` is called as in `guarded`.
    """

    def __init__(self, command, size, timeout=None, log=None, executor=None):
        if "{input}" not in command or "{output}" not in command:
            raise ValueError(f"forward: got {command!r}, expected a command with {{input}} and {{output}} in it")
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise ValueError(f"forward: got {command!r}, which is no command ({error}), expected one as in a shell") \
                from None
        if shutil.which(self.words[0]) is None:
            there = "is not executable" if Path(self.words[0]).exists() else "is not found"
            raise ValueError(f"forward: got the program {self.words[0]}, which {there}, expected an executable")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: got {timeout}, expected a number of seconds above 0")
        self.size, self.timeout, self.log, self.executor = size, timeout, log, executor

    def __call__(self, x):
        members = list(to_numpy(x))
        found = list((map if self.executor is None else self.executor.map)(self._run, members))
        failures = [Failure(row, error, error + "\n") for row, (_, error) in enumerate(found) if error is not None]
        if failures and self.log is not None:
            self.log(failures, len(members))
        return like(np.stack([y for y, _ in found]), x)

    def _run(self, member):
        """(row, error in one line or None)"""
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "input.npy"), Path(folder, "output.npy")
            np.save(source, member)
            words = [word.replace("{input}", str(source)).replace("{output}", str(target)) for word in self.words]
            try:
                _finished(words, self.timeout)
                y = np.load(target, allow_pickle=False)
                if y.dtype.kind not in "fiub" or y.size != self.size:
                    raise ValueError(f"wrote {y.size} numbers of type {y.dtype}, expected {self.size} real ones")
                return y.astype(np.float64).reshape(self.size), None
            except (OSError, EOFError, RuntimeError, ValueError) as error:
                return np.full(self.size, np.nan), f"{type(error).__name__}: {error}"


def _finished(words, timeout):
    """Run a program to its end; RuntimeError for one that fails or runs out of time. None of its children survives."""
    running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
                               start_new_session=True)
    try:
        out, err = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took longer than {timeout:g} seconds") from None
    finally:
        if running.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(running.pid, signal.SIGKILL)
            running.communicate()
    if running.returncode != 0:
        said = (err.strip() or out.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"exit status {running.returncode}: {said}")


def _copy(x):
    return array_namespace(x).asarray(x, copy=True)

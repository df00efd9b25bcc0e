"""Forward models that come in batches, fail, run elsewhere, or are programs. Each wrapper is Forward -> Forward."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from .._xp import array_namespace, like, to_numpy


def chunked(call, size):
    """Evaluate at most ``size`` rows at a time, the remainder included: (x, ...) -> the same rows."""
    if size < 1:
        raise ValueError(f"chunk: got {size}, expected at least 1")

    def wrapped(x, *args):
        xp, J = array_namespace(x), x.shape[0]
        rows = [call(x[i:min(i + size, J), ...], *args) for i in range(0, J, size)]
        return rows[0] if len(rows) == 1 else xp.concat(rows, axis=0)

    return wrapped


def guarded(forward, size, retries=0, log=None):
    """A forward model that may raise: the members at fault get NaN rows, the others their values.

    forward : (J, *event) -> (J, size); tried on the whole ensemble, then row by row, each up to 1 + ``retries`` times.
    log : called with (row, exception) for every member given up.
    """
    def one(x, row):
        for attempt in range(1 + retries):
            try:
                xp = array_namespace(x)
                return xp.reshape(forward(x[row:row + 1, ...]), (1, size))
            except Exception as error:  # the simulator is foreign code: whatever it raises is a failed member
                if attempt == retries and log is not None:
                    log(row, error)
        return like(np.full((1, size), np.nan), x)

    def wrapped(x):
        try:
            return forward(x)
        except Exception:
            return array_namespace(x).concat([one(x, row) for row in range(x.shape[0])], axis=0)

    return wrapped


def mapped(forward, executor, parts):
    """Split the rows into ``parts`` blocks and evaluate them by ``executor.map`` (concurrent.futures, or the like).

    With processes, ``forward`` must be picklable and take numpy arrays; the blocks travel as numpy.
    """
    def wrapped(x):
        blocks = np.array_split(to_numpy(x), min(parts, x.shape[0]))
        return like(np.concatenate([np.asarray(block) for block in executor.map(forward, blocks)]), x)

    return wrapped


class Program:
    """A program as forward model: "simulate {input} {output}" reads one member from an .npy file and writes another.

    Rows are independent runs. A run that exits with an error, runs out of time or writes no finite array of the right
    size is a failed member: its row is NaN.
    """

    def __init__(self, command, size, timeout=None, log=None):
        if "{input}" not in command or "{output}" not in command:
            raise ValueError(f"forward: got {command!r}, expected a command with {{input}} and {{output}} in it")
        self.words = shlex.split(command)
        if shutil.which(self.words[0]) is None:
            raise ValueError(f"forward: got the program {self.words[0]}, which is not found, expected an executable")
        self.size, self.timeout, self.log = size, timeout, log

    def __call__(self, x):
        return like(np.stack([self._run(row, member) for row, member in enumerate(to_numpy(x))]), x)

    def _run(self, row, member):
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "input.npy"), Path(folder, "output.npy")
            np.save(source, member)
            words = [word.replace("{input}", str(source)).replace("{output}", str(target)) for word in self.words]
            try:
                done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=self.timeout)
                if done.returncode != 0:
                    said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
                    raise RuntimeError(f"exit status {done.returncode}: {said}")
                return np.load(target, allow_pickle=False).astype(np.float64).reshape(self.size)
            except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
                if self.log is not None:
                    self.log(row, error)
                return np.full(self.size, np.nan)

"""One line of ``enkg verify``: a statement, the function that measures it, and the library on an array back-end.

A measuring function takes a `Library` and returns (measured, instances). ``measured`` is the worst deviation, or the
quantity that the claim bounds.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._xp import to_numpy
from ..ensemble import correct, frobenius, trace
from ..extensions import guarded
from ..likelihood import Gaussian
from ..protocol import solve
from .oracles import worst

BACKENDS = {  # name: (module, what installs it)
    "numpy": ("numpy", "numpy"), "torch": ("torch", "'enkg_ref[train]' or torch"), "jax": ("jax.numpy", "jax"),
    "strict": ("array_api_strict", "'enkg_ref[test]' or array-api-strict"), "cupy": ("cupy", "'enkg_ref[gpu]'")}
RULES = {"frobenius": frobenius, "trace": trace}
STATEMENTS = []  # in the order of their files in __init__.py


@dataclass(frozen=True)
class Line:
    """``low <= measured <= high`` is the claim. A finding is the counterexample to a claim one would like to make."""

    name: str
    claim: str
    high: float
    low: float
    finding: bool
    measure: Callable


@dataclass(frozen=True)
class Record:
    """A line that was measured; verdict is "pass", "fail" or "finding"."""

    name: str
    claim: str
    measured: float
    low: float
    high: float
    instances: int
    verdict: str


class Library:
    """The package's functions on one array back-end, host arrays in and out.

    Raises ValueError for an unknown back-end, ImportError, with the command that installs it, for a missing one.
    """

    def __init__(self, backend="numpy"):
        if backend not in BACKENDS:
            raise ValueError(f"backend: got {backend!r}, expected one of {', '.join(BACKENDS)}")
        module, needed = BACKENDS[backend]
        try:
            self.xp = importlib.import_module(module)
        except ImportError:
            raise ImportError(f"backend: got {backend}, which is not installed, expected the package of "
                              f"pip install {needed}") from None
        if backend == "jax":
            importlib.import_module("jax").config.update("jax_enable_x64", True)
        if backend == "cupy" and not self.xp.is_available():
            raise ValueError("backend: got cupy without a CUDA device, expected one")
        self.name = backend
        self.thinning = 1 if backend == "numpy" else 20

    def array(self, host, dtype="float64"):
        return self.xp.asarray(np.array(host, dtype=dtype), dtype=getattr(self.xp, dtype))

    def compiled(self, function):
        """``function`` of arrays and numbers, compiled once where the back-end dispatches slowly."""
        return importlib.import_module("jax").jit(function) if self.name == "jax" else function

    def loop(self, X, psi, y, noise, rule, steps, multiple=64.0, form=correct):
        """Frozen psi, ``guarded(form, multiple)``: the ensembles after 0, 1, ..., ``steps`` updates, step sizes."""
        ensembles, sizes, form = [X], [], guarded(form, multiple)
        for _ in range(steps):
            X, w, *_ = self.correct(X, psi(X), y, noise, rule, form=form)
            ensembles.append(X)
            sizes.append(w)
        return ensembles, sizes

    def correct(self, X, G, y, noise, rule, dtype="float64", form=correct):
        """One correction: X+ on the host, and w, ||K||_F, tr K as numbers."""
        X_new, c = form(self.array(X, dtype), self.array(G, dtype), Gaussian(y, noise).residual, rule)
        return to_numpy(X_new), float(c.step), float(c.norm), float(c.trace)

    def run(self, method, forward, noise):
        """A whole run: the final ensemble on the host, and the number of forward calls."""
        calls = []
        state = solve(method, lambda x: calls.append(1) or forward(x), self.array(noise))
        return to_numpy(state.x), len(calls)


def statement(name, claim, high, low=-math.inf, finding=False):
    """Register a function (library) -> (measured, instances) as one line."""

    def register(measure):
        STATEMENTS.append(Line(name, claim, high, low, finding, measure))
        return measure

    return register


def measured(library, line):
    """The `Record` of a `Line`. A measurement that raises or is not a number fails."""
    claim = line.claim
    try:
        value, instances = line.measure(library)
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:  # a broken library is a failed line
        claim, value, instances = f"{claim} ({type(error).__name__}: {error})", math.nan, 0
    value = float(value)
    holds = math.isfinite(value) and line.low <= value <= line.high
    verdict = "fail" if not holds else "finding" if line.finding else "pass"
    return Record(line.name, claim, value, line.low, line.high, int(instances), verdict)


def instances(library, rng, count, measure):
    """Worst value of ``measure(rng)`` over ``count`` random instances, a twentieth where each call is slow."""
    count = max(10, count // library.thinning)
    return worst(measure(rng) for _ in range(count)), count

"""``compare``: methods at equal cost on the same simulated data. What ``enkg compare`` does, of a frozen request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import problems

from .. import __version__
from ..compare.run import Comparison, begin, tune
from ..compare.run import compare as run_comparison
from ..compare.tables import to_text
from ..methods import METHODS
from ..protocol import one_of
from . import building
from .sizes import refuse_impossible

__all__ = ["CompareRequest", "compare", "identity", "items_of", "to_text"]
TUNING_ITEM = 100  # number of the first tuning item; tables use 0, 1, ...
TUNING_ITEMS = 2


@dataclass(frozen=True)
class CompareRequest:
    """What to compare, and where.

    problem : name of a problem that can be simulated;  options : of it, {name: value or its text}
    methods : names of ``methods.METHODS``;  budgets : forward calls of one run, a gradient at its measured cost
    seeds : runs per method, budget and item;  items : simulated truths, numbers 0, 1, ...
    tune : None; or the budget at which settings are chosen on two other items; 0: the largest of ``budgets``
    c_vjp : what a gradient costs beside its value, in forward calls; None: measured, and kept in the folder
    prior, noise : as in ``solve.SolveRequest``;  out : folder
    """

    problem: str
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    out: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3
    items: int = 10
    tune: int | None = None
    c_vjp: float | None = None
    prior: Any = None
    noise: Any = None
    device: str = "cpu"
    chunk: int | None = None

    def __post_init__(self):
        for name in ("seeds", "items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if (self.tune or 0) < 0:
            raise ValueError(f"tune: got {self.tune}, expected a budget of at least 1")
        for name in self.methods:
            one_of("methods", name, METHODS)
        for budget in self.budgets:
            refuse_impossible({}, budget)


@dataclass(frozen=True)
class _OfItem:
    """What ``building`` reads of a request, for the simulated truth of one number."""

    problem: str
    options: Mapping[str, Any]
    noise: Any
    prior: Any
    device: str
    chunk: int | None
    seed: int
    dtype: str = "float32"
    forward: Any = None
    observation: Any = None
    truth: Any = None
    reference: Any = None


def items_of(request, numbers):
    """[`methods.Item`, one per number of a simulated truth], with whatever the methods need and the prior has."""
    return [_item(request, number)[0] for number in numbers]


def _item(request, number):
    """(`Item`, `building.Prior`)"""
    one_of("problem", request.problem, problems.PROBLEMS)
    if not problems.entry(request.problem).simulated:
        raise ValueError(f"problem: got {request.problem}, whose truth nobody knows, expected a simulated one")
    own = _OfItem(request.problem, {**request.options, "item": number}, request.noise, request.prior, request.device,
                  request.chunk, number)
    problem = building.problem_of(own)
    prior = building.prior_of(own, problem)
    if prior.name == "exact":
        own = replace(own, dtype="float64")  # what the prior computes in; a network computes in float32
    return building.item_of(own, problem, prior, request.methods, lenient=True)[0], prior


def identity(request, prior, observation):
    """What a comparison is of, beside the data of its items: nothing of it may change while it goes on."""
    arguments = problems.arguments(request.problem, **request.options)
    return {"prior": prior.source or prior.name, "prior_sha256": prior.sha256,
            "reference_sha256": building.reference_sha256(_Beside(), prior), "version": __version__, **arguments,
            "noise": _described(observation.noise)}


def _described(noise):
    """A standard deviation as it is, several by their fingerprint."""
    noise = np.asarray(noise, dtype=np.float64)
    return hashlib.sha256(np.ascontiguousarray(noise).tobytes()).hexdigest()[:16] if noise.ndim else float(noise)


@dataclass(frozen=True)
class _Beside:
    """A request without a reference of the user's: the one beside the prior counts."""

    reference: Any = None


def compare(request, progress=None, say=None):
    """Make the runs that are missing in the folder and write the tables.  -> the summary, as in results.json

    progress : called with (record, runs done, runs in all);  say : called with a sentence for every method tuned

    Raises ValueError, OSError or ImportError for bad input before anything is computed.
    """
    first, prior = _item(request, 0)
    items = [first, *items_of(request, range(1, request.items))]
    about = identity(request, prior, first.problem.observation)
    tuned_at = [] if request.tune is None else [request.tune or max(request.budgets)]
    comparison = Comparison(items, request.methods, [*request.budgets, *tuned_at], request.seeds, Path(request.out),
                            c_vjp=request.c_vjp, about=about)
    c_vjp = begin(comparison).c_vjp
    settings, words = _tuned(request, tuned_at, about, c_vjp, say)
    return run_comparison(replace(comparison, budgets=list(request.budgets), settings=settings, c_vjp=c_vjp,
                                  tuned=words), progress)


def _tuned(request, tuned_at, about, c_vjp, say):
    """({method: settings}, sentences) chosen on items that no table uses."""
    settings, words = {}, []
    for budget in tuned_at:
        items = items_of(request, range(TUNING_ITEM, TUNING_ITEM + TUNING_ITEMS))
        for name in request.methods:
            one = Comparison(items, [name], [budget], 1, Path(request.out) / "tuning", c_vjp=c_vjp, about=about)
            settings[name], trials = tune(one, name, budget)
            spent = sum(trial["forward_equivalents"] for trial in trials)
            words.append(f"{name}: tuned to {settings[name]}, the best of {len(trials)} on two other items at budget "
                         f"{budget}, {spent:.0f} forward equivalents per item")
            if say is not None:
                say(words[-1])
    return settings, words

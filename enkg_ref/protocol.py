"""The loop, for every method: ask for points, simulate them, tell the results.

A method has ``init(noise) -> state``, ``ask(state) -> x0``, ``tell(state, y_pred) -> (state, info)`` and
``done(state) -> bool``. State carries what a resume needs, info may be thrown away.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ._xp import array_namespace, finite_rows, put_rows, take_rows


def step(method, state, forward):
    """One ask, one wave of J forward evaluations, one tell.  Returns (state, info).

    A FloatingPointError says at which level and update of ``state`` it arose, where the method has them.
    """
    try:
        return method.tell(state, evaluate(forward, method.ask(state)))
    except FloatingPointError as error:
        where = ", ".join(f"{name} {getattr(state, name)}" for name in ("level", "update") if hasattr(state, name))
        raise FloatingPointError(f"{error}, at {where}" if where else str(error)) from error


def iterate(method, forward, state):
    """Generator of (state, info) after every update, until the method is done. Carry the state, drop the info."""
    while not method.done(state):
        state, info = step(method, state, forward)
        yield state, info


def solve(method, forward, noise):
    """Run to the end from standard normal ``noise`` (J, *event). Returns the last state; its ``x`` is the answer."""
    state = method.init(noise)
    while not method.done(state):
        state, _ = step(method, state, forward)
    return state


def evaluate(forward, x0):
    """G(x0), where rows of x0 that are not finite are never sent: their result is NaN, a failed member.

    Raises FloatingPointError if no row is finite.
    """
    finite = finite_rows(x0)
    if finite.all():
        return forward(x0)
    if not finite.any():
        raise FloatingPointError(f"forward: all {x0.shape[0]} evaluations failed, because none of the {x0.shape[0]} "
                                 "denoised points is finite, expected finite numbers")
    rows, lost = finite.nonzero()[0], (~finite).nonzero()[0]
    y_pred = forward(put_rows(x0, lost, take_rows(x0, [rows[0]] * len(lost))))  # a stand-in keeps the number of rows
    return put_rows(y_pred, lost, array_namespace(y_pred).full_like(take_rows(y_pred, lost), math.nan))


def as_line(memory, info, likelihood):
    """What the history keeps of ``info`` where a method has nothing else in mind: all its fields.

    Returns (memory, line); see ``Method.observe``.
    """
    return memory, dataclasses.asdict(info)


@dataclass(frozen=True)
class Plan:
    """A method set up for one item.

    method : with the verbs above;  rows : J, of the starting noise;  settings : JSON-able, what a summary prints and a
    checkpoint compares;  waves : sequential forward calls of the whole run;  state : the class of its states
    around : Forward -> Forward, what the method wants around the forward model
    why : in words, what was chosen for this item and by which rule, for the user to read; "" where nothing was
    """

    method: Any
    rows: int
    settings: Mapping[str, Any]
    waves: int
    state: type
    around: Callable = lambda forward: forward  # noqa: E731
    why: str = ""


@dataclass(frozen=True)
class Method:
    """What the table of methods knows of one: everything that a run, a comparison or a list needs.

    plan : (item, budget, c_vjp, seed, settings) -> `Plan`. ``item`` is a ``methods.Item``; ``budget`` a number of
        forward calls, a forward VJP (vector-Jacobian product, a gradient) counting c_vjp beside its value, or None;
        ``settings`` {name: value} override what the plan chooses. Raises ValueError if the budget is too small.
    access : what it asks for: "forward", "denoiser", "denoiser_vjp", "forward_vjp", "correction", "reference"
    words, spends : for a list: what it is, and how it spends a budget
    spread : what the spread of its ensemble means, in words for the reader of a result
    weigh : several ensembles are pooled by how well they fit, for each samples the mode it found; else alike
    candidates : settings among which a tuning chooses; {} is the default
    options : names of the settings that a user may give beside or instead of a budget
    default_budget : item -> forward calls of a run where nobody names a budget; None: the plan needs none
    observe : (memory, info, likelihood) -> (memory, line), the history line {name: number} of one update; ``memory``,
        a dataclass of arrays and numbers or None, is what the next line needs of this one, saved with the state
    memory : its first value
    """

    plan: Callable
    access: frozenset
    words: str
    spends: str
    spread: str
    candidates: tuple[Mapping[str, Any], ...] = ({},)
    options: tuple[str, ...] = ()
    default_budget: Callable | None = None
    observe: Callable = as_line
    memory: Any = None
    weigh: bool = False


def at_least(name, budget, least):
    """ValueError unless ``budget``, forward calls for the method ``name``, is at least ``least``."""
    if budget is None:
        raise ValueError(f"budget: got nothing, expected a number of forward calls for {name}, at least {least}")
    if budget < least:
        raise ValueError(f"budget: got {budget} forward calls for {name}, expected at least {least}")


def one_of(argument, value, known):
    """ValueError, with the nearest known name, unless ``value`` is one of ``known``."""
    if value not in known:
        close = difflib.get_close_matches(str(value), list(known), 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"{argument}: got {value!r}, expected one of {', '.join(known)}{hint}")

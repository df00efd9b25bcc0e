"""The record that describes an inverse problem y = G(x) + noise. Plain data and plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Observation:
    """What was measured and how well: the parts a likelihood is built from.

    Attributes
    ----------
    y : array (m,)                     data
    noise : float, array (m,) or (m, m)   standard deviation(s), or a covariance; data units
    angular : array (m,) of bool, or None  entries of y that are angles in radians (residuals are wrapped)
    blocks : {name: slice}             named parts of y, e.g. {"cp": slice(0, 107), "lca": slice(107, 198)}
    """

    y: Any
    noise: Any
    angular: Any = None
    blocks: Mapping[str, slice] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One inverse problem, ready to solve. Arrays are host numpy; ``forward`` accepts any array-API namespace.

    Attributes
    ----------
    name : str
    event_shape : tuple             shape of one particle, e.g. (64, 64); a prior must have the same
    forward : (J, *event) prior units -> (J, m) observation units; row i depends on row i only
    observation : Observation
    scale, shift : float            physical = scale * x + shift, x in prior units
    units : str                     of the physical field
    truth : array (*event) or None  physical units
    forward_vjp : (x, v) -> J_G(x)^T v, shapes (J, *event), (J, m) -> (J, *event), or None
    prior : str or None             name of the shipped prior that fits
    moments : () -> (mean (n, n), half spectrum (n, n//2 + 1)), prior units, of a stationary Gaussian with the first two
        moments of the prior's data, or None
    defaults : mapping              solver settings recommended for this problem, by Config field name
    score : (ensemble in physical units (J, *event)) -> {name: float}, figures of merit for the summary
    pool : (ensemble (J, *event), index (J,)) -> ensemble, what must be undone before independent ensembles (numbered by
        ``index``) are averaged because the data do not determine it, or None
    figure : (result) -> matplotlib Figure, or None for the generic one; ``result`` is the mapping saved in result.npz
    notes : str                     what a reader of a result must know (stand-in data, units, resolution)
    """

    name: str
    event_shape: tuple[int, ...]
    forward: Callable
    observation: Observation
    scale: float = 1.0
    shift: float = 0.0
    units: str = ""
    truth: Any = None
    forward_vjp: Callable | None = None
    prior: str | None = None
    moments: Callable | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    score: Callable | None = None
    pool: Callable | None = None
    figure: Callable | None = None
    notes: str = ""

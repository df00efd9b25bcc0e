"""The records that describe an inverse problem y = G(x) + noise. Plain data and plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What was measured and how well: the parts a likelihood is built from.

    Attributes
    ----------
    y : array (m,)                     data
    noise : float, array (m,) or (m, m)   standard deviation(s), or a covariance; data units
    angular : array (m,) of bool, or None  entries of y that are angles in radians (residuals are wrapped)
    blocks : {name: slice}             named parts of y, e.g. {"cp": slice(0, 107), "lca": slice(107, 198)}
    noise_is_assumed : bool            nobody stated the noise of y: ``noise`` is `assumed_noise` of y
    """

    y: Any
    noise: Any
    angular: Any = None
    blocks: Mapping[str, slice] = field(default_factory=dict)
    noise_is_assumed: bool = False


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
    prior : str or None             name of the shipped prior that fits, or "gaussian": the problem's own ``gaussian``
    gaussian : Gaussian prior in prior units (``onnx_priors.gaussian.GaussianPrior``: mean, denoise, denoise_vjp, ...)
        with the first two moments of the fields, or None; the prior itself where ``posterior`` is known
    known : mapping                 answers that need no run, (*event) in physical units, e.g. "prior mean"
    method, budget : str, int       what solves it unless the user says otherwise, and its forward calls; or None
    defaults : mapping              solver settings recommended for this problem, by Config field name
    preset : str or None            name of the released configuration that was published for it, ``enkg_ref.PRESETS``
    ensembles : int                 independent ensembles of one run, unless the user says otherwise
    metric : str                    the figure of merit that a comparison sorts by
    larger_is_better : bool         whether it does so downwards
    score : (ensemble in physical units (J, *event)) -> {name: float}, figures of merit for the summary
    pool : (ensemble (J, *event), index (J,)) -> ensemble, what must be undone before independent ensembles (numbered by
        ``index``) are averaged because the data do not determine it, or None
    figure : (result) -> matplotlib Figure, or None for the generic one; ``result`` is the mapping saved in result.npz
    export : (result, folder) -> names of further files it wrote there, in the formats of the field, or None
    remarks : (ensemble in physical units (J, *event)) -> sentences on this result that belong in its notes, or None
    notes : str                     what a reader of a result must know (stand-in data, units, resolution)

    A subclass whose ``gaussian`` is the prior itself may know the exact ``posterior`` = (mean (*event), covariance).
    Raises ValueError for a truth of another shape than ``event_shape``.
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
    gaussian: Any = None
    known: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    budget: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    ensembles: int = 1
    metric: str = "relative_l2_of_mean"
    larger_is_better: bool = False
    score: Callable | None = None
    pool: Callable | None = None
    figure: Callable | None = None
    export: Callable | None = None
    remarks: Callable | None = None
    notes: str = ""

    posterior = None  # no field: a subclass may compute it when it is asked for

    def __post_init__(self):
        if self.truth is not None and tuple(self.truth.shape) != tuple(self.event_shape):
            raise ValueError(f"truth: got shape {tuple(self.truth.shape)}, expected {tuple(self.event_shape)}")


def assumed_noise(y):
    """Standard deviation with which noise-free data are inverted: 2 % of the standard deviation of y.

    Model and measurement are weighed against each other by the noise; with none there is nothing to weigh. ValueError
    for data that are all alike.
    """
    noise = 0.02 * float(np.std(y))
    if not noise > 0:
        raise ValueError(f"noise: got nothing for data that all equal {np.ravel(y)[0]:g}, expected a standard "
                         "deviation > 0")
    return noise


# ------------------------------------------------------------------------------------------------- entries of the table


@dataclass(frozen=True)
class Option:
    """One argument of a problem, on the command line ``--name`` with hyphens for underscores.

    Attributes
    ----------
    name : str                   of the keyword of `Entry.build`
    kind : text -> value         `str`, `integer`, `number`, `nonnegative`, ...; ValueError "got ..., expected ..."
    help : str                   one line
    default                      of `Entry.build`, for the help and the record of a comparison
    choices : tuple of values, or None where every value is allowed
    data : str                   "measured": used with an observation only; "simulated": without one only; "": always
    """

    name: str
    kind: Callable[[str], Any]
    help: str
    default: Any = None
    choices: tuple | None = None
    data: str = ""

    def read(self, value):
        """The value, made of its text where it is one; ValueError "NAME: got ..., expected ..."."""
        try:
            value = self.kind(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        if self.choices is not None and value not in self.choices:
            raise ValueError(f"{self.name}: got {value!r}, expected one of {', '.join(map(str, self.choices))}")
        return value


@dataclass(frozen=True)
class Entry:
    """One problem of the table.

    Attributes
    ----------
    build : (**options) -> Problem   every option is a keyword with a default
    words : str                      one line for the list of problems
    options : tuple of Option        those that ``build`` understands
    simulated : bool                 whether it can make its own data from a known truth, number ``item``
    """

    build: Callable[..., Problem]
    words: str
    options: tuple[Option, ...]
    simulated: bool = True


def integer(text):
    """``text`` as an int of at most 18 digits."""
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"got {text!r}, expected an integer") from None
    if abs(value) >= 10**18:
        raise ValueError(f"got {text!r}, expected an integer of at most 18 digits")
    return value


def count(text):
    """``text`` as an int >= 0."""
    value = integer(text)
    if value < 0:
        raise ValueError(f"got {text}, expected a number >= 0")
    return value


def number(text):
    """``text`` as a finite float."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"got {text!r}, expected a number") from None
    if not np.isfinite(value):
        raise ValueError(f"got {text!r}, expected a finite number")
    return value


def nonnegative(text):
    """``text`` as a finite float >= 0."""
    value = number(text)
    if value < 0:
        raise ValueError(f"got {text!r}, expected a number >= 0")
    return value


def positive(text):
    """``text`` as a finite float > 0."""
    value = number(text)
    if value <= 0:
        raise ValueError(f"got {text!r}, expected a number > 0")
    return value


ITEM = Option("item", count, "number of the simulated truth", 0, data="simulated")
OBSERVATION = Option("observation", str, "file of the measured data, instead of simulated ones")
TRUTH = Option("truth", str, ".npy file of the true field, physical units")

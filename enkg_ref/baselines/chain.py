"""What the baselines share: chains on the VP grid, split Gibbs sampling, reports, checks, and how a budget is spent.

A baseline has the verbs init, ask, tell, done, and ``counts(rows)``, the calls of a whole run in closed form.
Rows are independent chains, R of them (EKI, Blade: the J particles of one ensemble).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .._xp import array_namespace, like, member_normals, to_numpy
from ..diffusion import edm_sigmas
from ..likelihood import change
from ..protocol import Plan, at_least
from .schedule import VP_SIGMA_MAX, levels_below, vp_grid

BIASED = ("The spread is that of independent chains of a biased method, not a posterior standard deviation, even for a "
          "perfect prior.")
ONE_CHAIN = "One chain per run has no spread; the scatter between independent runs (--ensembles) is all there is."
COUPLED = ("The draws are meant as draws of the posterior for the noise of the data plus the last coupling; a short "
           "run has not reached it.")


# ------------------------------------------------------------------------------------------------ settings and reports
class Settings:
    """Base of the methods' frozen configurations."""

    def describe(self):
        """The settings as plain values (functions by name): what a summary prints and a checkpoint compares."""
        return {f.name: list(value) if isinstance(value, tuple) else getattr(value, "__name__", value)
                for f in dataclasses.fields(self) for value in [getattr(self, f.name)]}


def expect(name, value, least=0, strict=False):
    """Raises ValueError unless ``value`` is a finite number >= least (> least if strict)."""
    if not (math.isfinite(value) and (value > least or (value == least and not strict))):
        raise ValueError(f"{name}: got {value}, expected a number {'>' if strict else '>='} {least}")


def expect_one(name, value, *choices):
    """Raises ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name}: got {value!r}, expected {', '.join(others)} or {last}")


@dataclass(frozen=True)
class Info:
    """Diagnostics of one wave of predictions. Plain Python numbers.

    misfit, mean_misfit : ||g - y||_Gamma^2/m of the wave's mean prediction, and averaged over its rows
    skipped : number of rows whose guidance was skipped (a denominator was zero or a value not finite)
    """

    level: int
    sigma: float
    misfit: float
    mean_misfit: float
    skipped: int = 0


def report(level, sigma, g, likelihood, skipped=0):
    """`Info` of a wave with predictions g (rows, m); rows that are not finite are left out."""
    xp = array_namespace(g)
    alive = xp.astype(finite_mask(g), g.dtype)
    members = max(float(xp.sum(alive)), 1.0)
    g = xp.where(alive[:, None] > 0.0, g, xp.zeros_like(g))
    mean = xp.sum(g, axis=0, keepdims=True) / members
    misfits = xp.sum(likelihood.misfit(g) * alive) / members
    return Info(level, sigma, float(likelihood.misfit(mean)[0]) / likelihood.size, float(misfits) / likelihood.size,
                int(skipped))


def calls(rows, **each):
    """Totals and sequential depths, as the ledger names them, of ``each`` kind of call made once for every row."""
    return {name: value for kind, number in each.items()
            for name, value in ((f"{kind}_total", number * rows), (f"{kind}_seq", number))}


# ------------------------------------------------------------------------------------------------------ rows of arrays
def finite_mask(x):
    """(rows, ...) -> (rows,) of bool, beside x."""
    xp = array_namespace(x)
    return xp.all(xp.isfinite(xp.reshape(x, (x.shape[0], -1))), axis=1)


def require_finite(x, what, level, sigma):
    """x, if it is finite. Raises FloatingPointError that names the first bad row otherwise."""
    finite = finite_mask(x)
    if not bool(array_namespace(finite).all(finite)):
        row = int(to_numpy(finite).argmin())
        raise FloatingPointError(f"{what}: row {row} is not finite at level {level} (sigma = {sigma:.4g}), "
                                 "expected finite numbers")
    return x


def dead_rows(live):
    """Number of rows that are not live."""
    return live.shape[0] - int(to_numpy(live).sum())


def normals(seed, stream, x, extra=()):
    """(rows, *extra, *event) standard normals like x.

    Row r depends on (seed, stream, r) only, and the first k of ``extra`` draws are those of a shorter ``extra``.
    """
    return like(member_normals(seed, stream, x.shape[0], (*extra, *x.shape[1:])), x)


def per_row(v, x):
    """(rows,) -> (rows, 1, ..., 1), to multiply x (rows, *event)."""
    return array_namespace(v).reshape(v, (v.shape[0],) + (1,) * (x.ndim - 1))


def where_live(live, x):
    """x (rows, *event) with zeros in the rows that are not live."""
    xp = array_namespace(x)
    return xp.where(per_row(live, x), x, xp.zeros_like(x))


def repeat(x, n):
    """(rows, *event) -> (rows, n, *event), every row n times."""
    xp = array_namespace(x)
    return xp.broadcast_to(x[:, None, ...], (x.shape[0], n, *x.shape[1:]))


def flat(x):
    """(rows, n, *event) -> (rows n, *event)."""
    return array_namespace(x).reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def row_norm(x):
    """Euclidean norm of every row.  (rows, *event) -> (rows,)"""
    xp = array_namespace(x)
    return xp.sqrt(xp.sum(xp.reshape(x * x, (x.shape[0], -1)), axis=1))


# ----------------------------------------------------------------------------------------------- chains on the VP grid
@dataclass(frozen=True)
class ChainState:
    """x, denoised : (R, *event), the scaled chains and D(x/s_i, sigma_i);  level : i"""

    x: Any
    denoised: Any
    level: int = 0


class VPChain:
    """Chains that go down the VP grid (B1), predicted at D. Of its config: steps, sigma_max, and last, seed."""

    @cached_property
    def grid(self):
        return vp_grid(self.config.steps, self.config.sigma_max)

    def init(self, noise):
        return self._at(0, self.grid.start(noise))

    def ask(self, state):
        return state.denoised

    def done(self, state):
        return state.level >= self.config.steps

    def _at(self, i, x):
        """State at level i; at the end x is the answer."""
        return ChainState(x, x if i == self.config.steps else self._denoise(i, x), i)

    def _denoise(self, i, x):
        """D(x/s_i, sigma_i), finite."""
        sigma = self.grid.sigmas[i]
        return require_finite(self.denoise(self.grid.unscaled(i, x), sigma), "denoise", i, sigma)

    def _diffused(self, state, stream):
        """The unguided step, E_i(x) with the normals of ``stream``; D at the last one, unless that is to be noisy."""
        c, i = self.config, state.level
        if i == c.steps - 1 and c.last == "denoised":
            return state.denoised
        return self.grid.sde_step(i, state.x, state.denoised, normals(c.seed, stream, state.x))


# --------------------------------------------------------------------------------------------------------- split Gibbs
@dataclass(frozen=True)
class SplitState:
    """x, z : (R, *event), the prior's and the likelihood's half of the chains

    level : outer steps done;  inner : likelihood steps done in this one
    """

    x: Any
    z: Any
    level: int = 0
    inner: int = 0


class SplitGibbs:
    """Likelihood steps at z and a prior step from z to x, in turn. Of its config: rhos(), outer, inner, prior_steps,
    sigma_max, sigma_min."""

    start_of_prior_step = "exact"

    @cached_property
    def prior_levels(self):
        c = self.config
        full = edm_sigmas(c.prior_steps, c.sigma_max, c.sigma_min)
        return [levels_below(rho, full, self.start_of_prior_step) for rho in c.rhos()]

    def ask(self, state):
        return state.z

    def done(self, state):
        return state.level >= self.config.outer


# ------------------------------------------------------------------------------------------------- spending a budget
STEPS = (1000, 500, 250, 100, 50, 25, 10)  # of the diffusion, longest first
ENOUGH_STEPS = 50  # with fewer the unguided VP sampler is itself too coarse to draw from the prior
POWER_ITERATIONS = 8


def planned(method, rows, state):
    """`Plan` of a baseline."""
    return Plan(method, rows, method.config.describe(), method.counts(rows)["fwd_seq"], state)


def queried_chain(name, budget, cost, rows, settings, least=1):
    """(N, number of rows) of one chain with many calls per step: the largest N that pays ``rows`` rows of cost(N) each.

    At least `ENOUGH_STEPS`, for fewer rows, down to ``least``; fewer steps only where even those cannot be paid.
    ``settings`` may fix "steps". Raises ValueError with the least budget.
    """
    steps = (settings["steps"],) if "steps" in settings else STEPS
    at_least(name, budget, math.ceil(least * cost(min(steps))))
    enough, few = [n for n in steps if n >= ENOUGH_STEPS], [n for n in steps if n <= ENOUGH_STEPS]
    return next((n, int(budget // cost(n))) for wanted, ladder in ((rows, enough), (least, few or steps))
                for n in ladder if budget >= wanted * cost(n))


def plain_chains(name, budget, cost, settings, shape, first=0.0):
    """(N, R) of ``shape`` = (rows, shortest, longest): ``rows`` chains of as many steps as the budget pays at ``cost``
    each, fewer chains where these would be shorter than ``shortest``, more beyond ``longest``.

    A chain that is too short to fit the data is worth little, however many there are. ``settings`` may fix "rows",
    which is taken out of it, or "steps"; ``first`` is spent before. Raises ValueError with the least budget.
    """
    rows, shortest, longest = shape
    rows, steps = settings.pop("rows", rows), settings.get("steps")
    shortest = steps or shortest
    at_least(name, budget, math.ceil(first + shortest * cost))
    room = budget - first
    R = int(min(max(rows, room // ((steps or longest) * cost)), room // (shortest * cost)))
    return steps or int(room // (R * cost)), R


def vp_start(item):
    """The setting of the VP grid's start, where the prior ends below sigma(1) = 152."""
    return {"sigma_max": item.sigma_range[1]} if item.sigma_range[1] < VP_SIGMA_MAX else {}


def low_start(item):
    """Where dps and mmps start: ten times the prior's standard deviation, which spends their few steps better."""
    high = item.sigma_range[1]
    return high if item.std is None else min(high, 10.0 * item.std)


def norm_cost(c_vjp):
    """Forward equivalents of `operator_norm`."""
    return 1 + POWER_ITERATIONS * (1 + c_vjp)


def operator_norm(item, iterations=POWER_ITERATIONS):
    """||Gamma^-1/2 J_G|| at the start of every chain, x = 0, by power iteration with the adjoint and differences.

    Costs ``iterations`` VJPs and one forward call more than that, which the ledger of the run counts.
    """
    likelihood = item.likelihood
    x = np.zeros((1, *item.problem.event_shape), dtype=item.dtype)
    rng = np.random.default_rng(0)
    x = x + (0.01 * rng.standard_normal(x.shape)).astype(item.dtype)
    base = np.asarray(item.forward(x)).reshape(1, -1)
    w, norm = rng.standard_normal(x.shape).astype(item.dtype), 1.0
    for _ in range(iterations):
        w = w / np.sqrt(np.mean(w * w)) * 1e-3
        moved = change(likelihood, np.asarray(item.forward(x + w)).reshape(1, -1), base)
        norm = float(np.linalg.norm(likelihood.whiten(moved)) / np.linalg.norm(w))
        w = item.forward_vjp(x, likelihood.precision(moved).astype(item.dtype))
    return norm

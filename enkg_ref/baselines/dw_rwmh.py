"""DW-RWMH: Metropolis chains whose proposal noises a point and draws a clean one given that, with no gradient.

[1] Takao, Bellchambers, Ye, Ghosh, Michaelides 2026, "Noise, Denoise, Correct".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import metropolis
from .._xp import array_namespace, like, to_numpy
from ..diffusion import edm_sigmas, initial_ensemble
from ..likelihood import predictions
from ..protocol import Method, at_least
from .chain import Settings, calls, expect, planned, report, require_finite

FAILED = 1e30  # misfit of a prediction that is not finite


@dataclass(frozen=True)
class Config(Settings):
    """The published constants, but for ``scale``, ``calls`` and ``start_calls``, which belong to the prior here.

    steps : proposals of every chain;  scale : the prior's standard deviation, s = scale t/(1 - t)
    t, h : their start;  t_range, h_range : what they are clipped to;  target : acceptance wanted
    rate : of the Robbins-Monro steps logit t <- logit t + rate (acceptance - target), logit h alike
    adapt : steps in which t, h (and the gain of DW-EKCN) follow the chains; from then on they are fixed and the chains
        exact. None: to the end, as published, which breaks exactness
    calls : denoiser calls of a draw of p(x0 | x_s);  start_calls : of a draw of the prior, from sigma_max
    """

    steps: int = 250
    scale: float = 1.0
    t: float = 0.7
    t_range: tuple[float, float] = (0.3, 0.7)
    h: float = 1.0
    h_range: tuple[float, float] = (0.01, 1.0)
    target: float = 0.3
    rate: float = 0.3
    adapt: int | None = None
    calls: int = 10
    start_calls: int = 40
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "calls", "start_calls"):
            expect(name, getattr(self, name), 1)
        for name in ("scale", "sigma_max", "sigma_min"):
            expect(name, getattr(self, name), 0, strict=True)
        for name in ("t", "h"):
            low, high = getattr(self, f"{name}_range")
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a number in [{low}, {high}]")


@dataclass(frozen=True)
class State:
    """x : (J, *event) the chains;  d : (J, m) their whitened differences;  misfit : (J,)

    proposal, noised : (J, *event) the next points to simulate, and x_s;  t, h : of the proposal
    gain_x : (J, *event), gain_d : (J, m), the ensemble that the gain of DW-EKCN is made of
    accepted : share of the chains that moved at the last step;  step : -1 until the start is evaluated
    """

    x: Any
    d: Any
    misfit: Any
    proposal: Any
    noised: Any
    gain_x: Any
    gain_d: Any
    t: float
    h: float
    accepted: float = 0.0
    step: int = -1


@dataclass(frozen=True)
class DWRWMH:
    """x_s = x0 + nu(x0) + s eps, x0' ~ p(x0 | x_s); accept with min(1, L(x0')/L(x0) times the ratio (X2)).

    nu = 0 here: the prior p needs no density, the ratio is that of the likelihoods (X1). J chains, J calls a step.
    Reference noise is white (in [1] Matern), the draw of p(x0 | x_s) an ancestral chain (in [1] a flow).
    """

    denoise: Callable
    likelihood: Any
    config: Config = Config()

    def init(self, noise):
        c = self.config
        levels = edm_sigmas(c.start_calls, c.sigma_max, c.sigma_min)[:-1]
        streams = metropolis.Streams(c.seed, 0, noise.shape[0])
        x = metropolis.ancestral_draw(initial_ensemble(noise, c.sigma_max), levels, self.denoise,
                                      lambda: streams.normals(noise.shape[1:], noise))
        x = require_finite(x, "denoise", 0, c.sigma_max)
        d = like(np.zeros((noise.shape[0], self.likelihood.size)), x)
        return State(x, d, d[:, 0], x, x, x, d, c.t, c.h)

    def ask(self, state):
        return state.proposal

    def done(self, state):
        return state.step >= self.config.steps

    def tell(self, state, y_pred):
        """One step of every chain; a prediction that is not finite is never accepted."""
        c = self.config
        g = predictions(y_pred, state.x, self.likelihood)
        xp = array_namespace(g)
        d, misfit = self.likelihood.whiten(self.likelihood.difference(g)), self.likelihood.misfit(g)
        alive = xp.isfinite(misfit)
        misfit = xp.where(alive, misfit, FAILED * xp.ones_like(misfit))
        d = metropolis.where_rows(alive, d, xp.zeros_like(d))
        if state.step < 0:
            state = replace(state, d=d, misfit=misfit, gain_x=state.x, gain_d=d)
            share = 0.0
        else:
            ratio = 0.5 * (state.misfit - misfit) + metropolis.noising_log_ratio(
                state.noised, state.x, self.shift(state, state.d), state.proposal, self.shift(state, d),
                self._noise(state))
            streams = metropolis.Streams(c.seed, 2 + 2 * state.step, g.shape[0])
            moves = metropolis.accept(ratio, streams.uniforms())
            share = float(np.mean(to_numpy(moves)))
            state = replace(state, x=metropolis.where_rows(moves, state.proposal, state.x),
                            d=metropolis.where_rows(moves, d, state.d), misfit=xp.where(moves, misfit, state.misfit))
            state = self._adapt(state, share)
        info = report(max(state.step, 0), self._noise(state), g, self.likelihood)
        state = replace(state, accepted=share, step=state.step + 1)
        return state if self.done(state) else self._propose(state), info

    def shift(self, state, d):
        """nu of points with whitened differences d (J, m).  -> (J, *event), or 0"""
        return 0.0

    def _noise(self, state):
        return self.config.scale * state.t / (1.0 - state.t)

    def _adapt(self, state, share):
        c = self.config
        if c.adapt is not None and state.step >= c.adapt:
            return state
        t, h = (_robbins_monro(value, c.rate * (share - c.target), *bounds)
                for value, bounds in ((state.t, c.t_range), (state.h, c.h_range)))
        return replace(state, t=t, h=h, gain_x=state.x, gain_d=state.d)

    def _propose(self, state):
        c, s = self.config, self._noise(state)
        streams = metropolis.Streams(c.seed, 1 + 2 * state.step, state.x.shape[0])

        def normals():
            return streams.normals(state.x.shape[1:], state.x)

        noised = state.x + self.shift(state, state.d) + s * normals()
        levels = metropolis.ancestral_levels(s, c.calls, least=c.sigma_min)
        proposal = metropolis.ancestral_draw(noised, levels, self.denoise, normals)
        return replace(state, noised=noised, proposal=require_finite(proposal, "denoise", state.step, s))

    def counts(self, rows):
        c = self.config
        return calls(rows, fwd=c.steps + 1, den=c.start_calls + c.steps * c.calls)


def _robbins_monro(value, change, low, high):
    """logit value <- logit value + change, inside [low, high]."""
    value = min(max(value, 1e-9), 1.0 - 1e-9)
    moved = math.log(value / (1.0 - value)) + change
    return min(max(1.0 / (1.0 + math.exp(-moved)), low), high)


def planned_chains(method, item, budget, name, seed, settings):
    """J = (0.4 budget)^1/2 chains, the published 100 at 25,000 calls. "particles" may be among the settings."""
    settings = dict(settings)
    at_least(name, budget, 16)
    J = settings.pop("particles", max(4, math.isqrt(int(0.4 * budget))))
    low, high = item.sigma_range
    config = Config(**{"steps": max(1, budget // J - 1), "scale": item.std or 1.0, "sigma_max": high, "sigma_min": low,
                       "seed": seed, **settings})
    return planned(method(item.denoise, item.likelihood, config), J, State)


def plan(item, budget, c_vjp, seed, settings):
    """`protocol.Plan`, see `planned_chains`."""
    return planned_chains(DWRWMH, item, budget, "dw-rwmh", seed, settings)


SPREAD = ("The chains sample the posterior of the prior as the denoiser draws it, as far as they have come: the start "
          "is the prior, and few steps are not enough where the data say much.")
METHOD = Method(
    plan, access=frozenset({"forward", "denoiser"}), words="noise, denoise, accept: random walk, Takao et al. 2026",
    spends="chains and steps as 100 to 250; starts from draws of the prior", spread=SPREAD,
    candidates=({}, {"adapt": 0, "t": 0.5}, {"t": 0.5}, {"particles": 16}))

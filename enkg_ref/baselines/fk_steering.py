"""FK steering: a bootstrap particle filter over the reverse diffusion, weighted by how the predicted fit changes.

[1] Singhal et al. 2025, "A general framework for inference-time scaling and steering of diffusion models".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import metropolis
from .._xp import array_namespace, like, take_rows, to_numpy
from ..diffusion import edm_sigmas, initial_ensemble
from ..likelihood import predictions
from ..protocol import Method, at_least
from .chain import Settings, calls, expect, planned, report, require_finite

HOPELESS = -1e30  # reward of a prediction that is not finite


@dataclass(frozen=True)
class Config(Settings):
    """steps : levels of the grid (T1), each one wave of predictions;  tilt : lambda, 1 for the posterior

    threshold : resample when the effective number of particles falls below this share of J; 1: at every level
    """

    steps: int = 50
    tilt: float = 1.0
    threshold: float = 0.5
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    seed: int = 0

    def __post_init__(self):
        expect("steps", self.steps, 1)
        for name in ("tilt", "threshold"):
            expect(name, getattr(self, name))


@dataclass(frozen=True)
class State:
    """x : (J, *event) at noise level ``level``, the answer once done;  denoised : D there

    reward : (J,) log L(G(D)) of the particles' last level;  log_weight : (J,)
    """

    x: Any
    denoised: Any
    reward: Any
    log_weight: Any
    level: int = 0


@dataclass(frozen=True)
class FKSteering:
    """w_j <- w_j exp(lambda (r(x_i^j) - r(x_{i-1}^j))), r = log L(G(D(x, sigma_i))), r = 0 before the first level;

    systematic resampling; then x <- D + (b/a)^2 (x - D) + b sqrt(1 - (b/a)^2) eps for a = sigma_i, b = sigma_{i+1}. The
    potentials telescope to L(D_last)^lambda, so that with many particles the target is the prior, as the reverse chain
    draws it, times L^lambda. The particles of the answer are resampled once more, so that they count alike.
    """

    denoise: Callable
    likelihood: Any
    config: Config = Config()

    @cached_property
    def levels(self):
        return edm_sigmas(self.config.steps, self.config.sigma_max, self.config.sigma_min)[:-1]

    def init(self, noise):
        x = initial_ensemble(noise, self.config.sigma_max)
        zero = like(np.zeros(noise.shape[0]), noise)
        return State(x, self._denoise(x, 0), zero, zero)

    def ask(self, state):
        return state.denoised

    def done(self, state):
        return state.level >= self.config.steps

    def tell(self, state, y_pred):
        c, i, J = self.config, state.level, state.x.shape[0]
        g = predictions(y_pred, state.x, self.likelihood)
        xp = array_namespace(g)
        reward = -0.5 * self.likelihood.misfit(g)
        reward = xp.where(xp.isfinite(reward), reward, HOPELESS * xp.ones_like(reward))
        info = report(i, self.levels[i], g, self.likelihood)
        log_weight = state.log_weight + c.tilt * (reward - state.reward)
        last, rng = i + 1 == c.steps, np.random.default_rng([c.seed, 1 + 2 * i])
        weights = normalised(to_numpy(log_weight))
        x, denoised = state.x, state.denoised
        if last or effective(weights) <= c.threshold * J:
            rows = systematic(weights, rng.random())
            x, denoised, reward = (take_rows(v, rows) for v in (x, denoised, reward))
            log_weight = xp.zeros_like(log_weight)
        if last:
            return State(denoised, denoised, reward, log_weight, i + 1), info
        here, following = self.levels[i], self.levels[i + 1]
        kept = (following / here) ** 2
        eps = metropolis.Streams(c.seed, 2 + 2 * i, J).normals(x.shape[1:], x)
        x = denoised + kept * (x - denoised) + following * math.sqrt(1.0 - kept) * eps
        return State(x, self._denoise(x, i + 1), reward, log_weight, i + 1), info

    def _denoise(self, x, i):
        return require_finite(self.denoise(x, self.levels[i]), "denoise", i, self.levels[i])

    def counts(self, rows):
        return calls(rows, fwd=self.config.steps, den=self.config.steps)


def normalised(log_weights):
    """exp(log_weights)/sum, host (J,)."""
    weights = np.exp(log_weights - np.max(log_weights))
    return weights / weights.sum()


def effective(weights):
    """1/sum w^2, the effective number of particles."""
    return 1.0 / float(np.sum(weights**2))


def systematic(weights, u):
    """Systematic resampling: particle j appears floor or ceil of J w_j times, J w_j on average over u in [0, 1).

    (J,) -> (J,) of row numbers
    """
    J = len(weights)
    return np.minimum(np.searchsorted(np.cumsum(weights), (np.arange(J) + u) / J, side="right"), J - 1)


def plan(item, budget, c_vjp, seed, settings):
    """50 levels, fewer where that leaves fewer than 8 particles. "particles" may be among the settings."""
    settings = dict(settings)
    at_least("fk-steering", budget, 16)
    steps = settings.pop("steps", max(2, min(50, budget // 8)))
    J = settings.pop("particles", max(2, budget // steps))
    low, high = item.sigma_range
    config = Config(**{"steps": steps, "sigma_max": high, "sigma_min": low, "seed": seed, **settings})
    return planned(FKSteering(item.denoise, item.likelihood, config), J, State)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser"}), words="a particle filter over the diffusion, Singhal et al. 2025",
    spends="50 levels, the rest in particles",
    spread="With many particles the spread is a posterior standard deviation; with few, resampling leaves copies of "
           "the best ones and the spread is too small.",
    candidates=({}, {"threshold": 1.0}, {"tilt": 0.5}, {"steps": 25}))

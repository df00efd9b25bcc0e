"""Ensemble Kalman Diffusion Guidance, Algorithm 2 of [1]: correct the ensemble at a noise level, predict to the next.

    X = sigma_0 * noise                                             (T2)
    for each noise level i = 0 .. N:
        if level i is guided, U times:
            x0 = phi(X)                 ask:  inner flow            (T3)
            g  = G(x0)                  the forward model
            X  = X - w K (X - mean X)   tell: correction            (T4)-(T6)
        X = Euler step to level i + 1   tell: predictor, if i < N   (T7)

Two verbs carry the method: ``ask(state)`` gives the points to simulate, ``tell(state, y_pred)`` takes the results.
``protocol`` puts a forward model between them. Nothing here counts, masks, stops or warns: wrappers of the callables
do (``extensions``), and consumers of (state, info) do (``diagnostics``).

[1] arXiv 2409.20175. The order of the loop is immaterial: "correct then predict" (official code) and "predict then
correct" (paper) are the same sequence when a level is named by its index i. They differ only at the ends, where the
first may correct at level 0 and the second at level N, sigma = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import ensemble
from .diffusion import euler_step, flow_to_zero, initial_ensemble, inner_steps
from .likelihood import predictions


def intended_guidance(i, n, gamma, floor):
    """(T8) gamma_i = gamma ((1 - floor)(n - i)/n + floor): falls from gamma to gamma * floor; constant if floor = 0."""
    return gamma * ((1.0 - floor) * (n - i) / n + floor) if floor else gamma


@dataclass(frozen=True)
class Config:
    """Settings of the corrections and of the inner flow. ``presets`` holds the released ones.

    updates : U corrections per guided level;  step_rule : gamma -> step size, ``ensemble.frobenius`` or ``trace`` (T5)
    guidance, guidance_floor, guidance_schedule : gamma_i = guidance_schedule(i, N, guidance, guidance_floor) (T8)
    inner_factor, inner_cap, sigma_eps, rho_inner : the inner flow (T3b, T3c)
    """

    updates: int = 2
    step_rule: Callable = ensemble.frobenius
    guidance: float = 2.0
    guidance_floor: float = 0.0
    guidance_schedule: Callable = intended_guidance
    inner_factor: int = 4
    inner_cap: int = 20
    sigma_eps: float = 0.002
    rho_inner: float = 7.0

    def __post_init__(self):
        if self.updates < 1 or int(self.updates) != self.updates:
            raise ValueError(f"updates: got {self.updates}, expected a whole number of at least 1")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance: got {self.guidance}, expected a number of at least 0")
        if not callable(self.step_rule):
            raise ValueError(f"step_rule: got {self.step_rule!r}, expected a function gamma -> step size, such as "
                             "ensemble.frobenius")


@dataclass(frozen=True)
class State:
    """All that a resume needs: particles x (J, *event) at noise level ``level``, and the corrections made there."""

    x: Any
    level: int = 0
    update: int = 0


@dataclass(frozen=True)
class Info:
    """What one ``tell`` did; may be thrown away. x -> x_new by ``correction`` with the predictions y_pred (J, m)."""

    level: int
    update: int
    sigma: float
    gamma: float
    x: Any
    y_pred: Any
    x_new: Any
    correction: ensemble.Correction


@dataclass(frozen=True)
class EnKG:
    """The method of [1].

    denoise : (x (J, *event), sigma) -> D(x, sigma) = E[x_0 | x_sigma = x], the prior
    likelihood : what the measurement means, ``Gaussian(y, noise)`` or another of ``likelihood``
    sigmas : the N + 1 noise levels, largest first, the last 0, as from ``diffusion.edm_sigmas`` (T1)
    window : (first, last) guided level, inclusive
    correct : the ensemble correction, (T4)-(T6); a wrapped one has the same signature
    """

    denoise: Callable
    likelihood: Any
    sigmas: tuple[float, ...]
    window: tuple[int, int]
    config: Config = Config()
    correct: Callable = ensemble.correct

    def __post_init__(self):
        first, last = self.window
        if first <= last and not (0 <= first and last < len(self.sigmas)):
            raise ValueError(f"window: got levels {first} to {last}, expected levels from 0 to {len(self.sigmas) - 1}")

    @property
    def steps(self):
        """N, the number of diffusion steps."""
        return len(self.sigmas) - 1

    def gamma(self, i):
        """(T8) Guidance scale of level i."""
        return self.config.guidance_schedule(i, self.steps, self.config.guidance, self.config.guidance_floor)

    def inner_steps(self, i):
        """(T3b) Denoiser calls of the inner flow at level i; none at sigma = 0."""
        return inner_steps(i, self.steps, self.config.inner_factor, self.config.inner_cap) if i < self.steps else 0

    def guided(self, i):
        """(T3a) Whether level i is corrected."""
        return self.window[0] <= i <= self.window[1]

    def init(self, noise):
        """(T2) State at the first guided level.  noise : (J, *event), J >= 2, standard normal."""
        if noise.shape[0] < 2:
            raise ValueError(f"noise: got {noise.shape[0]} row, expected at least 2 particles")
        return self._until_guided(State(initial_ensemble(noise, self.sigmas[0])))

    def done(self, state):
        """Whether the last guided level is behind: ``state.x`` then is the answer."""
        return not self.guided(state.level)

    def ask(self, state):
        """(T3) x0_j = phi(x_j), the clean points at which the forward model is wanted.  (J, *event)"""
        return flow_to_zero(state.x, self.sigmas[state.level], self.denoise, self.inner_steps(state.level),
                            self.config.sigma_eps, self.config.rho_inner)

    def tell(self, state, y_pred):
        """Correction (T4)-(T6) with y_pred = G(ask(state)), (J, *obs); after the level's last one the predictor (T7).

        Returns the next state and ``Info``. Raises ValueError for predictions of another shape.
        """
        g = predictions(y_pred, state.x, self.likelihood)
        gamma = self.gamma(state.level)
        x, correction = self.correct(state.x, g, self.likelihood.residual, self.config.step_rule(gamma))
        info = Info(state.level, state.update, self.sigmas[state.level], gamma, state.x, g, x, correction)
        if state.update + 1 < self.config.updates:
            return State(x, state.level, state.update + 1), info
        return self.advance(State(x, state.level)), info

    def advance(self, state):
        """(T7) Euler steps to the next guided level, or from the last one to sigma = 0."""
        return self._until_guided(self._predict(state))

    def _predict(self, state):
        i, x = state.level, state.x
        if i < self.steps:  # at level N, sigma = 0, nothing is left to do
            x = euler_step(x, self.denoise(x, self.sigmas[i]), self.sigmas[i], self.sigmas[i + 1])
        return State(x, i + 1)

    def _until_guided(self, state):
        while state.level < self.steps and not self.guided(state.level):
            state = self._predict(state)
        return state

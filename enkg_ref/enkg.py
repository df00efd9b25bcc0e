"""Ensemble Kalman Diffusion Guidance, Algorithm 2 of [1]: correct the ensemble at a noise level, predict to the next.

    X = sigma_0 * noise                                             (T2)
    for each noise level i = 0 .. N:
        if level i is guided, U times:
            x0 = phi(X)                 ask:  inner flow            (T3)
            g  = G(x0)                  the forward model
            X  = X - w K (X - mean X)   tell: correction            (T4)-(T6)
        X = Euler step to level i + 1   tell: predictor             (T7)

Two verbs carry the method: ``ask(state)`` gives the points to simulate, ``tell(state, y_pred)`` takes the results.
``step``, ``iterate`` and ``solve`` put a forward model between them and serve every method with these verbs.

[1] arXiv 2409.20175. The order of the loop is immaterial: "correct then predict" (official code) and "predict then
correct" (paper) are the same sequence when a level is named by its index i. They differ only at the ends, where the
first may correct at level 0 and the second at level N, sigma = 0.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import ensemble
from ._xp import array_namespace, like, to_numpy
from .diagnostics import diagnose, linear_change, trust
from .diffusion import edm_sigmas, euler_step, flow_to_zero, initial_ensemble, inner_steps


# ---------------------------------------------------------------------------------------------- guidance and window
def intended_guidance(i, n, gamma, floor):
    """(T8) gamma_i = gamma ((1 - floor)(n - i)/n + floor): falls from gamma to gamma * floor; constant if floor = 0."""
    if floor == 0.0:
        return gamma
    return gamma * ((1.0 - floor) * (n - i) / n + floor)


def official_guidance(i, n, gamma, floor):
    """(T8) gamma_i = gamma (1 - floor) (n - i)/n + floor, the official code: its floor is not scaled by gamma."""
    if floor == 0.0:
        return gamma
    return gamma * (1.0 - floor) * (n - i) / n + floor


def guided_window(n, start, end, rule="official", order="correct_then_predict"):
    """(T3a) First and last guided level from fractions of the N = n steps.

    official     i > start n  (strict, in floating point)   and  i < n - int(end n)
    nominal      i >= start n                               and  i < n - int(end n)
    inversebench i > start, start read as a level index     and  i < n - int(start / 2); ``end`` is not used

    ``order="predict_then_correct"``: the rule's i counts loop passes, each of which corrects after its predictor
    step, hence at level i + 1.
    """
    if rule == "official":
        guided = [i for i in range(n) if i > start * n and i < n - int(end * n)]
    elif rule == "nominal":
        guided = [i for i in range(n) if i >= start * n and i < n - int(end * n)]
    elif rule == "inversebench":
        guided = [i for i in range(n) if i > start and i < n - int(start / 2)]
    else:
        raise ValueError(f"rule: got {rule!r}, expected 'official', 'nominal' or 'inversebench'")
    if order not in ("correct_then_predict", "predict_then_correct"):
        raise ValueError(f"order: got {order!r}, expected 'correct_then_predict' or 'predict_then_correct'")
    later = 1 if order == "predict_then_correct" else 0
    return (guided[0] + later, guided[-1] + later) if guided else (1, 0)


# ------------------------------------------------------------------------------------------------------------ settings
@dataclass(frozen=True)
class Config:
    """Settings of a run. The defaults are this project's; ``PRESETS`` holds the released configurations.

    particles : J >= 2;  steps : N diffusion steps;  updates : U corrections per guided level
    guidance, guidance_floor, guidance_schedule : gamma_i = guidance_schedule(i, N, guidance, guidance_floor) (T8)
    window : (first, last) guided level, inclusive; level N is sigma = 0; None: ``guided_window(N, .05, .05)``
    step_rule : gamma -> step size, one of ``frobenius``, ``trace``, ``constant`` of ``ensemble`` (T5)
    sigma_max, sigma_min, rho, sigma_dtype : the schedule (T1)
    inner_factor, inner_cap, sigma_eps, rho_inner : the inner flow (T3b, T3c)
    failed : "shift", "keep" or "raise": what happens to a member whose forward value is not finite
    guard : multiple of the rounding error below which ||K||_F means a collapsed ensemble; None: exact zero only
    stop : extension, off by default: (misfit of the mean, mean misfit, m) -> bool ends the updates of a level
    """

    particles: int = 128
    steps: int = 40
    updates: int = 2
    guidance: float = 2.0
    guidance_floor: float = 0.0
    guidance_schedule: Callable = intended_guidance
    window: tuple[int, int] | None = None
    step_rule: Callable = ensemble.frobenius
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    sigma_dtype: str = "float64"
    inner_factor: int = 4
    inner_cap: int = 20
    sigma_eps: float = 0.002
    rho_inner: float = 7.0
    failed: str = "shift"
    guard: float | None = 64.0
    stop: Callable | None = None

    def __post_init__(self):
        if self.particles < 2:
            raise ValueError(f"particles: got {self.particles}, expected at least 2")
        if self.steps < 2:
            raise ValueError(f"steps: got {self.steps}, expected at least 2")
        if self.updates < 1:
            raise ValueError(f"updates: got {self.updates}, expected at least 1")
        if not (math.isfinite(self.guidance) and self.guidance >= 0):
            raise ValueError(f"guidance: got {self.guidance}, expected a number >= 0")
        if self.failed not in ("shift", "keep", "raise"):
            raise ValueError(f"failed: got {self.failed!r}, expected 'shift', 'keep' or 'raise'")
        if self.window is None:
            object.__setattr__(self, "window", guided_window(self.steps, 0.05, 0.05))
        first, last = self.window
        if first <= last and not (0 <= first and last <= self.steps):
            raise ValueError(f"window: got levels {first}..{last}, expected levels within 0..{self.steps}")

    def describe(self):
        """The settings as plain values (functions by name): what a summary prints and a checkpoint compares."""
        return {f.name: getattr(value, "__name__", value) if not isinstance(value, tuple) else list(value)
                for f in dataclasses.fields(self) for value in [getattr(self, f.name)]}

    def gamma(self, i):
        """(T8) Guidance scale of level i."""
        return self.guidance_schedule(i, self.steps, self.guidance, self.guidance_floor)

    def is_guided(self, i):
        """(T3a) Whether level i is corrected."""
        return self.window[0] <= i <= self.window[1]

    def inner_steps(self, i):
        """(T3b) Denoiser calls of the inner flow at level i; none at sigma = 0."""
        return inner_steps(i, self.steps, self.inner_factor, self.inner_cap) if i < self.steps else 0

    def counts(self):
        """Sequential calls of a whole run in closed form: forward U n_u, denoiser N + U sum n_i (per particle)."""
        levels = range(self.window[0], self.window[1] + 1)
        return {"forward": self.updates * len(levels),
                "denoiser": self.steps + self.updates * sum(self.inner_steps(i) for i in levels)}


_OFFICIAL = Config(particles=2048, steps=80, updates=2, guard=None, guidance_schedule=official_guidance)
PRESETS = {  # released configurations of the official code and of InverseBench
    "navier-stokes-official": dataclasses.replace(
        _OFFICIAL, window=guided_window(80, 0.05, 0.05)),
    "ffhq-official": dataclasses.replace(
        _OFFICIAL, particles=1024, window=guided_window(80, 0.05, 0.05)),
    "black-hole-official": dataclasses.replace(
        _OFFICIAL, particles=1024, updates=1, guidance=3.5, guidance_floor=1e-3,
        window=guided_window(80, 0.1, 0.1)),
    "inversebench": dataclasses.replace(
        _OFFICIAL, inner_factor=8, window=guided_window(80, 0.1, 0.1, rule="inversebench")),
}


# --------------------------------------------------------------------------------------------------------- the method
@dataclass(frozen=True)
class State:
    """All that a resume needs: the particles, where they stand, and the counters so far (sequential calls).

    x : (J, *event), particles at noise level sigma_level
    update, updates_done : corrections made at this level, and in all
    collapse_budget : sum of gamma_i / sqrt(r + kappa^2) over the updates; the observed spread falls about like exp(-b)
    y_pred, expected : the last predictions, and their change if G o phi were affine: what `Info.trust` is taken from
    """

    x: Any
    level: int = 0
    update: int = 0
    updates_done: int = 0
    forward_calls: int = 0
    denoiser_calls: int = 0
    collapse_budget: float = 0.0
    y_pred: Any = None
    expected: Any = None


@dataclass(frozen=True)
class Info:
    """Diagnostics (D1) of one update; may be thrown away. Plain Python numbers.

    Quantities before the update: misfit, mean_misfit are ||.||_Gamma^2/m of the ensemble mean and averaged over the
    particles; spread = sqrt(tr C_xx / d) of the particles, and spread_obs = tr(Gamma^-1 C_yy)/m.
    trust says how well the linear model behind the *previous* update foretold the predictions of this one, in [-1, 1]
    (`diagnostics.trust`); None if there was none.
    """

    level: int
    update: int
    sigma: float
    inner_steps: int
    gamma: float
    step: float
    norm_k: float
    misfit: float
    mean_misfit: float
    spread: float
    spread_obs: float
    alignment: float
    w_lambda_max: float
    collapse_budget: float
    collapsed: bool
    stopped: bool
    failed_rows: tuple[int, ...]
    forward_calls: int
    denoiser_calls: int
    trust: float | None = None


@dataclass(frozen=True)
class EnKG:
    """The method of [1]: ``denoise`` is the prior, ``likelihood`` the measurement, G only answers to ``ask``."""

    denoise: Callable
    likelihood: Any
    config: Config = Config()

    ACCESS = frozenset({"forward", "denoiser"})
    STATE = State

    @property
    def sigmas(self):
        """(T1) The N + 1 noise levels, largest first, the last 0."""
        c = self.config
        return edm_sigmas(c.steps, c.sigma_max, c.sigma_min, c.rho, c.sigma_dtype)

    def init(self, noise):
        """(T2) State at the first guided level.  noise : (J, *event), standard normal."""
        if noise.shape[0] != self.config.particles:
            raise ValueError(f"noise: got {noise.shape[0]} rows, expected one per particle, {self.config.particles}")
        return self._predict_until_guided(State(x=initial_ensemble(noise, self.config.sigma_max)))

    def done(self, state):
        """Whether the last guided level is behind: ``state.x`` then is the answer."""
        return not self.config.is_guided(state.level)

    def ask(self, state):
        """(T3) x0_j = phi(x_j), the clean points at which the forward model is wanted.  (J, *event)"""
        c = self.config
        return flow_to_zero(state.x, self.sigmas[state.level], self.denoise, c.inner_steps(state.level),
                            c.sigma_eps, c.rho_inner)

    def tell(self, state, y_pred):
        """Correction (T4)-(T6) with y_pred = G(ask(state)), and after the level's last one the predictor (T7).

        y_pred : (J, *obs). A row with a non-finite entry is a failed member: it enters no mean and no product.
        Returns the next state and the diagnostics of this update. Raises ValueError for a wrong number of rows,
        FloatingPointError for a non-finite row under ``failed="raise"``, if fewer than two rows are finite, or if
        the denoiser's output is not finite.
        """
        c, i, x = self.config, state.level, state.x
        J = x.shape[0]
        if y_pred.shape[0] != J or math.prod(y_pred.shape[1:]) != self.likelihood.size:
            raise ValueError(f"forward: got an output of shape {tuple(y_pred.shape)}, expected "
                             f"({J}, {self.likelihood.size}): forward must return one row per particle")
        xp = array_namespace(x, y_pred)
        y_pred = xp.reshape(y_pred, (J, -1))
        alive = xp.all(xp.isfinite(y_pred), axis=1)
        failed_rows = tuple(int(j) for j in range(J) if not bool(alive[j])) if not bool(xp.all(alive)) else ()
        where = f"at level {i} (sigma = {self.sigmas[i]:.4g}), update {state.update}"
        if failed_rows and c.failed == "raise":
            raise FloatingPointError(f"forward: row {failed_rows[0]} is not finite {where}, expected finite numbers")
        if J - len(failed_rows) < 2:
            raise FloatingPointError(f"forward: {J - len(failed_rows)} of {J} rows are finite {where}, "
                                     "expected at least 2")
        if not failed_rows:
            alive = None

        stopped = c.stop is not None and self._fitted(y_pred, alive)
        x_new, correction = (x, None) if stopped else self.correct(state, y_pred, alive)
        measured = diagnose(x, x_new, y_pred, self.likelihood, correction, alive)
        if not all(math.isfinite(measured[name]) for name in ("step", "norm_k")):
            raise FloatingPointError(f"update: ||K||_F = {measured['norm_k']} {where}, expected a finite number")

        gamma = c.gamma(i)
        scale = measured.pop("budget_scale")
        budget = state.collapse_budget + (gamma / scale if measured["step"] > 0 else 0.0)
        if measured["collapsed"]:
            warnings.warn("the ensemble has collapsed to rounding error in observation space: the update is skipped",
                          stacklevel=2)
        if len(failed_rows) > 0.05 * J:
            warnings.warn("more than 5 % of the members failed in one call: see `failed` in Config (shift is the safe "
                          "choice at large guidance, keep is not)", stacklevel=2)
        trusted = None if state.expected is None else trust(state.expected, state.y_pred, y_pred, self.likelihood)
        state = dataclasses.replace(
            state, x=x_new, y_pred=xp.astype(y_pred, x.dtype), expected=self._expected(x, y_pred, measured, alive),
            updates_done=state.updates_done + 1, forward_calls=state.forward_calls + 1,
            denoiser_calls=state.denoiser_calls + c.inner_steps(i), collapse_budget=budget)
        info = Info(level=i, update=state.update, sigma=self.sigmas[i], inner_steps=c.inner_steps(i), gamma=gamma,
                    collapse_budget=budget, stopped=stopped, failed_rows=failed_rows,
                    forward_calls=state.forward_calls, denoiser_calls=state.denoiser_calls, trust=trusted, **measured)

        if state.update + 1 < c.updates and not stopped:
            return dataclasses.replace(state, update=state.update + 1), info
        return self._predict_until_guided(self._predict(state)), info

    def correct(self, state, y_pred, alive):
        """(T4)-(T6) with the step rule of the configuration."""
        c = self.config
        failed = "shift" if c.failed == "raise" else c.failed  # under "raise" no failed member comes this far
        return ensemble.correct(state.x, y_pred, self.likelihood.residual, c.step_rule(c.gamma(state.level)),
                                alive, failed, c.guard)

    def _expected(self, x, y_pred, measured, alive):
        """Change of the predictions under the linear model of this update; None if there was no update."""
        if measured["step"] == 0.0:
            return None
        expected = linear_change(y_pred, self.likelihood, measured["step"], alive)
        return array_namespace(x).astype(expected, x.dtype)

    def _fitted(self, y_pred, alive):
        mean = float(self.likelihood.misfit(ensemble.ensemble_mean(y_pred, alive))[0])
        particles = float(ensemble.ensemble_mean(self.likelihood.misfit(y_pred)[:, None], alive)[0, 0])
        return self.config.stop(mean, particles, self.likelihood.size)

    def _predict(self, state):
        """(T7) One Euler step for every particle, failed or not; from level N on there is nothing left to do."""
        i, sigmas = state.level, self.sigmas
        if i >= self.config.steps:
            return dataclasses.replace(state, level=i + 1, update=0)
        xp = array_namespace(state.x)
        denoised = self.denoise(state.x, sigmas[i])
        finite = xp.all(xp.isfinite(xp.reshape(denoised, (denoised.shape[0], -1))), axis=1)
        if not bool(xp.all(finite)):
            row = next(j for j in range(finite.shape[0]) if not bool(finite[j]))
            raise FloatingPointError(f"denoise: row {row} is not finite at level {i} (sigma = {sigmas[i]:.4g}), "
                                     "expected finite numbers")
        x = euler_step(state.x, denoised, sigmas[i], sigmas[i + 1])
        return dataclasses.replace(state, x=x, level=i + 1, update=0, denoiser_calls=state.denoiser_calls + 1)

    def _predict_until_guided(self, state):
        while state.level < self.config.steps and not self.config.is_guided(state.level):
            state = self._predict(state)
        return state


# ------------------------------------------------------------------------------------- the loop, for every method
def step(method, state, forward):
    """One ask, one wave of J forward evaluations, one tell.  Returns (state, info)."""
    return method.tell(state, evaluate(forward, method.ask(state)))


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
    xp = array_namespace(x0)
    J = x0.shape[0]
    finite = to_numpy(xp.all(xp.isfinite(xp.reshape(x0, (J, -1))), axis=1))
    if not finite.any():
        raise FloatingPointError(f"forward: all {J} evaluations failed, because none of the {J} denoised points is "
                                 "finite, expected finite numbers")
    if finite.all():
        return forward(x0)
    substitute = x0[int(finite.argmax()), ...]

    def rows(x):  # the mask, broadcast over everything but the rows
        return xp.reshape(xp.astype(like(finite, x), xp.bool), (J,) + (1,) * (x.ndim - 1))

    y_pred = forward(xp.where(rows(x0), x0, xp.zeros_like(x0) + substitute))
    return xp.where(rows(y_pred), y_pred, xp.full_like(y_pred, math.nan))

"""DPG, diffusion policy gradient: a score-function estimate of the guidance from M random images around D.

[1] Tang et al. 2024, arXiv 2410.05143.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._xp import array_namespace
from ..likelihood import predictions
from ..protocol import Method
from .chain import (
    ONE_CHAIN,
    Settings,
    VPChain,
    calls,
    dead_rows,
    expect,
    expect_one,
    flat,
    normals,
    per_row,
    planned,
    queried_chain,
    repeat,
    report,
    require_finite,
    row_norm,
    vp_start,
    where_live,
)


def published_radius(z, d):
    """r = sqrt(Z/d)/2. It mixes units: Z is a loss, d the dimension of x."""
    return array_namespace(z).sqrt(z / d) / 2.0


@dataclass(frozen=True)
class Config(Settings):
    """steps : N;  queries : M >= 2;  guidance : gamma;  beta, beta_2 : memory of the gradient and of the loss scale

    radius : (Z, d) -> r, the standard deviation of the random images around D;  r_min : its least value
    last : "denoised" ends with D in place of the last SDE step; "noisy" takes that step, as the public codes do
    sigma_max : where the grid starts; None: sigma(1) = 152
    """

    steps: int = 1000
    queries: int = 4000
    guidance: float = 64.0
    beta: float = 0.1
    beta_2: float = 0.9
    radius: Callable = published_radius
    r_min: float = 0.0
    last: str = "denoised"
    sigma_max: float | None = None
    seed: int = 0

    def __post_init__(self):
        expect("steps", self.steps, 2)
        expect("queries", self.queries, 2)
        expect("guidance", self.guidance)
        expect_one("last", self.last, "denoised", "noisy")


@dataclass(frozen=True)
class State:
    """x, denoised, previous : (R, *event), the scaled chains, D, and the last gradient;  loss, scale : (R,), L(D), Z

    wave : 0, the prediction of D is wanted; 1, those of the random images around it
    """

    x: Any
    denoised: Any
    previous: Any
    loss: Any
    scale: Any
    level: int = 0
    wave: int = 0


@dataclass(frozen=True)
class DPG(VPChain):
    """l0 = L(D); Z a running mean of l0; r = sqrt(Z/d)/2; X_k = D + r eps_k, omega_k = exp(-(L(X_k) - l0)/Z), k = 1..M

        v = -(1/(M r)) sum_k (omega_k - b_k) eps_k,   b_k = (sum omega - omega_k)/(M - 1)
        g = J_D' v/s_i,  mixed with the previous g;   n = -g/(||g|| + 1e-7)
        x <- a_i x + f_i (S_i + gamma n) + sqrt(f_i) eps

    v estimates -grad E omega; as r -> 0 n is the direction of DPS. Two waves per step, of R and of R M points.
    The loss scale and the gradient's memory live in the state, so they cannot leak into the next run. Z = 0 or r = 0
    skips the guidance of a chain. A random image whose prediction is not finite has omega = 0.
    """

    denoise: Callable
    denoise_vjp: Callable
    likelihood: Any
    config: Config = Config()

    def init(self, noise):
        x = self.grid.start(noise)
        xp = array_namespace(x)
        none = xp.sum(xp.reshape(xp.zeros_like(x), (x.shape[0], -1)), axis=1)
        return self._at(0, x, xp.zeros_like(x), none, none)

    def ask(self, state):
        return state.denoised if state.wave == 0 else self._images(state)[0]

    def tell(self, state, y_pred):
        c, i = self.config, state.level
        sigma, R = self.grid.sigmas[i], state.x.shape[0]
        g = predictions(y_pred, state.x, self.likelihood, R * (1 if state.wave == 0 else c.queries))
        loss, info = self.likelihood.misfit(g), report(i, sigma, g, self.likelihood)
        if state.wave == 0:
            require_finite(g, "forward", i, sigma)
            scale = loss if i == 0 else c.beta_2 * state.scale + (1.0 - c.beta_2) * loss
            return dataclasses.replace(state, loss=loss, scale=scale, wave=1), info

        xp = array_namespace(state.x, g)
        v, live = self._ascent(state, xp.reshape(loss, (R, c.queries)))
        _, gradient = self.denoise_vjp(self.grid.unscaled(i, state.x), sigma, v)
        gradient = require_finite(gradient, "gradient", i, sigma) / self.grid.scales[i]
        memory = 0.0 if i == 0 else c.beta * (c.steps - i - 1) / c.steps
        used = memory * state.previous + (1.0 - memory) * gradient
        direction = where_live(live, -used / per_row(row_norm(used) + 1e-7, used))
        x = self._diffused(state, 1 + 2 * i) + self.grid.variances[i] * c.guidance * direction
        info = dataclasses.replace(info, skipped=dead_rows(live))
        return self._at(i + 1, x, gradient, state.loss, state.scale), info

    def _ascent(self, state, loss):
        """v (R, *event) of the losses (R, M) of the random images, and which chains have one."""
        c, xp = self.config, array_namespace(loss)
        _, eps, r = self._images(state)
        live = (state.scale > 0.0) & (r > 0.0)
        safe = xp.where(live, state.scale, xp.ones_like(r))
        excess = (loss - state.loss[:, None]) / safe[:, None]
        # the exponent never exceeds l0/Z <= 10, so nothing is subtracted: that would rescale g against its memory
        weight = xp.where(xp.isfinite(excess), xp.exp(-excess), xp.zeros_like(excess))
        centred = weight - (xp.sum(weight, axis=1, keepdims=True) - weight) / (c.queries - 1)
        v = xp.sum(xp.reshape(centred, (*loss.shape, *(1,) * (eps.ndim - 2))) * eps, axis=1)
        return where_live(live, -v / per_row(c.queries * xp.where(live, r, xp.ones_like(r)), v)), live

    def counts(self, rows):
        n, m = self.config.steps, self.config.queries
        return {"fwd_total": n * (m + 1) * rows, "fwd_seq": 2 * n, **calls(rows, den=n, den_vjp=n)}

    def _images(self, state):
        """X_k = D + r eps_k (R M, *event), the eps (R, M, *event) and r (R,)."""
        c, xp = self.config, array_namespace(state.x)
        r = c.radius(state.scale, math.prod(state.x.shape[1:]))
        r = xp.where(r > c.r_min, r, xp.zeros_like(r) + c.r_min)
        eps = normals(c.seed, 2 + 2 * state.level, state.x, (c.queries,))
        shift = xp.reshape(r, (r.shape[0],) + (1,) * (eps.ndim - 1)) * eps
        return flat(repeat(state.denoised, c.queries) + shift), eps, r

    def _at(self, i, x, previous, loss, scale):
        return State(x, x if i == self.config.steps else self._denoise(i, x), previous, loss, scale, i)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """One chain, at least two random images beside D. The radius sqrt(Z/d)/2 is meant for the loss without weights."""
    steps, wave = queried_chain("dpg", budget, lambda n: n, 17, settings, 3)
    config = Config(**{**vp_start(item), "seed": seed, **settings, "steps": steps, "queries": wave - 1})
    return planned(DPG(item.denoise, item.denoise_vjp, item.likelihood.unweighted(), config), 1, State)


METHOD = Method(
    plan, access=frozenset({"forward", "denoiser", "denoiser_vjp"}),
    words="diffusion policy gradient, Tang et al. 2024",
    spends="at least 50 steps where it can pay them, the longest chain with 16 queries per step", spread=ONE_CHAIN,
    candidates=({}, {"guidance": 16.0}, {"guidance": 4.0}, {"guidance": 1.0}))

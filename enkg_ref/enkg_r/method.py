"""EnKG-R: decoupled annealing with regressed sensitivities. Our extension; it is **not** in the EnKG paper.

    x0 ~ Gaussian reference of the prior                                          (E2)
    for each noise level s:
        x = x0 + s eps;  D = D(x, s)          one denoiser call per particle
        g = G(D)                              ask, the forward model, tell
        regress all g so far on all D so far: slope H, leave-one-out errors       (E3)-(E5)
        x0 = D + zeta + C_s H'(H C_s H' + Gamma + R)^-1 (y + e - g - H zeta)      (E6)

with zeta ~ N(0, C_s), C_s the conditional covariance of the reference (E1), e ~ N(0, Gamma + R), R a share c_R of the
errors' covariance: they are those of g at D, where the update wants those of G(D + zeta) - g - H zeta. With the exact H
and R = 0 the posterior of a linear-Gaussian problem is a fixed point of every level (E7). Values of G and D only, no
derivative of either.

Observations are whitened differences d = Gamma^-1/2 (g - y) throughout, angles wrapped around the data: the datum is 0
and its covariance 1, whatever the likelihood.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._xp import array_namespace, device, like, member_normals, to_numpy
from .reference import Reference
from .regression import SMALLEST_LOCAL_WEIGHT, local_weights, ridge_regression

REPLACED_WEIGHT = 0.1  # of the pair of a replaced particle in the regression
RETRIES = 3  # of a level whose particles leave the prior, each with ten times the model noise
ABSURD = 1e4  # a row with this many times the median misfit is a failed evaluation
FAR = 100.0  # squared distance of a particle from the prior mean, in units of the prior's total variance


# --------------------------------------------------------------------------------------------- functions passed in
def isotropic(errors):
    """(E5) S is shrunk towards tr(S)/m I: for outputs of one kind."""
    xp = array_namespace(errors)
    return xp.sum(errors * errors) / errors.shape[1] + xp.zeros_like(errors[0, :])


def diagonal(errors):
    """(E5) S is shrunk towards its diagonal: for outputs of very unequal noise and range, such as closures."""
    xp = array_namespace(errors)
    return xp.sum(errors * errors, axis=0)


def hold_above_4(kappa):
    """(E9) The noise level does not fall while the innovations are more than four times their expected square."""
    return kappa > 4.0


def twice_the_median(q):
    """(E7b) Outliers are the particles whose misfit q exceeds twice the median.  (J,) host array -> (J,) of bool"""
    return q > 2.0 * np.median(q)


# ------------------------------------------------------------------------------------------------------------ settings
@dataclass(frozen=True)
class Config:
    """Settings of a run; ``settings_by_rule`` chooses them.

    particles : J >= 3;  levels : L, each costs J forward and J denoiser calls
    sigma_start : s_1;  sigma_end : the last level at the earliest, noise_floor sigma_y/gain if that is larger, where
        gain^2 = (tr(H C_s H')/m)/(tr C_s/d) is updated every level;  between them s falls geometrically,
        at most by the factor ``steepest`` from level to level, even if the levels end before s_L is reached
    memory : rho, the weight of an evaluation falls by this factor every level; below ``min_weight`` it is dropped
    locality : an evaluation's weight also falls with its distance from the current particles (`local_weights`); 0: no
    metric : the ridge penalty of mode k is divided by (l_k/l_1)^(2 metric); 0: all alike
    model_noise : c_R of (E5);  shrink_to : ``isotropic`` or ``diagonal``
    hold, outliers : ``hold_above_4`` (E9), ``twice_the_median`` (E7b), or None
    seed : of every random number drawn after the start
    """

    particles: int = 32
    levels: int = 48
    sigma_start: float = 3.0
    sigma_end: float = 0.05
    noise_floor: float = 2.0
    steepest: float = 0.0
    memory: float = 0.75
    min_weight: float = 0.05
    locality: float = 1.0
    metric: float = 0.25
    model_noise: float = 0.5
    shrink_to: Callable = isotropic
    hold: Callable | None = hold_above_4
    outliers: Callable | None = None
    seed: int = 0

    def __post_init__(self):
        if self.particles < 3:
            raise ValueError(f"particles: got {self.particles}, expected at least 3")
        if self.levels < 1:
            raise ValueError(f"levels: got {self.levels}, expected at least 1")
        if not 0 < self.sigma_end <= self.sigma_start < math.inf:
            raise ValueError(f"sigma_start, sigma_end: got {self.sigma_start}, {self.sigma_end}, expected "
                             "0 < sigma_end <= sigma_start")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory: got {self.memory}, expected a number in (0, 1]")
        if not 0 <= self.steepest <= 1:
            raise ValueError(f"steepest: got {self.steepest}, expected a ratio of noise levels in [0, 1]")
        if not self.model_noise >= 0:
            raise ValueError(f"model_noise: got {self.model_noise}, expected a number >= 0")

    def describe(self):
        """The settings as plain values (functions by name): what a summary prints and a checkpoint compares."""
        return {f.name: getattr(value, "__name__", value)
                for f in dataclasses.fields(self) for value in [getattr(self, f.name)]}

    def counts(self):
        """Sequential calls of a whole run: one forward and one denoiser call per level (and particle)."""
        return {"forward": self.levels, "denoiser": self.levels}


# --------------------------------------------------------------------------------------------------------- the method
@dataclass(frozen=True)
class State:
    """All that a resume needs. n = rows of the history, r = modes of the reference, m = observations.

    x : (J, *event) the particles, the answer once done;  denoised : (J, *event) D, the points to simulate
    history_x (n, r) coordinates of D, history_d (n, m) whitened differences, history_weight (n,)
    model_noise : (m,) diagonal of R at the last level, whitened
    """

    x: Any
    denoised: Any
    history_x: Any
    history_d: Any
    history_weight: Any
    model_noise: Any
    sigma: float
    level: int = 0
    forward_calls: int = 0
    denoiser_calls: int = 0


@dataclass(frozen=True)
class Info:
    """Diagnostics of one level; may be thrown away. Plain Python numbers.

    misfit, mean_misfit : ||.||_Gamma^2/m of the mean of g, and averaged over the particles (their chi2): of the
        rows that did not fail at this level, outliers among them, not of the new particles
    kappa : (E9) mean square innovation over its expectation, outliers left out; trust the run when it ends near 1, not
        above 3. It and the misfits are inf at a level where all rows failed: nothing was measured
    noise_ratio : tr R/m, the variance of the model noise (E5), c_R times the leave-one-out one, over the measurement's
    gain : rms response of whitened data to the prior's unit, ridge : lam of the regression, evaluations : its rows
    spread : sqrt(tr C_xx/d) of the new particles;  held : the noise level did not fall
    replaced, failed_rows : rows, see ``tell``;  retries : updates repeated with larger R as particles left the prior
    lost : all of them left it, the new particles ignore the data; kappa and noise_ratio are those of the first R
    """

    level: int
    sigma: float
    misfit: float
    mean_misfit: float
    kappa: float
    noise_ratio: float
    gain: float
    ridge: float
    evaluations: int
    spread: float
    held: bool
    retries: int
    lost: bool
    replaced: tuple[int, ...]
    failed_rows: tuple[int, ...]
    forward_calls: int
    denoiser_calls: int


@dataclass(frozen=True)
class EnKGR:
    """EnKG-R with the verbs of ``enkg.EnKG``: ``denoise`` is the prior, ``reference`` its Gaussian reference.

    regress : (x (n, r), d (n, m), weight (n,), output_scale) -> `regression.Surrogate`
    """

    denoise: Callable
    likelihood: Any
    reference: Reference
    config: Config = Config()
    regress: Callable = ridge_regression

    ACCESS = frozenset({"forward", "denoiser"})
    STATE = State

    def init(self, noise):
        """(E2) State at the first level, its D computed.  noise : (J, *event), standard normal."""
        c, r, m = self.config, self.reference.variances.size, self.likelihood.size
        if noise.shape != (c.particles, *self.reference.event_shape):
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, expected one row per particle and the event "
                             f"shape of the reference, {(c.particles, *self.reference.event_shape)}")
        x = self.reference.start(noise)
        empty_x, empty_d, no_noise = (like(np.zeros(shape), x) for shape in ((0, r), (0, m), (m,)))
        return self._renoise(State(x, x, empty_x, empty_d, no_noise[:0], no_noise, c.sigma_start))

    def done(self, state):
        return state.level >= self.config.levels

    def ask(self, state):
        """D_j = D(x_j, s), the points at which the forward model is wanted.  (J, *event)"""
        return state.denoised

    def tell(self, state, y_pred):
        """One level with y_pred = G(ask(state)), (J, *obs), and the denoiser call of the next.  -> (state, Info)

        A row with a non-finite entry, or with ABSURD times the median misfit of this level and the history, is a failed
        evaluation: the surrogate's value stands in for it, and a level where all rows failed lives on the history.
        Raises ValueError for a wrong number of rows, FloatingPointError if the history has fewer than three rows that
        did not fail or the denoiser's output is not finite.
        """
        measured = self._difference(y_pred, state.x)
        alive = _plausible(measured, state.history_d)
        replaced, stand_in = self._outliers(state, measured, alive)
        a = self.reference.coordinates(state.denoised)
        history = self._remember(state, a, measured, alive, replaced)
        surrogate = self._fit(a, *history)  # (E3), (E4)

        D, d = _take(state.denoised, stand_in), _take(measured, stand_in)
        if not alive.all():
            xp = array_namespace(d)
            d = xp.where(like(alive[stand_in][:, None], d) > 0.5, d, surrogate.predict(a))
        x, R_diag, retries, lost = self._sample(state, D, d, surrogate)  # (E5), (E6)

        judged = self._judge(state.sigma, surrogate, R_diag, _take(measured, np.flatnonzero(alive & ~replaced)))
        held = self.config.hold is not None and self.config.hold(judged["kappa"])  # (E9)
        following = dataclasses.replace(
            state, x=x, history_x=history[0], history_d=history[1], history_weight=history[2], model_noise=R_diag,
            sigma=state.sigma if held else self._next_sigma(state.sigma, state.level, judged["gain"]),
            level=state.level + 1, forward_calls=state.forward_calls + 1)
        if not self.done(following):
            following = self._renoise(following)

        xp = array_namespace(x)
        misfit, mean_misfit = _misfits(_take(measured, np.flatnonzero(alive)))
        return following, Info(
            level=state.level, sigma=state.sigma, misfit=misfit, mean_misfit=mean_misfit, **judged,
            ridge=surrogate.ridge, evaluations=history[2].shape[0], spread=float(xp.sqrt(xp.mean(xp.var(x, axis=0)))),
            held=held, retries=retries, lost=lost, replaced=_rows(replaced), failed_rows=_rows(~alive),
            forward_calls=following.forward_calls, denoiser_calls=following.denoiser_calls)

    # ---- the steps of a level, in the order of `tell`
    def _difference(self, y_pred, x):
        """d = Gamma^-1/2 (g - y), angles wrapped.  (J, *obs) -> (J, m)"""
        J, m = self.config.particles, self.likelihood.size
        if y_pred.shape[0] != J or math.prod(y_pred.shape[1:]) != m:
            raise ValueError(f"forward: got an output of shape {tuple(y_pred.shape)}, expected ({J}, {m}): "
                             "forward must return one row per particle")
        xp = array_namespace(x, y_pred)
        return self.likelihood.whiten(self.likelihood.difference(xp.reshape(y_pred, (J, -1))))

    def _outliers(self, state, d, alive):
        """(E7b) Which rows are replaced, and by which row each is represented; from the second level on."""
        c, rows = self.config, np.arange(d.shape[0])
        replaced = np.zeros(len(rows), dtype=bool)
        if c.outliers is not None and state.level > 0 and alive.sum() > 2:
            q = np.mean(to_numpy(d)[alive] ** 2 / (1.0 + to_numpy(state.model_noise)), axis=1)
            replaced[alive] = c.outliers(q)
            good = rows[alive & ~replaced]
            draw = np.random.default_rng([c.seed, _stream(state.level, 3)])
            rows = np.where(replaced, good[draw.integers(len(good), size=len(rows))], rows)
        return replaced, rows

    def _remember(self, state, a, d, alive, replaced):
        """The history with this level's finite rows, older rows weighted down by rho and dropped below min_weight.

        -> (coordinates of D (n, r), whitened differences (n, m), weights (n,))
        """
        xp, c = array_namespace(a, d), self.config
        old = c.memory * to_numpy(state.history_weight)
        weight = np.concatenate([old, np.where(alive, np.where(replaced, REPLACED_WEIGHT, 1.0), 0.0)])
        # a level without a finite row must not age the history to nothing
        keep = np.flatnonzero(weight > 0 if not alive.any() else weight >= c.min_weight)
        if len(keep) < 3:
            raise FloatingPointError(f"forward: {int(alive.sum())} of {len(alive)} rows are finite at level "
                                     f"{state.level} (sigma = {state.sigma:.4g}), expected at least 3 finite "
                                     "evaluations to estimate the model error")
        return (_take(xp.concat([state.history_x, a]), keep), _take(xp.concat([state.history_d, d]), keep),
                like(weight[keep], a))

    def _fit(self, a, x, d, weight):
        """The linear model at the current points a, from the history; distances count mode k (l_k/l_1)^metric times."""
        c, xp = self.config, array_namespace(x)
        variances = self.reference.variances
        metric = like(np.maximum(variances / variances[0], 1e-12)[None, :] ** c.metric, x)
        near = local_weights(x * metric, a * metric, weight, c.locality)
        rows = np.flatnonzero(to_numpy(near) > SMALLEST_LOCAL_WEIGHT)
        x, d, near = (_take(v, rows) for v in (x * metric, d, near)) if len(rows) >= 3 else (x * metric, d, weight)
        scale = None if c.shrink_to is isotropic else 1.0 / xp.sqrt(1.0 + _variance(d))
        return self.regress(x, d, near, scale).unscaled(metric)

    def _sample(self, state, D, d, surrogate):
        """(E5), (E6) New particles from D and d; again with ten times R while a particle leaves the prior.

        -> x (J, *event), the diagonal of R as estimated (m,), the number of retries, whether the level was lost
        """
        c, xp = self.config, array_namespace(d)
        conditional = self.reference.conditional(state.sigma)  # (E1)
        zeta, zeta_a = self.reference.coloured(self._normals(state, 0, D.shape[1:], D), *conditional)
        variances = like(conditional[0][:, None], d)
        xi = self._normals(state, 1, (d.shape[1] + surrogate.errors.shape[0],), d)
        wide = d.shape[1] > surrogate.slope.shape[0] + surrogate.errors.shape[0]
        for retries in range(RETRIES + 1):
            c_r = c.model_noise * 10.0**retries
            if wide:  # an m x m matrix would be larger than what it is made of
                target, factor, e = factored_noise(surrogate.errors, xi, c_r, c.shrink_to)
                move = condition_by_factors(d, zeta_a, e, surrogate.slope, variances, target, factor)
                R_diag = target + xp.sum(factor * factor, axis=0)
            else:
                R, e = model_noise(surrogate.errors, xi, c_r, c.shrink_to)
                move, R_diag = condition(d, zeta_a, e, surrogate.slope, variances, R), xp.linalg.diagonal(R)
            x = D + zeta + self.reference.along_modes(move, D.shape)
            lost = not self._within_prior(x)
            if not lost:
                break
        if lost:
            x = D + zeta  # the prior's own conditional sample: the level is lost, the run is not
        # as estimated: a retry must not hide what made it necessary
        return x, R_diag / 10.0**retries, retries, lost

    def _judge(self, sigma, surrogate, R_diag, kept):
        """kappa (E9) of the rows kept (., m), the noise ratio tr R/m, and the gain of the data."""
        xp = array_namespace(R_diag)
        conditional = self.reference.conditional(sigma)
        variances = like(conditional[0][:, None], surrogate.slope)
        noise_ratio = float(xp.mean(R_diag))
        response = float(xp.mean(xp.sum(variances * surrogate.slope**2, axis=0)))  # tr(H C H')/m
        return {"kappa": _misfits(kept)[1] / (response + noise_ratio + 1.0), "noise_ratio": noise_ratio,
                "gain": math.sqrt(response * self.reference.mean.size / self.reference.total_variance(*conditional))}

    def _renoise(self, state):
        """x_j = x0_j + s eps_j and D_j = D(x_j, s) for the next level."""
        x = state.x + state.sigma * self._normals(state, 2, state.x.shape[1:], state.x)
        D = self.denoise(x, state.sigma)
        xp = array_namespace(D)
        if not bool(xp.all(xp.isfinite(D))):
            raise FloatingPointError(f"denoise: got a non-finite output at level {state.level} (sigma = "
                                     f"{state.sigma:.4g}), expected finite numbers")
        return dataclasses.replace(state, denoised=D, denoiser_calls=state.denoiser_calls + 1)

    def _next_sigma(self, s, level, gain):
        """Geometric from here to the current s_L over the levels that are left; never up, never too steeply down."""
        c = self.config
        left = c.levels - level - 1
        end = max(c.noise_floor / gain if gain > 0 else s, c.sigma_end)
        return s * max((min(end, s) / s) ** (1.0 / left), c.steepest) if left > 0 else s

    def _within_prior(self, x):
        xp = array_namespace(x)
        away = xp.reshape(x - like(self.reference.mean[None, ...], x), (x.shape[0], -1))
        total = self.reference.total_variance(self.reference.variances, self.reference.rest)
        return bool(xp.all(xp.sum(away * away, axis=1) <= FAR * total))  # False for NaN

    def _normals(self, state, kind, shape, x):
        return like(member_normals(self.config.seed, _stream(state.level, kind), self.config.particles, shape), x)


def model_noise(errors, xi, c_r, shrink_to, centred=True):
    """(E5) R = c_R (0.7 S + 0.3 target(S)), S = errors' errors, and e ~ N(0, 1 + R), centred over the particles.

    errors : (n, m);  xi : (J, m + n) standard normal;  -> (m, m), (J, m)
    """
    xp = array_namespace(errors, xi)
    m = errors.shape[1]
    target = 0.3 * c_r * shrink_to(errors)
    R = 0.7 * c_r * xp.matmul(errors.T, errors) + target[None, :] * like(np.eye(m), errors)
    e = xi[:, :m] * xp.sqrt(1.0 + target)[None, :] + math.sqrt(0.7 * c_r) * xp.matmul(xi[:, m:], errors)
    return R, e - xp.mean(e, axis=0, keepdims=True) if centred else e


def condition(d, zeta, e, slope, variances, R):
    """(E6) C H' M^-1 (e - d - H zeta), M = H C H' + 1 + R, for whitened differences d. Coordinates in the modes.

    d, e : (J, m);  zeta : (J, r);  slope = H' : (r, m);  variances of C : (r, 1);  R : (m, m)  -> (J, r)
    """
    xp = array_namespace(d, zeta)
    CHt = variances * slope
    M = xp.matmul(slope.T, CHt) + R + like(np.eye(R.shape[0]), d)
    wanted = e - d - xp.matmul(zeta, slope)
    return xp.matmul(xp.linalg.solve(M, wanted.T).T, CHt.T)


def factored_noise(errors, xi, c_r, shrink_to):
    """`model_noise` for more data than evaluations: R = F'F + diag(target), without the m x m matrix.

    -> target (m,), F (n, m), e (J, m)
    """
    xp = array_namespace(errors, xi)
    m, target, factor = errors.shape[1], 0.3 * c_r * shrink_to(errors), math.sqrt(0.7 * c_r) * errors
    e = xi[:, :m] * xp.sqrt(1.0 + target)[None, :] + xp.matmul(xi[:, m:], factor)
    return target, factor, e - xp.mean(e, axis=0, keepdims=True)


def condition_by_factors(d, zeta, e, slope, variances, target, factor):
    """`condition` with R = F'F + diag(target), by a system of r + n unknowns: with B = 1 + target, A = (C^1/2 H'; F),

        C H' M^-1 = C^1/2 [(1 + A B^-1 A')^-1 A B^-1]_{first r rows},   M = B + A'A
    """
    xp = array_namespace(d, zeta)
    root = xp.sqrt(variances)
    A, B = xp.concat([root * slope, factor]), 1.0 + target[None, :]
    wanted = e - d - xp.matmul(zeta, slope)
    inner = xp.matmul(A / B, A.T) + like(np.eye(A.shape[0]), d)
    return (root * xp.linalg.solve(inner, xp.matmul(A / B, wanted.T))[:zeta.shape[1], :]).T


def _plausible(d, history):
    """Rows of whitened differences d that count, on the host: misfit finite, at most ABSURD times the median or 1."""
    xp = array_namespace(d, history)
    with np.errstate(over="ignore", invalid="ignore"):
        q, earlier = (to_numpy(xp.mean(rows * rows, axis=1)) for rows in (d, history))
    finite = np.isfinite(q)
    usual = np.median(np.concatenate([q[finite], earlier])) if finite.any() else 0.0
    return finite & (q <= ABSURD * max(usual, 1.0))


def _misfits(d):
    """Mean square of the mean row, and of all rows; inf where there is none."""
    if d.shape[0] == 0:
        return math.inf, math.inf
    xp = array_namespace(d)
    mean = xp.mean(d, axis=0)
    return float(xp.mean(mean * mean)), float(xp.mean(d * d))


def _variance(d):
    return array_namespace(d).var(d, axis=0, keepdims=True)


def _stream(level, kind):
    """Number of a random stream: 0 is the caller's start, then four per level."""
    return 1 + 4 * level + kind


def _take(x, rows):
    """Rows of x by host indices."""
    xp = array_namespace(x)
    return xp.take(x, xp.asarray(rows.astype(np.int32), device=device(x)), axis=0)


def _rows(mask):
    return tuple(int(j) for j in np.flatnonzero(mask))

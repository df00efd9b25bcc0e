"""Eight small problems, A to H, whose denoiser and posterior are exact: they show what spread-skill ratios cannot see.

    x ~ prior (Gaussian or a mixture),   y = G(x) + e,   e ~ N(0, s^2 I)

    A  N(0, diag(1/k)), k = 1 .. 10     H x, H (5, 10)                                       s = 0.2
    B  three components, d = 2          0.7 (x1 + x2)                                        s = 0.3
    C  N(0, I_2)                        (x1^2, x2): two equal branches                       s = 0.2
    D  N(0, I_2)                        (exp 2 x1, exp(x1 + x2))                             s = 0.5
    E  N(0, I_2)                        (tanh 3 x1, tanh 3(x2 - 0.5)): saturated             s = 0.05
    F  five components, d = 10          tanh(x B') A' + 0.3 (x C')^2, m = 4                  s = 0.2
    G  N(0, I_2)                        |x|: a ring                                          s = 0.1
    H  N(0, I_2)                        (x1 + 0.2 x2^2, x2 - 0.2 x1^2): weakly non-linear    s = 0.3

The posterior of A is a closed form; those in two dimensions are sums over a grid of 601 x 601 points on [-6, 6]^2; that
of F is importance sampling with 400,000 draws of the prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from onnx_priors.gaussian import GaussianPrior
from onnx_priors.mixture import MixturePrior

from ._xp import array_namespace, like
from .problem import ITEM, Entry, Observation, Option, Problem, positive

NAMES = "ABCDEFGH"
TRUTHS = 55  # seed of the truths and their data
GRID, HALF_WIDTH = 601, 6.0
IMPORTANCE_DRAWS, LEAST_EFFECTIVE = 400_000, 100


@dataclass(frozen=True)
class Posterior:
    """Weighted points that stand for the exact posterior, or its Gaussian where it is one. Host float64.

    mean, sd : (d,);  points : (n, d), weights : (n,), sum 1;  covariance : (d, d) instead, for A
    jitter : half the distance of grid points, over which a draw is spread
    """

    mean: Any
    sd: Any
    points: Any = None
    weights: Any = None
    covariance: Any = None
    jitter: float = 0.0

    @property
    def effective(self):
        """Effective number of draws of the weights; inf for a closed form."""
        return np.inf if self.weights is None else float(1.0 / np.sum(self.weights**2))

    def draw(self, rng, count):
        """(count, d) draws."""
        if self.covariance is not None:
            return rng.multivariate_normal(self.mean, self.covariance, count)
        chosen = self.points[rng.choice(len(self.points), count, p=self.weights)]
        return chosen + rng.uniform(-self.jitter, self.jitter, chosen.shape)


@dataclass(frozen=True, kw_only=True)
class Toy(Problem):
    """A `Problem` that knows its denoiser and its posterior.

    exact_prior : GaussianPrior or MixturePrior;  log_density : (n, d) -> (n,), of the prior up to a constant
    """

    exact_prior: Any = field(repr=False)
    log_density: Callable = field(repr=False)

    def denoise(self, x, sigma):
        """Exact denoiser D(x, sigma).  (J, d), float -> (J, d)"""
        return self.exact_prior.denoise(x, sigma)

    def denoise_vjp(self, x, sigma, v):
        """D(x, sigma) and J_D' v."""
        return self.exact_prior.denoise_vjp(x, sigma, v)

    def log_likelihood(self, x):
        """-|G(x) - y|^2/(2 s^2).  host (n, d) -> (n,)"""
        d = (self.forward(x) - self.observation.y) / self.observation.noise
        return -0.5 * np.sum(d * d, axis=1)

    @cached_property
    def posterior(self):
        """Mean (d,) and covariance (d, d) of the exact posterior, which for most of the eight is not Gaussian."""
        found = self.exact
        if found.covariance is not None:
            return found.mean, found.covariance
        deviations = found.points - found.mean
        return found.mean, (found.weights * deviations.T) @ deviations

    @cached_property
    def exact(self):
        """The exact `Posterior`. Raises ValueError for a truth of F with too few effective draws."""
        letter = self.name[-1].upper()
        if letter == "A":
            prior, H = np.diag(1.0 / np.arange(1, 11)), linear_map()
            gain = prior @ H.T @ np.linalg.inv(H @ prior @ H.T + self.observation.noise**2 * np.eye(len(H)))
            covariance = prior - gain @ H @ prior
            return Posterior(gain @ self.observation.y, np.sqrt(np.diag(covariance)), covariance=covariance)
        points, predicted, prior = _prior_points(letter)
        d = (predicted - self.observation.y) / self.observation.noise
        log_weights = prior - 0.5 * np.sum(d * d, axis=1)
        weights = np.exp(log_weights - log_weights.max())
        weights /= weights.sum()
        mean = weights @ points
        found = Posterior(mean, np.sqrt(weights @ (points - mean) ** 2), points, weights,
                          jitter=0.0 if letter == "F" else HALF_WIDTH / (GRID - 1))
        if found.effective < LEAST_EFFECTIVE:
            raise ValueError(f"item: got a truth whose posterior has {found.effective:.0f} effective draws, expected "
                             f"at least {LEAST_EFFECTIVE}: leave it out")
        return found


# --------------------------------------------------------------------------------------------------------- priors, maps
def linear_map():
    """H of problem A, (5, 10)."""
    return np.random.default_rng(1).standard_normal((5, 10))


@lru_cache(maxsize=1)
def mixture_maps():
    """means (5, 10), A (4, 6), B (6, 10), C (4, 10) of problem F."""
    rng = np.random.default_rng(11)
    means = 1.2 * rng.standard_normal((5, 10))
    A = rng.standard_normal((4, 6)) / np.sqrt(6)
    B = 1.5 * rng.standard_normal((6, 10)) / np.sqrt(10)
    return means, A, B, rng.standard_normal((4, 10)) / np.sqrt(10)


@lru_cache
def prior_of(letter):
    """(GaussianPrior or MixturePrior, log density up to a constant: (n, d) -> (n,))."""
    if letter in "BF":
        weights, means, variances = ((0.4, 0.35, 0.25), ((-2, 0), (1.5, 1.5), (1, -2)), (0.15, 0.3, 0.1))
        if letter == "F":
            weights, means, variances = (0.2,) * 5, mixture_maps()[0], (0.35,) * 5
        w, mu, v = (np.asarray(a, dtype=np.float64) for a in (weights, means, variances))

        def log_density(x):
            each = np.log(w) - 0.5 * mu.shape[1] * np.log(v) - 0.5 * np.sum((x[:, None] - mu) ** 2, axis=2) / v
            return np.logaddexp.reduce(each, axis=1)
        return MixturePrior(w, mu, v), log_density
    variances = 1.0 / np.arange(1, 11) if letter == "A" else np.ones(2)
    return GaussianPrior(np.zeros(len(variances)), variances), lambda x: -0.5 * np.sum(x * x / variances, axis=1)


def _stack(x, *columns):
    return array_namespace(x).stack(columns, axis=1)


def forward_of(letter):
    """(G, (x, v) -> J_G(x)' v) of a problem; any array namespace, (J, d) -> (J, m)."""
    return {"A": (_a, _a_vjp), "B": (_b, _b_vjp), "C": (_c, _c_vjp), "D": (_d, _d_vjp), "E": (_e, _e_vjp),
            "F": (_f, _f_vjp), "G": (_g, _g_vjp), "H": (_h, _h_vjp)}[letter]


def _a(x):
    return array_namespace(x).matmul(x, like(linear_map().T, x))


def _a_vjp(x, v):
    return array_namespace(x).matmul(v, like(linear_map(), x))


def _b(x):
    return 0.7 * (x[:, :1] + x[:, 1:])


def _b_vjp(x, v):
    return 0.7 * v + 0.0 * x


def _c(x):
    return _stack(x, x[:, 0] ** 2, x[:, 1])


def _c_vjp(x, v):
    return _stack(x, 2.0 * x[:, 0] * v[:, 0], v[:, 1])


def _d(x):
    xp = array_namespace(x)
    return _stack(x, xp.exp(2.0 * x[:, 0]), xp.exp(x[:, 0] + x[:, 1]))


def _d_vjp(x, v):
    g = _d(x) * v
    return _stack(x, 2.0 * g[:, 0] + g[:, 1], g[:, 1])


def _e(x):
    return array_namespace(x).tanh(3.0 * (x - like(np.array([[0.0, 0.5]]), x)))


def _e_vjp(x, v):
    return 3.0 * (1.0 - _e(x) ** 2) * v


def _f_parts(x):
    xp = array_namespace(x)
    _, A, B, C = (like(a, x) for a in mixture_maps())
    return xp, A, B, C, xp.tanh(xp.matmul(x, B.T)), xp.matmul(x, C.T)


def _f(x):
    xp, A, _, _, t, q = _f_parts(x)
    return xp.matmul(t, A.T) + 0.3 * q**2


def _f_vjp(x, v):
    xp, A, B, C, t, q = _f_parts(x)
    return xp.matmul(xp.matmul(v, A) * (1.0 - t**2), B) + xp.matmul(0.6 * q * v, C)


def _g(x):
    xp = array_namespace(x)
    return xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))


def _g_vjp(x, v):
    return x / _g(x) * v


def _h(x):
    return _stack(x, x[:, 0] + 0.2 * x[:, 1] ** 2, x[:, 1] - 0.2 * x[:, 0] ** 2)


def _h_vjp(x, v):
    return _stack(x, v[:, 0] - 0.4 * x[:, 0] * v[:, 1], 0.4 * x[:, 1] * v[:, 0] + v[:, 1])


NOISE = {"A": 0.2, "B": 0.3, "C": 0.2, "D": 0.5, "E": 0.05, "F": 0.2, "G": 0.1, "H": 0.3}


@lru_cache(maxsize=8)
def _prior_points(letter):
    """Points (n, d), G there, and log prior weights: a grid, or for F draws of the prior."""
    prior, log_density = prior_of(letter)
    if letter == "F":
        points = prior.sample(np.random.default_rng([TRUTHS, 1]), IMPORTANCE_DRAWS)
        return points, forward_of(letter)[0](points), np.zeros(len(points))
    axis = np.linspace(-HALF_WIDTH, HALF_WIDTH, GRID)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return points, forward_of(letter)[0](points), log_density(points)


def exact_toy(letter, item=0, noise=None):
    """Problem ``letter`` of "A" ... "H" with truth number ``item``.

    noise : standard deviation of the data, by default that of the table.   Returns a `Toy`.
    Raises ValueError for another letter or noise <= 0.
    """
    if letter not in NAMES or len(letter) != 1:
        raise ValueError(f"toy: got {letter!r}, expected one of {', '.join(NAMES)}")
    noise = NOISE[letter] if noise is None else float(noise)
    if not (np.isfinite(noise) and noise > 0):
        raise ValueError(f"noise: got {noise}, expected a standard deviation > 0")
    prior, log_density = prior_of(letter)
    forward, forward_vjp = forward_of(letter)
    rng = np.random.default_rng([TRUTHS, item])
    truth = prior.sample(rng, 1)
    y = forward(truth)[0]
    y = y + noise * rng.standard_normal(y.shape)
    return Toy(name=f"exact-toy-{letter.lower()}", event_shape=(truth.shape[1],), forward=forward,
               forward_vjp=forward_vjp, observation=Observation(y=y, noise=noise), truth=truth[0],
               exact_prior=prior, log_density=log_density, gaussian=None if letter in "BF" else prior,
               notes=f"problem {letter}: exact prior and posterior; verification, not an application")


def build(toy="A", noise=None, item=0):
    """Truth ``item`` of a problem."""
    return exact_toy(toy, item, noise)


ENTRY = Entry(build, "small problems with exact posteriors: --toy A, C, D, E, G or H (verification)",
              (Option("toy", str, "A, C, D, E, G or H; B and F, whose priors are mixtures, from Python", "A",
                      tuple("ACDEGH")), Option("noise", positive, "standard deviation of the data"), ITEM))


# -------------------------------------------------------------------------------------------------------------- figures
def energy_distance(a, b, sd):
    """2 E|a - b| - E|a - a'| - E|b - b'| of two samples (n, d), (k, d), both divided by sd (d,)."""
    a, b = a / sd, b / sd

    def mean_distance(u, v):
        return float(np.mean(np.sqrt(np.maximum(np.sum((u[:, None] - v) ** 2, axis=2), 0.0))))
    return 2.0 * mean_distance(a, b) - mean_distance(a, a) - mean_distance(b, b)


def figures(x, exact, draws, truth):
    """{name: float} of an ensemble x (J, d) beside the exact posterior, in units of its standard deviations.

    energy : distance of up to 64 particles from ``draws``;  err_over_sd : rms over coordinates of the error of the mean
    sd_ratio : geometric mean of the ensemble's sd over the exact one;  inside : of the coordinates of the truth in the
    5-95 % bands;  bad : err_over_sd > 0.6 or sd_ratio outside 1/1.67 ... 1.67
    """
    error = float(np.sqrt(np.mean(((x.mean(axis=0) - exact.mean) / exact.sd) ** 2)))
    sd = x.std(axis=0, ddof=1) if len(x) > 1 else np.zeros(x.shape[1])
    ratio = float(np.exp(np.mean(np.log(np.maximum(sd, 1e-12) / exact.sd))))
    low, high = np.quantile(x, [0.05, 0.95], axis=0)
    return {"energy": energy_distance(x[:64], draws, exact.sd), "err_over_sd": error, "sd_ratio": ratio,
            "inside": float(np.mean((truth >= low) & (truth <= high))),
            "bad": float(error > 0.6 or ratio > 1.67 or ratio < 1 / 1.67)}

"""Lorenz-96: every second coordinate of a chaotic ring, observed after a time T. With exact tangent and adjoint.

    dx_i/dt = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + F,   i = 0..d-1 on a ring,   F = 8

Integrated with RK4 at a fixed step; tangent and adjoint are those of the discrete map, so they are exact to rounding.
Source: E. N. Lorenz, Predictability: a problem partly solved, ECMWF Seminar on Predictability, 1996.
"""

from __future__ import annotations

import functools

import numpy as np

from onnx_priors.gaussian import GaussianPrior

from ._xp import array_namespace
from .problem import ITEM, Entry, Observation, Option, Problem, nonnegative, positive

FORCING = 8.0
STEP = 0.01
DIMENSION = 40


def tendency(x):
    """dx/dt.  (J, d) -> (J, d)"""
    xp = array_namespace(x)
    return (xp.roll(x, -1, axis=-1) - xp.roll(x, 2, axis=-1)) * xp.roll(x, 1, axis=-1) - x + FORCING


def tendency_tangent(x, dx):
    """Derivative of `tendency` at x in the direction dx."""
    xp = array_namespace(x, dx)
    return ((xp.roll(dx, -1, axis=-1) - xp.roll(dx, 2, axis=-1)) * xp.roll(x, 1, axis=-1)
            + (xp.roll(x, -1, axis=-1) - xp.roll(x, 2, axis=-1)) * xp.roll(dx, 1, axis=-1) - dx)


def tendency_adjoint(x, v):
    """Transpose of `tendency_tangent` at x, applied to v."""
    xp = array_namespace(x, v)
    product = xp.roll(x, 1, axis=-1) * v  # coefficient of dx_{i+1} - dx_{i-2} in row i
    slope = (xp.roll(x, -1, axis=-1) - xp.roll(x, 2, axis=-1)) * v  # coefficient of dx_{i-1} in row i
    return xp.roll(product, 1, axis=-1) - xp.roll(product, -2, axis=-1) + xp.roll(slope, -1, axis=-1) - v


def _stages(x, h):
    x2 = x + 0.5 * h * tendency(x)
    x3 = x + 0.5 * h * tendency(x2)
    return x2, x3, x + h * tendency(x3)


def integrate(x, steps, h=STEP):
    """``steps`` RK4 steps of length h.  (J, d) -> (J, d)"""
    for _ in range(steps):
        x2, x3, x4 = _stages(x, h)
        x = x + h / 6.0 * (tendency(x) + 2.0 * tendency(x2) + 2.0 * tendency(x3) + tendency(x4))
    return x


def integrate_tangent(x, dx, steps, h=STEP):
    """Derivative of `integrate` at x in the direction dx.  (J, d), (J, d) -> (J, d)"""
    for _ in range(steps):
        x2, x3, x4 = _stages(x, h)
        k1 = tendency_tangent(x, dx)
        k2 = tendency_tangent(x2, dx + 0.5 * h * k1)
        k3 = tendency_tangent(x3, dx + 0.5 * h * k2)
        k4 = tendency_tangent(x4, dx + h * k3)
        x, dx = integrate(x, 1, h), dx + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
    return dx


def integrate_adjoint(x, v, steps, h=STEP):
    """Transpose of `integrate_tangent` at x, applied to v. Keeps the ``steps`` states of the trajectory."""
    states = [x]
    for _ in range(steps - 1):
        states.append(integrate(states[-1], 1, h))
    for x in reversed(states[:steps]):
        x2, x3, x4 = _stages(x, h)
        v4 = tendency_adjoint(x4, h / 6.0 * v)
        v3 = tendency_adjoint(x3, h / 3.0 * v + h * v4)
        v2 = tendency_adjoint(x2, h / 3.0 * v + 0.5 * h * v3)
        v = v + tendency_adjoint(x, h / 6.0 * v + 0.5 * h * v2) + v2 + v3 + v4
    return v


@functools.lru_cache
def attractor(count=2000, seed=0, d=DIMENSION):
    """``count`` states on the attractor, one time unit apart.  Host float64 (count, d)"""
    x = FORCING + np.random.default_rng(seed).standard_normal((50, d))
    x = integrate(x, 1000)
    states = []
    for _ in range(-(-count // 50)):
        x = integrate(x, 100)
        states.append(x)
    return np.concatenate(states)[:count]


def gaussian_prior(d=DIMENSION):
    """The Gaussian with mean and covariance of the attractor."""
    states = attractor(d=d)
    return GaussianPrior.from_covariance(states.mean(0), np.cov(states.T))


def lorenz96(horizon=0.2, noise=1.0, seed=0, d=DIMENSION):
    """Problem builder: y = every second coordinate after time ``horizon``, plus noise.

    horizon : time T >= 0, a multiple of the step 0.01;  noise : standard deviation;  seed : truth and data noise
    Raises ValueError for a negative horizon or one that is no multiple of the step, noise <= 0, d < 4.
    """
    steps = round(horizon / STEP)
    if horizon < 0 or abs(steps * STEP - horizon) > 1e-9:
        raise ValueError(f"horizon: got {horizon}, expected a multiple of {STEP}, at least 0")
    if not noise > 0:
        raise ValueError(f"noise: got {noise}, expected a standard deviation > 0")
    if d < 4:
        raise ValueError(f"d: got {d}, expected at least 4")
    rng = np.random.default_rng([96, seed])
    truth = attractor(d=d)[rng.integers(len(attractor(d=d)))]

    def forward(x):
        """(J, d) -> (J, ceil(d/2))"""
        return integrate(x, steps)[:, ::2]

    def forward_vjp(x, v):
        """J_G(x)' v.  (J, d), (J, ceil(d/2)) -> (J, d)"""
        xp = array_namespace(x, v)
        rows = xp.stack([v, xp.zeros_like(v)], axis=-1)
        return integrate_adjoint(x, xp.reshape(rows, (v.shape[0], -1))[:, :d], steps)

    y = forward(truth[None])[0] + noise * rng.standard_normal((d + 1) // 2)
    prior = gaussian_prior(d)
    return Problem(name="lorenz96", event_shape=(d,), forward=forward, forward_vjp=forward_vjp,
                   observation=Observation(y=y, noise=noise), truth=truth, gaussian=prior, prior="gaussian",
                   known={"prior mean": prior.mean},
                   notes=f"Lorenz-96, d = {d}, horizon {horizon}; Gaussian prior fitted to the attractor")


def build(horizon=0.2, noise=1.0, item=0):
    """Problem ``item``: the seed of `lorenz96`."""
    return lorenz96(horizon, noise, item)


ENTRY = Entry(
    build, "state of the Lorenz-96 ring from half of a later one; Gaussian of the attractor as prior",
    (Option("horizon", nonnegative, "time of the observation, a multiple of 0.01", 0.2),
     Option("noise", positive, "standard deviation of the data", 1.0), ITEM))

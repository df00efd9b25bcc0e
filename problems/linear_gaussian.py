"""Linear observations of a Gaussian field: the problem whose prior, probability flow and posterior are closed forms.

    x ~ N(mu, Sigma),   y = H x + e,   e ~ N(0, Gamma)

    denoiser        D(x, s) = mu + Sigma (Sigma + s^2)^-1 (x - mu)                    E[x | x + s n], n ~ N(0, I)
    flow            phi(x, s) = mu + Sigma^(1/2) (Sigma + s^2)^(-1/2) (x - mu)        probability flow from s to 0
    posterior       m_p = mu + Sigma H' (H Sigma H' + Gamma)^-1 (y - H mu),   Sigma_p = (Sigma^-1 + H' Gamma^-1 H)^-1
    noise-free      m_0, S_0: the same with Gamma -> 0; what the EnKG update aims at, whatever the noise

Set-ups A and B are those of enkg_ref/THEORY.md, LG6 is a small dense fixture for the baselines. Every method of this
project is checked against these expressions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from onnx_priors.gaussian import GaussianPrior

from ._xp import array_namespace, like
from .problem import ITEM, Entry, Observation, Option, Problem, nonnegative

SETUPS = ("A", "B", "LG6")


@dataclass(frozen=True, kw_only=True)
class LinearGaussian(Problem):
    """A `Problem` that also knows its prior N(mu, Sigma) and hence everything about its posterior. Host float64.

    mu : (d,);  Sigma : (d, d);  H : (m, d);  Gamma : (m, m)
    """

    mu: Any = field(repr=False)
    Sigma: Any = field(repr=False)
    H: Any = field(repr=False)
    Gamma: Any = field(repr=False)

    def denoise(self, x, sigma):
        """Exact denoiser D(x, sigma).  (J, d), float -> (J, d)"""
        return self.gaussian.denoise(x, sigma)

    def denoise_vjp(self, x, sigma, v):
        """D(x, sigma) and J_D' v; J_D = Sigma (Sigma + sigma^2)^-1 is symmetric and does not depend on x."""
        return self.gaussian.denoise_vjp(x, sigma, v)

    def flow(self, x, sigma, sigma_next=0.0):
        """Exact probability flow from noise level sigma to sigma_next (0: the clean point).  (J, d) -> (J, d)"""
        return self.gaussian.flow(x, sigma, sigma_next)

    @cached_property
    def posterior(self):
        """m_p (d,), Sigma_p (d, d): the exact posterior."""
        return self._condition(self.H @ self.Sigma @ self.H.T + self.Gamma)

    @cached_property
    def noise_free_posterior(self):
        """m_0 (d,), S_0 (d, d): the limit Gamma -> 0 of the posterior; H Sigma H' must be regular."""
        return self._condition(self.H @ self.Sigma @ self.H.T)

    def null_covariance(self, covariance):
        """(T16) N = C - C H' (H C H')^+ H C: the part of C that observations H x cannot see.  (d, d) -> (d, d)"""
        seen = self.H @ covariance
        return covariance - seen.T @ np.linalg.pinv(seen @ self.H.T, hermitian=True) @ seen

    def _condition(self, innovation_covariance):
        gain = np.linalg.solve(innovation_covariance, self.H @ self.Sigma).T
        covariance = self.Sigma - gain @ self.H @ self.Sigma
        return self.mu + gain @ (self.observation.y - self.H @ self.mu), 0.5 * (covariance + covariance.T)


def linear_gaussian(setup="A", noise=None, seed=0, d=None, m=None):
    """Problem builder.

    Parameters
    ----------
    setup : "A"     d = 32, m = 8: variances proportional to 1/k with mean 0.25, mu = 0.3 N(0, 1), H = 2 N(0, 1)/sqrt(d)
            "B"     d = 128, m = 32: variances 1/(1 + k/4)^2, mu = 0, H = 4 N(0, 1)/sqrt(d)
            "LG6"   d = 6, m = 3, dense Sigma, one fixed instance
    noise : standard deviation of the data; default 0.1, 0.5, 0.3
    seed : int      draws mu, H, the truth and the data noise (LG6: only 0, the fixed instance)
    d, m : sizes for A and B

    Returns a `LinearGaussian`. Raises ValueError for an unknown set-up, noise <= 0, or another seed or size of LG6.
    """
    if setup not in SETUPS:
        raise ValueError(f"setup: got {setup!r}, expected one of {', '.join(SETUPS)}")
    noise = {"A": 0.1, "B": 0.5, "LG6": 0.3}[setup] if noise is None else float(noise)
    if not (np.isfinite(noise) and noise > 0):
        raise ValueError(f"noise: got {noise}, expected a standard deviation > 0")
    mu, Sigma, root, H, rng = _instance(setup, seed, d, m)
    truth = mu + root @ rng.standard_normal(len(mu))
    y = H @ truth + noise * rng.standard_normal(len(H))

    def forward(x):
        """H x.  (J, d) -> (J, m)"""
        return array_namespace(x).matmul(x, like(H.T, x))

    def forward_vjp(x, v):
        """H' v.  (J, d), (J, m) -> (J, d)"""
        return array_namespace(v).matmul(v, like(H, v))

    def score(ensemble):
        """Distances to the exact posterior: of the ensemble mean, relative to m_p - mu, and of the spread."""
        m_p, Sigma_p = problem.posterior
        mean = ensemble.mean(axis=0)
        spread = np.mean(np.sum((ensemble - mean) ** 2, axis=1))
        return {"error_to_posterior_mean": float(np.linalg.norm(mean - m_p) / np.linalg.norm(m_p - mu)),
                "spread_over_posterior_spread": float(np.sqrt(spread / np.trace(Sigma_p)))}

    known = {"prior mean": mu}
    problem = LinearGaussian(
        name=f"linear-gaussian-{setup.lower()}", event_shape=(len(mu),), forward=forward, forward_vjp=forward_vjp,
        observation=Observation(y=y, noise=noise), truth=truth, score=score,
        # collapse budget 3: the one regime in which the published step lands near the posterior mean (high S/N only)
        defaults={"steps": 80, "updates": 2, "guidance": round(3.0 * np.sqrt(2 * len(y)) / 142, 3)},
        mu=mu, Sigma=Sigma, H=H, Gamma=noise**2 * np.eye(len(y)), known=known,
        gaussian=GaussianPrior.from_covariance(mu, Sigma),
        notes=f"set-up {setup}: exact Gaussian prior and posterior; verification, not an application")
    known["posterior mean"] = problem.posterior[0]
    return problem


def _instance(setup, seed, d, m):
    """mu, Sigma, a root of it, H, and the generator for truth and noise."""
    if setup == "LG6":
        if seed != 0 or d not in (None, 6) or m not in (None, 3):
            raise ValueError(f"seed, d, m: got {seed}, {d}, {m}, expected 0, 6, 3: LG6 is one fixed instance")
        rng = np.random.default_rng(1)
        B = rng.standard_normal((6, 6))
        mu, H = 0.3 * rng.standard_normal(6), rng.standard_normal((3, 6))
        Sigma = 0.25 * B @ B.T / 6 + 0.05 * np.eye(6)
        return mu, Sigma, np.linalg.cholesky(Sigma), H, rng
    d = {"A": 32, "B": 128}[setup] if d is None else d
    m = {"A": 8, "B": 32}[setup] if m is None else m
    if not 1 <= m <= d:
        raise ValueError(f"d, m: got {d}, {m}, expected 1 <= m <= d")
    rng = np.random.default_rng(seed)
    k = np.arange(d)
    variances = 1.0 / (1.0 + k) if setup == "A" else (1.0 + k / 4.0) ** -2
    if setup == "A":
        variances *= 0.25 / variances.mean()
    mu = (0.3 if setup == "A" else 0.0) * rng.standard_normal(d)
    H = (2.0 if setup == "A" else 4.0) * rng.standard_normal((m, d)) / np.sqrt(d)
    return mu, np.diag(variances), np.diag(np.sqrt(variances)), H, rng


def build(setup="A", noise=None, item=0):
    """Problem ``item`` of a set-up: the seed of `linear_gaussian`."""
    return linear_gaussian(setup, noise=noise, seed=item)


ENTRY = Entry(
    build, "exact posterior known: --setup A, B or LG6 (verification)",
    (Option("setup", str, "A (32 unknowns, 8 data), B (128, 32) or LG6 (6, 3, one fixed instance)", "A", SETUPS),
     Option("noise", nonnegative, "standard deviation of the data; default 0.1, 0.5 and 0.3 for A, B and LG6"), ITEM))

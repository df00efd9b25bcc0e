"""Linear-Gaussian problems on which EnKG-R is tested, and runs of the method on them."""

import dataclasses
import math

import numpy as np

from enkg_ref import Gaussian, iterate, member_normals
from enkg_ref.enkg_r.method import Config, EnKGR
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.enkg_r.regression import Surrogate


def lg6():
    """Fixture LG6 of the baselines' tests: six unknowns, three data."""
    rng = np.random.default_rng(1)
    B, mu = rng.standard_normal((6, 6)), 0.3 * rng.standard_normal(6)
    H, z, e = rng.standard_normal((3, 6)), rng.standard_normal(6), rng.standard_normal(3)
    Sigma = 0.25 * B @ B.T / 6 + 0.05 * np.eye(6)
    y = H @ (mu + np.linalg.cholesky(Sigma) @ z) + 0.3 * e
    posterior = np.linalg.inv(np.linalg.inv(Sigma) + H.T @ H / 0.09)
    return mu, Sigma, H, y, 0.3, posterior @ (np.linalg.solve(Sigma, mu) + H.T @ y / 0.09), posterior


def exact_method(config):
    mu, Sigma, H, y, sd, _, _ = lg6()
    reference = Reference.gaussian(mu, Sigma)

    def denoise(x, s):  # (O1)
        return mu + (x - mu) @ np.linalg.solve(Sigma + s * s * np.eye(6), Sigma)

    def exact(x, d, weight, output_scale):
        return Surrogate(np.zeros((1, 6)), np.zeros((1, 3)), reference.modes.T @ H.T / sd, np.zeros((3, 3)), 0.0)

    config = dataclasses.replace(config, locality=0.0, metric=0.0)  # the slope is known, nothing is weighed
    return EnKGR(denoise, Gaussian(y, sd), reference, config, exact), lambda x: x @ H.T


def set_up_b(seed, d=128, m=32, sd=0.5):
    """Set-up B: prior variances 1/(1 + k/4)^2, H = 4 N(0, 1)/sqrt(d)."""
    rng = np.random.default_rng(seed)
    variances = 1.0 / (1.0 + np.arange(d) / 4.0) ** 2
    H, x = 4.0 * rng.standard_normal((m, d)) / math.sqrt(d), np.sqrt(variances) * rng.standard_normal(d)
    y = H @ x + sd * rng.standard_normal(m)
    posterior = np.linalg.inv(np.diag(1.0 / variances) + H.T @ H / sd**2)
    return variances, H, x, y, posterior @ (H.T @ y) / sd**2


def run(seed, config, d=128, m=32, sd=0.5, break_rows=0.0):
    """Error to the exact posterior mean, squared spread and error sums, coverage, infos."""
    variances, H, truth, y, m_p = set_up_b(seed, d, m, sd)
    broken = np.random.default_rng([seed, 99])

    def forward(x):
        g = x @ H.T
        g[broken.random(len(g)) < break_rows] = np.nan
        return g

    method = EnKGR(lambda x, s: x * (variances / (variances + s * s)), Gaussian(y, sd),
                   Reference(np.zeros(d), np.eye(d), variances), dataclasses.replace(config, seed=seed))
    states, infos = zip(*iterate(method, forward, method.init(member_normals(seed, 0, config.particles, (d,)))))
    x, J = states[-1].x, config.particles
    ordered, k = np.sort(x, axis=0), max(round(0.05 * (J + 1)), 1)
    return (np.linalg.norm(x.mean(0) - m_p) / np.linalg.norm(m_p), (J + 1) / J * np.var(x, axis=0, ddof=1).sum(),
            np.sum((x.mean(0) - truth) ** 2), np.mean((ordered[k - 1] <= truth) & (truth <= ordered[J - k])), infos)


TABLE = Config(particles=32, levels=8, sigma_start=1.0, sigma_end=0.1, memory=1.0, locality=0.0,
               metric=0.0, model_noise=1.0)  # linear: nothing is forgotten, near or far

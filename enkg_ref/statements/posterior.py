"""Whole runs against posteriors that are known: exact flow, the published discretisation, the two extensions."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np

from .._xp import to_numpy
from ..diffusion import edm_sigmas
from ..ensemble import frobenius
from ..extensions import (
    StopWhenFitted,
    TemperedEnKG,
    guarded,
    lowrank,
    mean_discrepancy,
    particle_discrepancy,
)
from ..likelihood import Gaussian
from ..presets import Preset
from .line import RULES, instances, statement
from .oracles import limit_of_mean, random_case, relative, schur_complement, spread


@dataclass(frozen=True)
class GaussianProblem:
    """x ~ N(mu, diag(variances)), y = H x + sigma_y e: exact denoiser, flow and posterior."""

    mu: np.ndarray
    variances: np.ndarray
    H: np.ndarray
    y: np.ndarray
    sigma_y: float
    truth: np.ndarray

    @classmethod
    def draw(cls, seed, mu, variances, amplitude, m, sigma_y):
        rng = np.random.default_rng(seed)
        d = len(variances)
        mu = mu * rng.standard_normal(d)
        H = amplitude * rng.standard_normal((m, d)) / math.sqrt(d)
        truth = mu + np.sqrt(variances) * rng.standard_normal(d)
        return cls(mu, variances, H, H @ truth + sigma_y * rng.standard_normal(m), sigma_y, truth)

    def posterior(self):
        C_Ht = self.variances[:, None] * self.H.T
        gain = np.linalg.solve(self.H @ C_Ht + self.sigma_y**2 * np.eye(len(self.y)), C_Ht.T).T
        return self.mu + gain @ (self.y - self.H @ self.mu), np.diag(self.variances) - gain @ C_Ht.T

    def functions(self, library):
        """D(x, sigma), G(x) and the exact flow (x, sigma, sigma_next) on the library's arrays."""
        mu, v, Ht = library.array(self.mu[None]), library.array(self.variances[None]), library.array(self.H.T)

        def denoise(x, sigma):
            return mu + v / (v + sigma**2) * (x - mu)

        def flow(x, sigma, sigma_next=0.0):
            return mu + ((v + sigma_next**2) / (v + sigma**2)) ** 0.5 * (x - mu)

        return library.compiled(denoise), (lambda x: library.xp.matmul(x, Ht)), library.compiled(flow)


def set_up_a(seed, d=32, m=8, sigma_y=0.1):
    k = np.arange(1, d + 1)
    return GaussianProblem.draw(seed, 0.3, 0.25 / k / np.mean(1 / k), 2.0, m, sigma_y)


def set_up_b(seed, sigma_y):
    return GaussianProblem.draw(seed, 0.0, (1 + np.arange(128) / 4) ** -2.0, 4.0, 32, sigma_y)


@functools.lru_cache
def _run_a(library, seed, gamma, J=256, stop=None):
    """Error to m_p relative to ||m_p - mu||, misfit of the mean in units of sigma_y sqrt(m), forward calls."""
    p = set_up_a(seed)
    denoise, forward, _ = p.functions(library)
    method = Preset(J, 80, None if gamma else (1, 0)).but(guidance=gamma).method(
        denoise, Gaussian(p.y, p.sigma_y), guarded(lowrank))
    method = StopWhenFitted(method, stop) if stop else method
    x, calls = library.run(method, forward, np.random.default_rng([23, seed]).standard_normal((J, 32)))
    m_p = p.posterior()[0]
    return (np.linalg.norm(x.mean(0) - m_p) / np.linalg.norm(m_p - p.mu),
            np.linalg.norm(p.H @ x.mean(0) - p.y) / (p.sigma_y * math.sqrt(8)), calls)


def exact_flow_run(library, J, seed, levels=60):
    """gamma = 1, one update per level, exact phi and exact predictor: clean ensemble before and after; the problem."""
    p = set_up_a(seed)
    _, forward, flow = p.functions(library)
    sigmas = edm_sigmas(levels)
    x = library.array(sigmas[0] * np.random.default_rng([24, seed]).standard_normal((J, len(p.mu))))
    first = to_numpy(flow(x, sigmas[0]))
    residual, update = Gaussian(p.y, p.sigma_y).residual, _full_step(library)
    for here, following in zip(sigmas, sigmas[1:]):
        g = forward(flow(x, here))
        x = flow(update(x, g, residual(g)), here, following)
    return first, to_numpy(x), p


@functools.lru_cache(maxsize=2)
def _full_step(library):
    """X+ of (x, g, residuals) at gamma = 1, compiled once per shape."""
    return library.compiled(lambda x, g, r: lowrank(x, g, lambda _: r, frobenius(1.0))[0])


def _exact_flow_deviation(library, which):
    first, last, p = exact_flow_run(library, 256, 0)
    C = np.cov(first.T, bias=True)
    gain = np.linalg.solve(p.H @ C @ p.H.T, p.H @ C).T
    if which == "mean":
        m_J = first.mean(0) + gain @ (p.y - p.H @ first.mean(0))
        return np.linalg.norm(last.mean(0) - m_J) / np.linalg.norm(p.posterior()[0] - p.mu), 1
    return relative(np.cov(last.T, bias=True), schur_complement(C, p.H)), 1


statement("4.1 mean", "exact flow, 60 updates: ensemble mean = empirical noise-free posterior m_J", 1e-6)(
    lambda library: _exact_flow_deviation(library, "mean"))
statement("4.1 cov", "exact flow, 60 updates: ensemble covariance = N_J", 1e-12)(
    lambda library: _exact_flow_deviation(library, "covariance"))


@statement("4.1 rate", "exact flow: distance to the noise-free posterior mean falls as J^slope (far end of 95 %)",
           -0.4, -0.6)
def _exact_flow_rate(library):
    sizes, slopes = (64, 512, 4096), []
    for seed in range(8):
        runs = [exact_flow_run(library, J, seed) for J in sizes]
        errors = [np.linalg.norm(last.mean(0) - replace(p, sigma_y=0.0).posterior()[0]) for _, last, p in runs]
        slopes.append(np.polyfit(np.log(sizes), np.log(errors), 1)[0])
    return max((limit_of_mean(slopes, side) for side in (-1, 1)), key=lambda v: abs(v + 0.5)), len(sizes) * 8


@statement("4.4 error", "Euler discretisation at collapse budget 3, set-up A: error to the posterior mean (95 %)", 0.3)
def _budget_three(library):
    return limit_of_mean([_run_a(library, s, 0.085)[0] for s in range(8)], 1), 8


@statement("4.4 misfit", "the same: misfit of the ensemble mean in units of the noise (95 %)", 0.4)
def _budget_three_misfit(library):
    return limit_of_mean([_run_a(library, s, 0.085)[1] for s in range(8)], 1), 8


@statement("4.2", "set-up A: gamma = 2 ends farther from the posterior mean than no guidance (ratio, 95 %)",
           math.inf, 4.0, True)
def _shipped_gamma_is_worse(library):
    return limit_of_mean([_run_a(library, s, 2.0)[0] / _run_a(library, s, 0.0)[0] for s in range(8)], -1), 8


@statement("I7 / 4.5", "the published step ignores the noise level: X+ under Gamma and 1600 Gamma", 1e-13, 0.0, True)
def _noise_is_ignored(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng)
        rule = RULES[("frobenius", "trace")[rng.integers(2)]](1.3)
        return relative(library.correct(X, G, y, 1600 * Gamma, rule)[0], library.correct(X, G, y, Gamma, rule)[0])

    return instances(library, np.random.default_rng(25), 100, measure)


@statement("4.6a identity", "(1/J) sum ||e_j||^2 = ||ebar||^2 + tau: the particle discrepancy is the stricter", 1e-14)
def _discrepancy_identity(library):
    def measure(rng):
        X, G, y, Gamma = random_case(rng)
        likelihood, g = Gaussian(y, Gamma), library.array(G)
        particles = float(np.mean(to_numpy(likelihood.misfit(g))))
        mean = float(to_numpy(likelihood.misfit(library.array(G.mean(0)[None])))[0])
        tau = np.trace(np.linalg.solve(Gamma, np.cov(G.T, bias=True).reshape(Gamma.shape)))
        return abs(particles / (mean + tau) - 1)

    return instances(library, np.random.default_rng(26), 100, measure)


@statement("4.6a error", "set-up A, gamma = 2 with discrepancy stop (mean): error to the posterior mean (95 %)", 0.25)
def _discrepancy_stop(library):
    return limit_of_mean([_run_a(library, s, 2.0, 512, mean_discrepancy)[0] for s in range(8)], 1), 8


# one call per guided level, half of all, is the least that a stop can leave
@statement("4.6a calls", "the same with the particles' discrepancy, share of the forward calls (95 %)", 0.55, 0.5)
def _discrepancy_calls(library):
    return limit_of_mean([_run_a(library, s, 2.0, 256, particle_discrepancy)[2] / 142 for s in range(8)], 1), 8


@functools.lru_cache(maxsize=2)
def _tempered_run(library):
    p, J = set_up_b(0, 0.5), 2048
    denoise, forward, _ = p.functions(library)
    preset = Preset(J, 80)
    method = TemperedEnKG(denoise, Gaussian(p.y, p.sigma_y), preset.sigmas, preset.window, preset.config)
    x, _ = library.run(method, forward, np.random.default_rng(27).standard_normal((J, 128)))
    return p, J, x


@statement("4.6b SSR", "tempered step, set-up B, J = 2048, sigma_y = .5: spread-skill ratio", 1.05, 0.95)
def _tempered_spread(library):
    p, J, x = _tempered_run(library)
    m_p, Sigma_p = p.posterior()
    # one instance: skill is replaced by its expectation under the posterior, ||xbar - m_p||^2 + tr Sigma_p
    skill = np.sum((x.mean(0) - m_p) ** 2) + np.trace(Sigma_p)
    return math.sqrt((J + 1) / J * spread(x)[1] / skill), 1


@statement("4.6b error", "the same: error to the posterior mean, relative to ||m_p||", 0.1)
def _tempered_mean(library):
    p, J, x = _tempered_run(library)
    m_p = p.posterior()[0]
    return np.linalg.norm(x.mean(0) - m_p) / np.linalg.norm(m_p), 1

"""The six-dimensional linear-Gaussian problem LG6, its exact denoiser and posterior, and affine recursions.

Every step of an affine sampler is x -> F x + c + noise of covariance q I, so the mean and the covariance of a sampler
are known exactly. Imports nothing of the project.
"""

import numpy as np


class LinearGaussian:
    """Prior N(mu, Sigma), y = H x + sigma_y e."""

    def __init__(self, mu, Sigma, H, y, sigma_y):
        self.mu, self.Sigma, self.H, self.y, self.sigma_y = mu, Sigma, H, y, sigma_y
        self.d = len(mu)
        self.Sigma_p, self.m_p = self.posterior(sigma_y**2 * np.eye(len(y)))

    def posterior(self, noise):
        """Covariance and mean of the posterior for the noise covariance ``noise``."""
        precision = np.linalg.inv(noise)
        covariance = np.linalg.inv(np.linalg.inv(self.Sigma) + self.H.T @ precision @ self.H)
        return covariance, covariance @ (np.linalg.solve(self.Sigma, self.mu) + self.H.T @ precision @ self.y)

    def jacobian(self, sigma):
        return self.Sigma @ np.linalg.inv(self.Sigma + sigma**2 * np.eye(self.d))

    # arrays (J, ..., d): any axes between the rows and the last one are independent copies
    def denoise(self, x, sigma):
        return self.mu + (x - self.mu) @ self.jacobian(sigma).T

    def denoise_vjp(self, x, sigma, v):
        return self.denoise(x, sigma), v @ self.jacobian(sigma)

    def forward(self, x):
        return (x @ self.H.T).reshape(x.shape[0], -1)

    def forward_vjp(self, x, v):
        return v.reshape(*x.shape[:-1], -1) @ self.H

    def prox(self, x0, rho):
        """argmin ||Hx - y||^2/sigma_y^2 + rho ||x - x0||^2"""
        P = np.linalg.inv(self.H.T @ self.H / self.sigma_y**2 + rho * np.eye(self.d))
        return (self.H.T @ self.y / self.sigma_y**2 + rho * x0) @ P


def lg6():
    """The fixture: numpy's generator with seed 1, draws in a fixed order."""
    rng = np.random.default_rng(1)
    B = rng.standard_normal((6, 6))
    mu = 0.3 * rng.standard_normal(6)
    H = rng.standard_normal((3, 6))
    Sigma = 0.25 * B @ B.T / 6 + 0.05 * np.eye(6)
    truth = mu + np.linalg.cholesky(Sigma) @ rng.standard_normal(6)
    return LinearGaussian(mu, Sigma, H, H @ truth + 0.3 * rng.standard_normal(3), 0.3)


def propagate(steps, mean, covariance):
    """Mean and covariance after x -> F x + c + N(0, q I) for (F, c, q) in steps."""
    for F, c, q in steps:
        mean, covariance = F @ mean + c, F @ covariance @ F.T + q * np.eye(len(mean))
    return mean, covariance


def unconditional_steps(lg, grid, ode=False):
    """The reverse VP-SDE, or its probability flow."""
    for i in range(grid.steps):
        f = grid.variances[i] / (2 if ode else 1)
        sigma, s, J = grid.sigmas[i], grid.scales[i], lg.jacobian(grid.sigmas[i])
        yield (grid.gains[i] * np.eye(lg.d) + f / (sigma * s) ** 2 * (J - np.eye(lg.d)),
               f / (sigma**2 * s) * (lg.mu - J @ lg.mu), 0.0 if ode else f)


def exact_guidance_steps(lg, grid):
    """The reverse SDE whose score has the exact likelihood term: it samples the posterior."""
    for i, (F, c, q) in enumerate(unconditional_steps(lg, grid)):
        sigma, s, J = grid.sigmas[i], grid.scales[i], lg.jacobian(grid.sigmas[i])
        gain = J.T @ lg.H.T @ np.linalg.inv(lg.H @ (sigma**2 * J) @ lg.H.T + lg.sigma_y**2 * np.eye(len(lg.y)))
        yield (F - grid.variances[i] / s**2 * gain @ lg.H @ J,
               c + grid.variances[i] / s * gain @ (lg.y - lg.H @ (lg.mu - J @ lg.mu)), q)


def dps_steps(lg, grid, gamma):
    """DPS with a constant normaliser: q = J'H'(H D - y)/s."""
    for i, (F, c, q) in enumerate(unconditional_steps(lg, grid)):
        s, J = grid.scales[i], lg.jacobian(grid.sigmas[i])
        yield (F - gamma / s**2 * J @ lg.H.T @ lg.H @ J,
               c + gamma / s * J @ lg.H.T @ (lg.y - lg.H @ (lg.mu - J @ lg.mu)), q)


def diffpir_steps(lg, grid, rho, xi):
    """DiffPIR with the proximal data step; rho: step -> weight beside ||Hx - y||^2."""
    for i in range(grid.steps):
        sigma, following, J = grid.sigmas[i], grid.sigmas[i + 1], lg.jacobian(grid.sigmas[i])
        P = np.linalg.inv(lg.H.T @ lg.H + rho(i) * np.eye(lg.d))
        M, c = rho(i) * P @ J, P @ (lg.H.T @ lg.y + rho(i) * (lg.mu - J @ lg.mu))
        kept = following / sigma * np.sqrt(1 - xi)
        yield M + kept * (np.eye(lg.d) - M), (1 - kept) * c, xi * following**2


def ve_steps(lg, levels):
    """The reverse VE-SDE that ends with D."""
    for sigma, following in zip(levels, levels[1:]):
        k, J = 1.0 if following == 0 else 2 * (1 - following / sigma), lg.jacobian(sigma)
        yield (1 - k) * np.eye(lg.d) + k * J, k * (lg.mu - J @ lg.mu), 2 * sigma * (sigma - following) * (following > 0)


def assert_sample_has(x, mean, covariance, slack=0.0, errors=4.0):
    """x (n, d) i.i.d.: its moments within ``errors`` standard errors, plus ``slack``."""
    n = len(x)
    assert np.all(np.abs(x.mean(0) - mean) < errors * np.sqrt(np.diag(covariance) / n) + slack)
    variances = np.diag(covariance)
    se = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert np.all(np.abs(np.cov(x.T) - covariance) < errors * se + slack)

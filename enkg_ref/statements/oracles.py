"""Host oracles in numpy: definitions and closed forms of THEORY.md, and the random cases they are held to."""

from __future__ import annotations

import math

import numpy as np

SHAPES = ((2, 3, 1), (3, 1, 2), (5, 8, 3), (9, 4, 4), (12, 20, 6), (20, 30, 10), (24, 10, 6), (40, 12, 20))  # J, d, m


def spread(X):
    """Z and V = tr C_xx, divisor J."""
    Z = X - X.mean(0)
    return Z, np.sum(Z * Z) / len(X)


def moments(X, G, y, Gamma):
    """The quantities of Theorem 1 by their definitions: Z, B, E, Gamma^-1, K, S, C_xy, C_yy."""
    J = len(X)
    Z, B, E, P = X - X.mean(0), G - G.mean(0), G - y, np.linalg.inv(Gamma)
    return {"Z": Z, "B": B, "E": E, "P": P, "K": E @ P @ B.T / J, "S": B @ P @ B.T / J, "C_xy": Z.T @ B / J,
            "C_yy": B.T @ B / J}


def schur_complement(C, H):
    """(T16) N = C - C H'(H C H')^+ H C."""
    seen = H @ C
    return C - seen.T @ np.linalg.pinv(seen @ H.T, rcond=1e-11, hermitian=True) @ seen


def observation_modes(X, G, y, Gamma):
    """Eigenvalues lambda_i > 0 and eigenvectors u_i of Cw = Gamma^-1/2 C_yy Gamma^-1/2, kappa_i^2, Gamma^-1/2 = L^-1.

    Any square root of Gamma^-1 serves; here Gamma = L L'.
    """
    W = np.linalg.inv(np.linalg.cholesky(Gamma))
    B, e = (G - G.mean(0)) @ W.T, W @ (G.mean(0) - y)
    lam, U = np.linalg.eigh(B.T @ B / len(X))
    keep = lam > 1e-12 * lam[-1]
    lam, U = lam[keep], U[:, keep]
    return lam, U, (U.T @ e) ** 2 / lam, W


def mahalanobis_misfit(X, G, y, Gamma):
    """kappa^2 = e_w' Cw^+ e_w, the invariant of (T17)."""
    return float(np.sum(observation_modes(X, G, y, Gamma)[2]))


def scalar_recursion(mu, kappa2, gamma, rule, steps):
    """(T18) with lambda_i = mu_i p_i^2: amplitudes p after 0..steps updates, and the step sizes w."""
    p, amplitudes, sizes = np.ones_like(mu), [np.ones_like(mu)], []
    for _ in range(steps):
        lam = mu * p * p
        denominator = math.sqrt(np.sum(lam**2 * (1 + kappa2))) if rule == "frobenius" else np.sum(lam)
        w = gamma / denominator if denominator > 0 else 0.0
        p = p * (1 - w * lam)
        amplitudes.append(p)
        sizes.append(w)
    return amplitudes, sizes


def trajectory(X, H, c, y, Gamma, gamma, rule, steps):
    """(T17b) every particle after 0..steps updates of the affine psi(x) = H x + c, from r scalars."""
    G = X @ H.T + c
    mu, U, kappa2, W = observation_modes(X, G, y, Gamma)
    Z, _ = spread(X)
    carry = Z.T @ (Z @ H.T @ W.T) / len(X) @ U  # C_0 H' Gamma^-1/2 U
    along = (G - y) @ W.T @ U
    amplitudes, sizes = scalar_recursion(mu, kappa2, gamma, rule, steps)
    return [X - along * ((1 - p) / mu) @ carry.T for p in amplitudes], sizes


def contraction_bound(gamma, r, kappa2, rule, kappa2_min=0.0):
    """(T19), (T19b) upper bound of the one-step ratio of ||K||_F^2 (frobenius) or tau (trace)."""
    if rule == "trace":
        return 1 - gamma * (2 - gamma) / r
    u = gamma / math.sqrt(1 + kappa2_min)
    return 1 - gamma * (2 - u) * (u * u - 2 * u + 2) / math.sqrt(r + kappa2)


def random_covariance(rng, m, scale=1.0):
    A = rng.standard_normal((m, m))
    return scale**2 * (A @ A.T / m + 0.5 * np.eye(m))


def random_case(rng, shape=None, nonlinear=True):
    """A random ensemble, its predictions, data and dense noise covariance, at scales .1, 1 or 10."""
    J, d, m = shape or SHAPES[rng.integers(len(SHAPES))]
    scale = rng.choice((0.1, 1.0, 10.0))
    X = rng.standard_normal(d) + scale * rng.standard_normal((J, d))
    A, b = rng.standard_normal((2, d, m)) / math.sqrt(d)
    G = np.sin(X @ A) + 0.3 * (X @ b) ** 2 if nonlinear else X @ A
    return X, G, G.mean(0) + rng.standard_normal(m) * rng.choice((0.1, 1.0, 10.0)), random_covariance(rng, m)


def random_affine(rng, J, d, m, cond=1e3):
    """A random affine problem X, H, c, y, Gamma whose whitened output covariance has condition number below cond."""
    while True:
        X = rng.standard_normal((J, d))
        H, c, Gamma = rng.standard_normal((m, d)), rng.standard_normal(m), random_covariance(rng, m)
        y = c + H @ rng.standard_normal(d)
        lam = observation_modes(X, X @ H.T + c, y, Gamma)[0]
        if lam[-1] / lam[0] <= cond:
            return X, H, c, y, Gamma


def relative(a, b, scale=None):
    """||a - b||/scale, 0 if there is no difference; NaN, which fails every line, if anything is not finite."""
    distance, scale = np.linalg.norm(np.asarray(a) - np.asarray(b)), np.linalg.norm(b) if scale is None else scale
    if distance == 0.0 and math.isfinite(scale):
        return 0.0
    return float(distance / scale) if scale > 0 else math.nan


def worst(values):
    """The largest of the values; NaN if one of them is NaN, which Python's own ``max`` may pass over."""
    return float(np.max(np.fromiter((float(value) for value in values), dtype=np.float64)))


def limit_of_mean(values, side):
    """One-sided 95 % confidence limit (``side`` +1 upper, -1 lower) of the mean of eight independent values."""
    return float(np.mean(values) + side * 1.8946 * np.std(values, ddof=1) / math.sqrt(8))  # Student's t, 7 degrees

"""The ensemble correction of EnKG: mean and anomalies, coefficients (T4), step rules (T5), update (T6).

J particles x_j of d numbers, and for each the m predicted observations g_j = G(phi(x_j)). A bar is the mean over the
ensemble; all means and covariances divide by J, not by J - 1. (T..) are the labels of tests/paper_equations.py.

[1] Ensemble Kalman Diffusion Guidance, arXiv 2409.20175; equation numbers follow the ICLR submission.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ._xp import array_namespace


def ensemble_mean(x):
    """(T4a) xbar = (1/J) sum_j x_j.  (J, d) -> (1, d)"""
    return array_namespace(x).mean(x, axis=0, keepdims=True)


def anomalies(x):
    """(T4b) z_j = x_j - xbar.  (J, d) -> (J, d)"""
    return x - ensemble_mean(x)


def coefficients(r, b):
    """(T4d) K[j, k] = <r_j, b_k> / J, with r_j = Gamma^-1 (g_j - y) and b_k = g_k - gbar.  (J, m) twice -> (J, J)"""
    xp = array_namespace(r, b)
    return xp.matmul(r, xp.matrix_transpose(b)) / r.shape[0]


def frobenius(gamma):
    """(T5) w = gamma / ||K||_F: the rule of the official code, and the default. Up to gamma = 2 no spread can grow."""
    return lambda norm, K_trace: gamma / norm


def trace(gamma):
    """(T5) w = gamma / tr K: the paper's rule, there gamma = 1. tr K = tr(Gamma^-1 C_yy) > 0 for Gaussian noise."""
    return lambda norm, K_trace: gamma / K_trace


def constant(w):
    """(T5) A fixed step, for verification only: the update is then linear in K."""
    return lambda norm, K_trace: w + 0.0 * norm


class Correction(NamedTuple):
    """What one correction did, as zero-dimensional arrays on the device of the particles: w, ||K||_F and tr K."""

    step: Any
    norm: Any
    trace: Any


def correct(x, y_pred, residual, step_size):
    """(T6) Ensemble correction; Eq. (16) of [1].

    x_j <- x_j - w sum_k K[j, k] (x_k - xbar),    K[j, k] = <residual(g_j), g_k - gbar> / J

    Exact when G o phi is affine with matrix H: the update then equals -w C_xx H' Gamma^-1 (H x_j + c - y)
    (Proposition 1). It stays in span{x_k - xbar}. No derivative is taken and no covariance is inverted. The rows must
    be finite and must not all predict the same (then K = 0); the wrappers of ``extensions`` see to both.

    Parameters
    ----------
    x : array (J, *event)       particles at one noise level, prior units
    y_pred : array (J, *obs)    g_j = G(phi(x_j)), same row order, observation units
    residual : (J, m) -> (J, m) half-gradient of the misfit with respect to g, Gamma^-1 (g - y)
    step_size : (||K||_F, tr K) -> w, one of ``frobenius(gamma)``, ``trace(gamma)``, ``constant(w)``

    Returns
    -------
    x_new : array (J, *event);  Correction
    """
    xp = array_namespace(x, y_pred)
    X, G = (xp.reshape(a, (a.shape[0], -1)) for a in (x, y_pred))  # (J, d), (J, m)
    R, B, Z = residual(G), anomalies(G), anomalies(X)

    K = coefficients(R, B)
    norm, K_trace = xp.sqrt(xp.sum(K * K)), xp.sum(R * B) / X.shape[0]
    w = step_size(norm, K_trace)
    X = X - w * xp.matmul(K, Z)  # (T6)
    return xp.reshape(X, x.shape), Correction(w, norm, K_trace)

"""The ensemble correction of EnKG: coefficients (T4), step rules (T5), update (T6), masked for failed members.

Shapes: X (J, d) particles, G (J, m) predicted observations; Z, B their anomalies; R (J, m) the residuals
Gamma^-1 (g - y). All means and covariances divide by J, not J - 1.

[1] Ensemble Kalman Diffusion Guidance, arXiv 2409.20175; equation numbers follow the ICLR submission.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ._xp import array_namespace


def ensemble_mean(x, alive=None):
    """(T4a) xbar = (1/J) sum_j x_j over the members that are alive.  (J, d) -> (1, d)"""
    xp = array_namespace(x)
    if alive is None:
        return xp.mean(x, axis=0, keepdims=True)
    weight = xp.astype(xp.reshape(alive, (-1, 1)), x.dtype)
    return xp.sum(_only(alive, x), axis=0, keepdims=True) / xp.sum(weight)


def anomalies(x, alive=None):
    """(T4b) z_j = x_j - xbar; zero for members that failed.  (J, d) -> (J, d)"""
    return _only(alive, x - ensemble_mean(x, alive))


def coefficients(r, b, members):
    """(T4d) K[j, k] = <g_j - y, g_k - gbar>_Gamma / J = (R B')[j, k] / J.  (J, m), (J, m) -> (J, J)"""
    xp = array_namespace(r, b)
    return xp.matmul(r, xp.matrix_transpose(b)) / members


def frobenius(gamma):
    """(T5) w = gamma / ||K||_F: the rule of the official code, and the default. Monotone for 0 < gamma <= 2."""
    return lambda norm, K_trace: _ratio(float(gamma), norm)


def trace(gamma):
    """(T5) w = gamma / tr(Gamma^-1 C_yy): the paper's rule (there gamma = 1).

    The trace is taken as tr K, which is equal where the residual is affine in g, as for Gaussian noise.
    """
    return lambda norm, K_trace: _ratio(float(gamma), K_trace)


def constant(w):
    """(T5) A fixed step, for verification only: the update is then linear in K."""
    return lambda norm, K_trace: _ratio(float(w), array_namespace(norm).ones_like(norm))


def update_pairwise(x, z, k, w):
    """(T6a) x_j <- x_j - w sum_k K[j, k] z_k.  Time J^2 (m + d) with K."""
    xp = array_namespace(x, z)
    return x - w * xp.matmul(k, z)


def update_lowrank(x, z, r, b, w, members):
    """(T6b) X <- X - w R C_yx, C_yx = B'Z/J: the same update without the J x J matrix.  Time J m d."""
    xp = array_namespace(x, z)
    return x - w * xp.matmul(r, xp.matmul(xp.matrix_transpose(b), z) / members)


@dataclass(frozen=True)
class Correction:
    """What one correction did. Zero-dimensional arrays, on the device of the particles.

    step : w (0 if skipped);  norm : ||K||_F;  trace : tr K;  collapsed : bool, ||K||_F was at the rounding floor
    """

    step: Any
    norm: Any
    trace: Any
    collapsed: Any


def correct(x, y_pred, residual, step_size, alive=None, failed="shift", guard=64.0):
    """(T6) Ensemble correction; Eq. (16) of [1].

    x_j <- x_j - w sum_k K[j, k] (x_k - xbar),    K[j, k] = <residual(y_pred_j), y_pred_k - mean y_pred> / J

    Exact when G o phi is affine with matrix H: the update then equals -w C_xx H' Gamma^-1 (H x_j + c - y)
    (Prop. 1). It stays in span{x_k - xbar}. No derivative is taken and no covariance is inverted.

    Parameters
    ----------
    x : array (J, *event)       particles at one noise level, prior units
    y_pred : array (J, *obs)    G(phi(x_j)), same row order, observation units
    residual : (J, m) -> (J, m) half-gradient of the misfit with respect to y_pred, Gamma^-1 (g - y)
    step_size : (||K||_F, tr K) -> w, one of ``frobenius(gamma)``, ``trace(gamma)``, ``constant(w)``
    alive : array (J,) of bool, or None   members whose y_pred is valid; the others enter no mean and no product
    failed : "shift" (failed members move by the mean displacement of the others) or "keep" (they stay)
    guard : float or None       the update is skipped when ||K||_F is below ``guard`` times its rounding error;
                                None skips only an exact zero, as the paper would have to

    Returns
    -------
    x_new : array (J, *event);  Correction
    """
    if failed not in ("shift", "keep"):
        raise ValueError(f"failed: got {failed!r}, expected 'shift' or 'keep'")
    xp = array_namespace(x, y_pred)
    J = x.shape[0]
    X, G = xp.reshape(x, (J, -1)), _only(alive, xp.reshape(y_pred, (J, -1)))
    m = G.shape[1]
    members = J if alive is None else xp.sum(xp.astype(alive, x.dtype))

    R = _only(alive, residual(G))
    B = anomalies(G, alive)
    Z = anomalies(X, alive)

    pairwise = J <= 2 * m  # the cheaper of two equal forms
    if pairwise:
        K = coefficients(R, B, members)
        norm = xp.sqrt(xp.sum(K * K))
    else:  # (T13) ||K||_F^2 = ||(P R) B'||_F^2 / J^2 + ||B rbar||^2 / J: two sums of squares, no cancellation
        R_mean = ensemble_mean(R, alive)
        PR = anomalies(R, alive)
        squares = xp.sum(xp.matmul(PR.T, PR) * xp.matmul(B.T, B)) / members + xp.sum(xp.matmul(B, R_mean.T) ** 2.0)
        norm = xp.sqrt(xp.maximum(squares, xp.zeros_like(squares)) / members)  # rounding may leave -1e-30
    K_trace = xp.sum(R * B) / members

    live = norm > rounding_floor(R, G, members, guard)
    w = xp.where(live, step_size(norm, K_trace), xp.zeros_like(norm))
    X_new = update_pairwise(X, Z, K, w) if pairwise else update_lowrank(X, Z, R, B, w, members)

    if alive is not None and failed == "shift":
        shift = ensemble_mean(X_new, alive) - ensemble_mean(X, alive)
        X_new = xp.where(xp.reshape(alive, (-1, 1)), X_new, X_new + shift)
    return xp.reshape(X_new, x.shape), Correction(w, norm, K_trace, xp.logical_not(live))


def rounding_floor(r, g, members, guard):
    """Size of ||K||_F that rounding alone can produce, times ``guard``: guard eps sum_a ||R_a|| ||G_a|| / J.

    K = sum_a R_a B_a'/J over observations a; rounding leaves an error of eps ||G_a|| in the anomalies B_a = G_a - mean.
    """
    xp = array_namespace(r, g)
    if guard is None:
        return 0.0
    eps = float(xp.finfo(g.dtype).eps)
    columns = xp.sqrt(xp.sum(r * r, axis=0)) * xp.sqrt(xp.sum(g * g, axis=0))
    return guard * eps * xp.sum(columns) / members


def _only(alive, x):
    # where, not a product with the mask: 0 * NaN is NaN
    xp = array_namespace(x)
    return x if alive is None else xp.where(xp.reshape(alive, (-1, 1)), x, xp.zeros_like(x))


def _ratio(gamma, q):
    # 0 where q = 0: a vanishing denominator means there is nothing to correct
    xp = array_namespace(q)
    return xp.where(q > 0.0, gamma / xp.where(q > 0.0, q, xp.ones_like(q)), xp.zeros_like(q))

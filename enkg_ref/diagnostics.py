"""Diagnostics (D1) of one correction: numbers that say how the ensemble fares. They change nothing.

They need two small products beside the update, and one symmetric eigenproblem of size min(J, m) on the host.
"""

from __future__ import annotations

import math

import numpy as np

from ._xp import array_namespace, to_numpy
from .ensemble import anomalies, ensemble_mean


def diagnose(x, x_new, y_pred, likelihood, correction=None, alive=None):
    """Diagnostics of the correction x -> x_new with predictions y_pred = G(phi(x)). Python numbers by name.

    x, x_new : (J, *event);  y_pred : (J, m);  correction : `ensemble.Correction`, or None if none was made
    alive : (J,) of bool or None

    misfit        ||gbar - y||_Gamma^2 / m,      mean_misfit   (1/J) sum_j ||g_j - y||_Gamma^2 / m
    spread        sqrt(tr C_xx / d),             spread_obs    tr(Gamma^-1 C_yy) / m
    alignment     ||C_xy Gamma^-1/2||_F^2 / (tr(Gamma^-1 C_yy) tr C_xx), in [0, 1]; THEORY.md 1.4
    w_lambda_max  w times the largest eigenvalue of Gamma^-1/2 C_yy Gamma^-1/2; above 2 the spread may grow
    budget_scale  sqrt(r + kappa^2), r = rank C_yy, kappa the Mahalanobis misfit of the mean; THEORY.md 1.5
    """
    xp = array_namespace(x, y_pred)
    J = x.shape[0]
    members = J if alive is None else float(xp.sum(xp.astype(alive, x.dtype)))
    if alive is not None:  # failed rows count as absent
        y_pred = xp.where(alive[:, None], y_pred, ensemble_mean(y_pred, alive))
    m = y_pred.shape[1]
    Z = anomalies(xp.reshape(x, (J, -1)), alive)
    g_mean = ensemble_mean(y_pred, alive)
    B = likelihood.whiten(anomalies(y_pred, alive))
    spread, tau = float(xp.sum(Z * Z)) / members, float(xp.sum(B * B)) / members

    step = norm_k = alignment = w_lambda_max = 0.0
    if correction is not None:
        step, norm_k = float(correction.step), float(correction.norm)
        if step > 0 and spread * tau > 0:
            # <Z, X - X_new> = w <Z, S Z>, and <Z, S Z>/J = ||C_xy Gamma^-1/2||_F^2 (T12)
            decrease = float(xp.sum(Z * xp.reshape(x - x_new, (J, -1)))) / members
            alignment = decrease / (step * tau * spread)
    eigenvalues, kappa2 = _observation_modes(B, likelihood.whiten(likelihood.difference(g_mean)), members)
    if len(eigenvalues):
        w_lambda_max = step * float(eigenvalues[-1])
    return {
        "step": step, "norm_k": norm_k,
        "misfit": float(likelihood.misfit(g_mean)[0]) / m,
        "mean_misfit": float(ensemble_mean(likelihood.misfit(y_pred)[:, None], alive)[0, 0]) / m,
        "spread": math.sqrt(spread / Z.shape[1]), "spread_obs": tau / m, "alignment": alignment,
        "w_lambda_max": w_lambda_max,
        "collapsed": correction is not None and bool(correction.collapsed),
        "budget_scale": math.sqrt(len(eigenvalues) + kappa2) if len(eigenvalues) else math.inf,
    }


def linear_change(y_pred, likelihood, step, alive=None):
    """Change of the predictions that the correction implies if G o phi is affine: -w K B = -w R (B'B)/J.  (J, m)

    X+ = X - w K Z lies in the span of the ensemble, so an affine map needs nothing but the predictions it already gave.
    """
    xp = array_namespace(y_pred)
    if alive is not None:
        y_pred = xp.where(alive[:, None], y_pred, ensemble_mean(y_pred, alive))
    J, m = y_pred.shape
    members = J if alive is None else xp.sum(xp.astype(alive, y_pred.dtype))
    R, B = likelihood.residual(y_pred), anomalies(y_pred, alive)
    if J <= m:
        return -step * xp.matmul(xp.matmul(R, xp.matrix_transpose(B)), B) / members
    return -step * xp.matmul(R, xp.matmul(xp.matrix_transpose(B), B)) / members


def trust(expected, before, now, likelihood):
    """Cosine, in the metric of the noise, of the expected change of the predictions and the change now - before.

    1: the map was affine over the last correction; on Lorenz-96 it ranks the cosine between ensemble correction and
    true preconditioned gradient: .983 or more stands for a cosine of .95 or more. That holds within a level; at the
    first update of a level ``now`` contains a predictor step, which no linear model foretells. Measured by
    benchmarks/correction_quality.py. Rows that are not finite do not count.

    All arrays (J, m). Returns a Python float in [-1, 1], or None if nothing moved.
    """
    xp = array_namespace(now)
    change = likelihood.difference(now) - likelihood.difference(before)
    valid = xp.all(xp.isfinite(change) & xp.isfinite(expected), axis=1)[:, None]
    a, b = (likelihood.whiten(xp.where(valid, v, xp.zeros_like(v))) for v in (expected, change))
    size = math.sqrt(float(xp.sum(a * a)) * float(xp.sum(b * b)))
    return float(xp.sum(a * b)) / size if size > 0 and math.isfinite(size) else None


def _observation_modes(b, e, members):
    """Non-zero eigenvalues (ascending) of Cw = B'B/J and kappa^2 = e' Cw^+ e, from the smaller Gram matrix."""
    b, e = to_numpy(b).astype(np.float64), to_numpy(e).astype(np.float64)[0]
    small = b.shape[1] <= b.shape[0]
    gram = (b.T @ b if small else b @ b.T) / members
    if not np.all(np.isfinite(gram)) or not gram.any():
        return np.empty(0), 0.0
    values, vectors = np.linalg.eigh(gram)
    keep = values > max(b.shape) * np.finfo(np.float64).eps * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    # left singular vectors of B carry e through B: u_i . e = q_i . (B e) / sqrt(J lambda_i)
    along = vectors.T @ e if small else (vectors.T @ (b @ e)) / np.sqrt(members * values)
    return values, float(np.sum(along**2 / values))

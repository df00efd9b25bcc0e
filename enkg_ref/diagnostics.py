"""How a run fares: numbers (D1) of one correction, taken from (state, info) and never by the method itself.

They need two small products beside the update, and one symmetric eigenproblem of size min(J, m) on the host.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._xp import array_namespace, finite_rows, put_rows, take_rows, to_numpy
from .ensemble import anomalies, coefficients, ensemble_mean


@dataclass(frozen=True)
class Memory:
    """What the diagnostics of the next update need of this one; a resume carries it beside the state.

    collapse_budget : sum of gamma_i / sqrt(r + kappa^2) over the updates; the observed spread falls about like exp(-b)
    y_pred, expected : the last predictions, and their change if G o phi were affine: what `trust` is taken from
    """

    collapse_budget: float = 0.0
    y_pred: Any = None
    expected: Any = None


def observe(memory, info, likelihood):
    """History line of one update of ``enkg.EnKG``: the numbers of `diagnose`, the collapse budget, the trust number.

    memory : ``Memory``;  info : ``enkg.Info``.  Returns (memory, {name: number}). ``trust`` is None where the last
    update was skipped. ``skipped`` says that the step was zero: the ensemble had collapsed, or tr K was not positive
    under the trace rule. ``stopped``: no correction was made, the data were fitted.
    """
    alive = np.flatnonzero(finite_rows(info.y_pred))
    measured = diagnose(info, likelihood, alive)
    moved = measured["step"] > 0.0
    trusted = None if memory.expected is None else trust(memory.expected, memory.y_pred, info.y_pred, likelihood)
    budget = memory.collapse_budget + (info.gamma / measured.pop("budget_scale") if moved else 0.0)
    y_pred = array_namespace(info.x).astype(info.y_pred, info.x.dtype)
    linear = moved and math.isfinite(measured["norm_k"])  # the tempered step forms no K
    expected = linear_change(y_pred, likelihood, measured["step"]) if linear else None
    line = {"level": info.level, "update": info.update, "sigma": info.sigma, "gamma": info.gamma, **measured,
            "collapse_budget": budget, "stopped": info.correction is None,
            "skipped": info.correction is not None and not moved,
            "failed_rows": sorted(set(range(info.x.shape[0])) - set(alive.tolist())), "trust": trusted}
    _warn(line, info)
    return Memory(budget, y_pred, expected), line


def _warn(line, info):
    if line["skipped"]:
        norm, trace_of_k = float(info.correction.norm), float(info.correction.trace)
        warnings.warn(f"level {info.level}, update {info.update} is skipped, ||K||_F = {norm:.2g}, tr K = "
                      f"{trace_of_k:.2g}: the ensemble has collapsed to rounding error in observation space, or tr K "
                      "is not positive under the trace rule", stacklevel=3)
    if len(line["failed_rows"]) > 0.05 * info.x.shape[0]:
        warnings.warn(f"more than 5 % of the members failed in one call, at level {info.level}, update {info.update}: "
                      "at large guidance let them shift with the others, do not keep them in place", stacklevel=3)


def diagnose(info, likelihood, alive):
    """Diagnostics of the correction of ``info`` over the rows ``alive``. Python numbers by name.

    misfit        ||gbar - y||_Gamma^2 / m,      mean_misfit   (1/J) sum_j ||g_j - y||_Gamma^2 / m
    spread        sqrt(tr C_xx / d),             spread_obs    tr(Gamma^-1 C_yy) / m
    alignment     ||C_xy Gamma^-1/2||_F^2 / (tr(Gamma^-1 C_yy) tr C_xx), in [0, 1]; THEORY.md 1.4
    w_lambda_max  w times the largest eigenvalue of Gamma^-1/2 C_yy Gamma^-1/2; above 2 the spread may grow
    resolved      sum l/(1 + l) over those eigenvalues l: the directions of the data that the ensemble tells from noise
    budget_scale  sqrt(r + kappa^2), r = rank C_yy, kappa the Mahalanobis misfit of the mean; THEORY.md 1.5
    """
    x, x_new, g = (take_rows(a, alive) for a in (info.x, info.x_new, info.y_pred))
    xp = array_namespace(x, g)
    J, m = g.shape
    Z = anomalies(xp.reshape(x, (J, -1)))
    g_mean = ensemble_mean(g)
    B = likelihood.whiten(anomalies(g))
    spread, tau = float(xp.sum(Z * Z)) / J, float(xp.sum(B * B)) / J

    step = norm_k = alignment = 0.0
    if info.correction is not None:
        step, norm_k = float(info.correction.step), float(info.correction.norm)
        if step > 0 and spread * tau > 0:
            # <Z, X - X_new> = w <Z, S Z>, and <Z, S Z>/J = ||C_xy Gamma^-1/2||_F^2 (T12)
            decrease = float(xp.sum(Z * xp.reshape(x - x_new, (J, -1)))) / J
            alignment = decrease / (step * tau * spread)
    eigenvalues, kappa2 = _observation_modes(B, likelihood.whiten(likelihood.difference(g_mean)))
    modes = len(eigenvalues)
    return {
        "step": step, "norm_k": norm_k,
        "misfit": float(likelihood.misfit(g_mean)[0]) / m,
        "mean_misfit": float(xp.mean(likelihood.misfit(g))) / m,
        "spread": math.sqrt(spread / Z.shape[1]), "spread_obs": tau / m, "alignment": alignment,
        "w_lambda_max": step * float(eigenvalues[-1]) if modes else 0.0,
        "resolved": float(np.sum(eigenvalues / (1.0 + eigenvalues))),
        "budget_scale": math.sqrt(modes + kappa2) if modes else math.inf,
    }


def linear_change(y_pred, likelihood, step):
    """Change of the predictions that the correction implies if G o phi is affine: -w K B = -w R (B'B)/J.  (J, m)

    X+ = X - w K Z lies in the span of the ensemble, so an affine map needs nothing but the predictions it already gave.
    Rows that are not finite take part in nothing and are NaN in the result.
    """
    alive = np.flatnonzero(finite_rows(y_pred))
    if len(alive) < y_pred.shape[0]:
        change = linear_change(take_rows(y_pred, alive), likelihood, step)
        return put_rows(y_pred * math.nan, alive, change)
    xp = array_namespace(y_pred)
    J, m = y_pred.shape
    R, B = likelihood.residual(y_pred), anomalies(y_pred)
    if J <= m:
        return -step * xp.matmul(coefficients(R, B), B)
    return -step * xp.matmul(R, xp.matmul(xp.matrix_transpose(B), B)) / J


def trust(expected, before, now, likelihood):
    """Cosine, in the metric of the noise, of the expected change of the predictions and the change now - before.

    1: the map was affine over the last correction; on Lorenz-96 it ranks the cosine between ensemble correction and
    true preconditioned gradient: 0.983 or more stands for a cosine of 0.95 or more. That holds within a level; at the
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


def _observation_modes(b, e):
    """Non-zero eigenvalues (ascending) of Cw = B'B/J and kappa^2 = e' Cw^+ e, from the smaller Gram matrix."""
    b, e = to_numpy(b).astype(np.float64), to_numpy(e).astype(np.float64)[0]
    small, J = b.shape[1] <= b.shape[0], b.shape[0]
    gram = (b.T @ b if small else b @ b.T) / J
    if not np.all(np.isfinite(gram)) or not gram.any():
        return np.empty(0), 0.0
    values, vectors = np.linalg.eigh(gram)
    keep = values > max(b.shape) * np.finfo(np.float64).eps * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    # left singular vectors of B carry e through B: u_i . e = q_i . (B e) / sqrt(J lambda_i)
    along = vectors.T @ e if small else (vectors.T @ (b @ e)) / np.sqrt(J * values)
    return values, float(np.sum(along**2 / values))

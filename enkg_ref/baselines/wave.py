"""What the baselines share: the settings' description, the check of a wave of predictions, and what a step reports."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from .._xp import array_namespace, like, member_normals, to_numpy


class Settings:
    """Base of the methods' frozen configurations."""

    def describe(self):
        """The settings as plain values (functions by name): what a summary prints and a checkpoint compares."""
        return {f.name: list(value) if isinstance(value, tuple) else getattr(value, "__name__", value)
                for f in dataclasses.fields(self) for value in [getattr(self, f.name)]}


def expect(name, value, least=0, strict=False):
    """Raises ValueError unless ``value`` is a finite number >= least (> least if strict)."""
    if not (math.isfinite(value) and (value > least or (value == least and not strict))):
        raise ValueError(f"{name}: got {value}, expected a number {'>' if strict else '>='} {least}")


def expect_one(name, value, *choices):
    """Raises ValueError unless ``value`` is one of the choices."""
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"{name}: got {value!r}, expected {', '.join(others)} or {last}")


@dataclass(frozen=True)
class Info:
    """Diagnostics of one wave. Plain Python numbers.

    misfit, mean_misfit : ||g - y||_Gamma^2/m of the wave's mean prediction, and averaged over its rows
    skipped : number of rows whose guidance was skipped (a denominator was zero or a value not finite)
    """

    level: int
    sigma: float
    misfit: float
    mean_misfit: float
    skipped: int = 0


def report(level, sigma, g, likelihood, skipped=0):
    """`Info` of a wave with predictions g (rows, m); rows that are not finite are left out."""
    xp = array_namespace(g)
    finite = xp.all(xp.isfinite(g), axis=1, keepdims=True)
    alive = xp.astype(finite, g.dtype)
    members = max(float(xp.sum(alive)), 1.0)
    g = xp.where(finite, g, xp.zeros_like(g))
    mean = xp.sum(g, axis=0, keepdims=True) / members
    misfits = xp.sum(likelihood.misfit(g) * alive[:, 0]) / members
    return Info(level, sigma, float(likelihood.misfit(mean)[0]) / likelihood.size, float(misfits) / likelihood.size,
                int(skipped))


def predictions(y_pred, rows, likelihood):
    """y_pred as (rows, m). Raises ValueError for another number of rows or observations."""
    if y_pred.shape[0] != rows or math.prod(y_pred.shape[1:]) != likelihood.size:
        raise ValueError(f"forward: got an output of shape {tuple(y_pred.shape)}, expected ({rows}, "
                         f"{likelihood.size}): forward must return one row per point")
    return array_namespace(y_pred).reshape(y_pred, (rows, -1))


def finite_rows(x):
    """(rows, ...) -> (rows,) of bool."""
    xp = array_namespace(x)
    return xp.all(xp.isfinite(xp.reshape(x, (x.shape[0], -1))), axis=1)


def require_finite(x, what, level, sigma):
    """x, if it is finite. Raises FloatingPointError that names the first bad row otherwise."""
    finite = finite_rows(x)
    if not bool(array_namespace(finite).all(finite)):
        row = int(to_numpy(finite).argmin())
        raise FloatingPointError(f"{what}: row {row} is not finite at level {level} (sigma = {sigma:.4g}), "
                                 "expected finite numbers")
    return x


def normals(seed, stream, x, extra=()):
    """(rows, *extra, *event) standard normals like x.

    Row r depends on (seed, stream, r) only, and the first k of ``extra`` draws are those of a shorter ``extra``.
    """
    return like(member_normals(seed, stream, x.shape[0], (*extra, *x.shape[1:])), x)


def per_row(v, x):
    """(rows,) -> (rows, 1, ..., 1), to multiply x (rows, *event)."""
    return array_namespace(v).reshape(v, (v.shape[0],) + (1,) * (x.ndim - 1))


def repeat(x, n):
    """(rows, *event) -> (rows, n, *event), every row n times."""
    xp = array_namespace(x)
    return xp.broadcast_to(x[:, None, ...], (x.shape[0], n, *x.shape[1:]))


def flat(x):
    """(rows, n, *event) -> (rows n, *event)."""
    return array_namespace(x).reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))


def row_norm(x):
    """Euclidean norm of every row.  (rows, *event) -> (rows,)"""
    xp = array_namespace(x)
    return xp.sqrt(xp.sum(xp.reshape(x * x, (x.shape[0], -1)), axis=1))

"""Array namespaces, devices and host random numbers: the only file of this package that knows array_api_compat."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

__all__ = ["array_namespace", "device", "finite_rows", "like", "member_normals", "numbers_like", "put_rows",
           "take_rows", "to_numpy"]


def like(host, x):
    """Host data as an array of the namespace, dtype and device of ``x``."""
    return array_namespace(x).asarray(np.asarray(host, order="C"), dtype=x.dtype, device=device(x))


def numbers_like(value, x):
    """``value`` as an array of real floating numbers beside ``x``, or None if it is none.

    An array of the namespace of ``x`` keeps its floating dtype; whole numbers, truth values, lists, data frames and
    arrays of other libraries are taken over.
    """
    try:
        xp = array_namespace(x, value)
        kind = value.dtype
    except (TypeError, AttributeError):  # of another library, or no array at all
        try:
            host = np.asarray(value)
        except (TypeError, ValueError, RuntimeError):
            return None
        return like(host, x) if host.dtype.kind in "fiub" else None
    if xp.isdtype(kind, "real floating"):
        return value
    return xp.astype(value, x.dtype) if xp.isdtype(kind, ("bool", "integral")) else None


def to_numpy(x):
    """Any array as a host numpy array (a view where the library allows one)."""
    if isinstance(x, np.ndarray):
        return x
    if hasattr(x, "get"):  # cupy: DLPack does not leave the device
        return x.get()
    try:
        return np.from_dlpack(x)
    except (BufferError, TypeError, RuntimeError, AttributeError):
        return np.asarray(x)


def finite_rows(x):
    """Which rows of ``x`` (J, ...) have finite entries only.  -> host array (J,) of bool"""
    xp = array_namespace(x)
    return to_numpy(xp.all(xp.isfinite(xp.reshape(x, (x.shape[0], -1))), axis=1))


def take_rows(x, rows):
    """The rows of ``x`` (J, ...) with these numbers (a host sequence), in that order."""
    xp = array_namespace(x)
    integer = xp.arange(0, device=device(x)).dtype  # a device without 64 bits has an index type of its own
    return xp.take(x, xp.asarray([int(row) for row in rows], dtype=integer, device=device(x)), axis=0)


def put_rows(x, rows, new):
    """A copy of ``x`` (J, ...) whose rows with these numbers (a host sequence) are those of ``new``."""
    others = np.setdiff1d(np.arange(x.shape[0]), rows)
    parts = array_namespace(x).concat([new, take_rows(x, others)], axis=0)
    return take_rows(parts, np.argsort(np.concatenate([rows, others])))


def member_normals(seed, stream, rows, shape):
    """Standard normal numbers with one random stream per ensemble member, drawn on the host.

    Row r depends on (seed, stream, r) only: every back-end sees the same ensemble, and the first 256 members of
    512 are those of an ensemble of 256.

    Returns a numpy float64 array (rows, *shape).
    """
    return np.stack([np.random.default_rng([seed, stream, row]).standard_normal(shape) for row in range(rows)])

"""Array namespaces, devices and host random numbers: the only file of this package that knows array_api_compat."""

from __future__ import annotations

import numpy as np
from array_api_compat import array_namespace, device

__all__ = ["array_namespace", "device", "like", "member_normals", "to_numpy"]


def like(host, x):
    """Host data as an array of the namespace, dtype and device of ``x``."""
    return array_namespace(x).asarray(np.asarray(host), dtype=x.dtype, device=device(x))


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


def member_normals(seed, stream, rows, shape):
    """Standard normal numbers with one random stream per ensemble member, drawn on the host.

    Row r depends on (seed, stream, r) only: every back-end sees the same ensemble, and the first 256 members of
    512 are those of an ensemble of 256.

    Returns a numpy float64 array (rows, *shape).
    """
    return np.stack([np.random.default_rng([seed, stream, row]).standard_normal(shape) for row in range(rows)])

"""The only place of ``onnx_priors`` that knows array_api_compat: namespace, device, moves to and from the host."""

from __future__ import annotations

import math

import numpy as np
from array_api_compat import array_namespace, device, is_cupy_array, is_jax_array, is_numpy_array, is_torch_array

__all__ = ["array_namespace", "device", "flat_rows", "is_cupy_array", "like", "noise_level", "require_real", "to_numpy"]


def like(host, x):
    """A host numpy array in the namespace, dtype and on the device of x; memory is shared where the framework can."""
    xp = array_namespace(x)
    dtype = x.dtype
    if is_torch_array(x):  # torch has dtypes that numpy lacks, and shares memory best from the source dtype
        return xp.asarray(host, device=device(x)).to(dtype)
    if not is_numpy_array(x):
        host = host.astype(str(dtype).rsplit(".", 1)[-1], copy=False)
    return xp.asarray(host, dtype=dtype, device=device(x))


def to_numpy(x):
    """The array on the host as numpy, sharing memory where possible; treat it as read-only."""
    if is_numpy_array(x):
        return x
    if is_torch_array(x):
        return x.detach().cpu().numpy()
    if is_cupy_array(x):
        return x.get()
    if is_jax_array(x):
        return np.asarray(x)
    return np.from_dlpack(x)


def require_real(x, name):
    """Raise ValueError unless x has a real floating dtype."""
    xp = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise ValueError(f"{name}: got dtype {x.dtype}, expected a real floating one")


def flat_rows(x, event_shape, name):
    """Namespace and (J, d) form of an array (J, *event); ValueError for another shape or dtype."""
    xp = array_namespace(x)
    require_real(x, name)
    if x.ndim == 0 or tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected (J, {', '.join(map(str, event_shape))})")
    return xp, xp.reshape(x, (x.shape[0], math.prod(event_shape)))


def noise_level(sigma):
    """sigma as a Python float; ValueError unless it is finite and not negative."""
    sigma = float(sigma)
    if not 0.0 <= sigma < math.inf:
        raise ValueError(f"sigma: got {sigma}, expected a finite number >= 0")
    return sigma

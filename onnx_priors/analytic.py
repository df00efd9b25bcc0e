"""Priors whose denoiser is known in closed form: the oracles of every other part, as array functions and as ONNX files.

x = x0 + sigma N(0, I) with x0 of the prior. ``denoise`` is E[x0 | x], ``denoise_vjp`` adds J_D^T v, ``flow`` (Gaussian
only) is the exact probability flow. Array functions compute in the dtype of x on its device, for any array-API
namespace; use float64 where they serve as an oracle. The ONNX files compute in float64 inside; no torch writes them.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from onnx_priors._xp import array_namespace, like, require_real
from onnx_priors.manifest import encode_metadata, model_shape

OPSET, IR_VERSION = 20, 10


class GaussianPrior:
    """N(mean, C) with C = sum_k variances[k] q_k q_k^T + rest (I - sum_k q_k q_k^T), q_k orthonormal.

    Parameters
    ----------
    mean : array (*event)
    variances : float or array   with ``modes``: (r,), eigenvalues l of C; without: scalar or (*event), diagonal of C
    modes : array (r, *event) or None   eigenvectors q_k
    rest : float                 variance of all directions orthogonal to the modes (without effect if r = d)

    All on the host. Raises ValueError for negative variances, other shapes, or modes that are not orthonormal.
    """

    def __init__(self, mean, variances, modes=None, rest=0.0):
        mean = np.asarray(mean, dtype=np.float64)
        self.event_shape = mean.shape
        self._shape = model_shape(self.event_shape)
        self._mean = mean.reshape(-1)
        d = self._mean.size
        variances, self._rest = np.asarray(variances, dtype=np.float64), float(rest)
        if modes is None:
            self._modes = None
            self._variances = np.broadcast_to(variances, self.event_shape).reshape(-1)
        else:
            self._modes = _orthonormal(np.asarray(modes, dtype=np.float64).reshape(len(modes), -1), d)
            if variances.shape != (len(modes),):
                raise ValueError(f"variances must have shape ({len(modes)},), one per mode, got {variances.shape}")
            self._variances = variances
        if not (np.all(self._variances >= 0.0) and self._rest >= 0.0):
            raise ValueError(f"variances must not be negative, got {min(float(np.min(self._variances)), self._rest):g}")

    @classmethod
    def from_covariance(cls, mean, covariance):
        """N(mean, covariance) with a (d, d) covariance of the events in C order."""
        variances, vectors = _eigen(covariance)
        return cls(mean, variances, vectors.reshape(-1, *np.shape(mean)))

    def denoise(self, x, sigma):
        """D(x, sigma) = mu + C (C + sigma^2)^-1 (x - mu), (O1); x (J, *event), sigma >= 0, D(x, 0) = x."""
        return x if _noise_level(sigma) == 0.0 else self._affine(x, self._shrinkage(float(sigma)))

    def denoise_vjp(self, x, sigma, v):
        """(D, J_D^T v) with the symmetric J_D = C (C + sigma^2)^-1, (O3); v (J, *event)."""
        if _noise_level(sigma) == 0.0:
            return x, v
        factors = self._shrinkage(float(sigma))
        xp, flat = _flat(v, self.event_shape, "v")
        return self._affine(x, factors), xp.reshape(self._scale(flat, factors), v.shape)

    def flow(self, x, sigma, sigma_next=0.0):
        """Exact probability flow from level sigma to sigma_next, (O2): modes scale by sqrt((l + s'^2)/(l + s^2))."""
        s2, t2 = _noise_level(sigma) ** 2, _noise_level(sigma_next) ** 2
        if s2 == t2:
            return x
        if s2 == 0.0:
            raise ValueError("flow starts at sigma = 0, where modes without variance have left no trace of x")
        return self._affine(x, [np.sqrt((l + t2) / (l + s2)) for l in (self._variances, self._rest)])

    def sample(self, rng, count):
        """``count`` draws, numpy float64 (count, *event); row i depends on the generator and i only."""
        white = rng.standard_normal((count, self._mean.size))
        coloured = self._scale(white, [np.sqrt(self._variances), math.sqrt(self._rest)])
        return (self._mean + coloured).reshape(count, *self.event_shape)

    def to_onnx(self, path, metadata=None, vjp=False, storage="float64"):
        """Write the denoiser (or with ``vjp`` the pair (D, J_D^T v)) as a prior file.

        ``metadata`` completes or overrides the parametrisation and the sigma range [1e-3, 1e3]. ``storage`` "float32"
        halves the file; the arithmetic stays float64.
        """
        graph = _Graph(self._mean.size, vjp, storage)
        mean, variances, rest = graph.table(self._mean), graph.table(self._variances), graph.table(self._rest)
        shrink = graph.div(variances, graph.add(variances, graph.sigma2))
        if self._modes is None:
            def scale(z):
                return graph.mul(shrink, z)
        else:
            modes = graph.table(self._modes)
            if len(self._modes) == self._mean.size:
                def scale(z):
                    return graph.matmul(graph.mul(shrink, graph.matmul_T(z, modes)), modes)
            else:
                shrink_rest = graph.div(rest, graph.add(rest, graph.sigma2))
                extra = graph.sub(shrink, shrink_rest)

                def scale(z):
                    inside = graph.matmul(graph.mul(extra, graph.matmul_T(z, modes)), modes)
                    return graph.add(graph.mul(shrink_rest, z), inside)

        denoised = graph.add(mean, scale(graph.sub(graph.x, mean)))
        outputs = [denoised, scale(graph.v)] if vjp else [denoised]
        facts = {"parametrisation": "exact Gaussian denoiser, (O1)", **(metadata or {})}
        graph.save(path, outputs, self.event_shape, facts)

    def _shrinkage(self, sigma):
        return [l / (l + sigma**2) for l in (self._variances, self._rest)]

    def _affine(self, x, factors):
        xp, flat = _flat(x, self.event_shape, "x")
        mean = like(self._mean, x)
        return xp.reshape(mean + self._scale(flat - mean, factors), x.shape)

    def _scale(self, z, factors):
        """f(C) z for rows z (J, d); factors = f(variances), f(rest)."""
        factor, rest = factors
        if self._modes is None:
            return like(factor, z) * z
        rest = 0.0 if len(self._modes) == self._mean.size else float(rest)
        modes = like(self._modes, z)
        inside = (like(factor - rest, z) * (z @ modes.T)) @ modes
        return inside + rest * z if rest else inside


class StationaryGaussianPrior:
    """N(mean, C) on a periodic grid, C invariant under shifts: C = F^-1 diag(spectrum) F, F the Fourier transform.

    Parameters
    ----------
    mean : array (n, n)
    spectrum : array (n, n//2 + 1)   eigenvalues of C for the wave numbers of ``rfft2``, >= 0
    """

    def __init__(self, mean, spectrum):
        self._mean, self._spectrum = np.asarray(mean, dtype=np.float64), np.asarray(spectrum, dtype=np.float64)
        self.event_shape = self._mean.shape
        n = self._mean.shape[0]
        if self._mean.shape != (n, n) or self._spectrum.shape != (n, n // 2 + 1) or not np.all(self._spectrum >= 0.0):
            raise ValueError("mean, spectrum: expected (n, n) and (n, n//2 + 1) without negative entries, got "
                             f"{self._mean.shape} and {self._spectrum.shape}")

    def denoise(self, x, sigma):
        """D(x, sigma) = mu + C (C + sigma^2)^-1 (x - mu), (O1); x (J, n, n), sigma >= 0."""
        mean = like(self._mean, x)
        return mean + self._filtered(x - mean, self._gain(sigma))

    def denoise_vjp(self, x, sigma, v):
        """D(x, sigma) and J_D^T v; J_D = C (C + sigma^2)^-1 is symmetric."""
        return self.denoise(x, sigma), self._filtered(v, self._gain(sigma))

    def _gain(self, sigma):
        # a mode without variance stays at its mean at every level, sigma = 0 included
        return np.divide(self._spectrum, self._spectrum + _noise_level(sigma) ** 2, out=np.zeros_like(self._spectrum),
                         where=self._spectrum > 0.0)

    def _filtered(self, x, gain):
        xp, _ = _flat(x, self.event_shape, "x")
        return xp.fft.irfftn(xp.fft.rfftn(x, axes=(-2, -1)) * like(gain, x), s=self.event_shape, axes=(-2, -1))


class MixturePrior:
    """Gaussian mixture sum_k weights[k] N(means[k], C_k).

    With all training points as means and equal isotropic C_k it is what a perfectly trained network would learn.

    Parameters
    ----------
    weights : array (K,)         positive; normalised to sum 1
    means : array (K, *event)
    variances : float or array   scalar or (K,): isotropic C_k = t_k^2 I, (O5); (K, *event): diagonal C_k; with modes
                                 (K, d): eigenvalues of C_k, (O4)
    modes : array (K, d, *event) or (K, d, d), or None   orthonormal eigenvectors of each C_k, as rows

    The isotropic form costs two products with a (K, d) matrix, the others arrays of K J d numbers.
    """

    def __init__(self, weights, means, variances, modes=None):
        means = np.asarray(means, dtype=np.float64)
        weights, variances = np.asarray(weights, dtype=np.float64), np.asarray(variances, dtype=np.float64)
        K, self.event_shape = len(means), means.shape[1:]
        self._shape = model_shape(self.event_shape)
        self._means = means.reshape(K, -1)
        d = self._means.shape[1]
        if weights.shape != (K,) or not np.all(weights > 0.0):
            raise ValueError(f"weights must be {K} positive numbers, one per mean, got shape {weights.shape}")
        self._log_weights = np.log(weights / weights.sum())
        self._modes = None
        if modes is not None:
            self._modes = np.stack([_orthonormal(np.reshape(q, (len(q), -1)), d, full=True) for q in modes])
        self._isotropic = modes is None and variances.ndim <= 1
        if self._isotropic:
            self._variances = np.broadcast_to(variances, (K,))
        elif variances.size == K * d:
            self._variances = variances.reshape(K, d)
        else:
            raise ValueError(f"variances must hold {K} x {d} numbers, got shape {variances.shape}")
        if not np.all(self._variances >= 0.0):
            raise ValueError(f"variances must not be negative, got {float(np.min(self._variances)):g}")
        self._centre = np.exp(self._log_weights) @ self._means  # distances are taken from here: less cancellation

    @classmethod
    def from_covariances(cls, weights, means, covariances):
        """Mixture with (K, d, d) covariances of the events in C order."""
        variances, vectors = zip(*(_eigen(c) for c in covariances))
        return cls(weights, means, np.stack(variances), np.stack(vectors))

    def denoise(self, x, sigma):
        """D(x, sigma) = sum_k r_k m_k, (O4); isotropic components by (O5). x (J, *event), sigma >= 0, D(x, 0) = x."""
        return x if _noise_level(sigma) == 0.0 else self._evaluate(x, float(sigma), None)[0]

    def denoise_vjp(self, x, sigma, v):
        """(D, J_D^T v) with J_D = Cov[x0 | x]/sigma^2, symmetric and positive semi-definite, (O6); v (J, *event)."""
        return (x, v) if _noise_level(sigma) == 0.0 else self._evaluate(x, float(sigma), v)

    def sample(self, rng, count):
        """``count`` draws, numpy float64 (count, *event)."""
        k = rng.choice(len(self._means), size=count, p=np.exp(self._log_weights))
        white = rng.standard_normal((count, self._means.shape[1]))
        deviation = np.sqrt(self._variances[k, None] if self._isotropic else self._variances[k]) * white
        if self._modes is not None:
            deviation = (deviation[:, None, :] @ self._modes[k])[:, 0, :]
        return (self._means[k] + deviation).reshape(count, *self.event_shape)

    def to_onnx(self, path, metadata=None, vjp=False, storage="float64"):
        """Write the denoiser, or (D, J_D^T v), as a prior file; arguments of :meth:`GaussianPrior.to_onnx`."""
        graph = _Graph(self._means.shape[1], vjp, storage)
        outputs = (self._isotropic_graph if self._isotropic else self._general_graph)(graph)
        facts = {"parametrisation": "exact Gaussian-mixture denoiser, (O4)", **(metadata or {})}
        graph.save(path, outputs, self.event_shape, facts)

    def _evaluate(self, x, sigma, v):
        xp, flat_x = _flat(x, self.event_shape, "x")
        flat_v = None if v is None else _flat(v, self.event_shape, "v")[1]
        outputs = (self._isotropic_arrays if self._isotropic else self._general_arrays)(xp, flat_x, sigma**2, flat_v)
        return tuple(xp.reshape(out, x.shape) for out in outputs)

    def _isotropic_arrays(self, xp, x, s2, v):
        variances = self._variances + s2  # (K,), v_k of (O4)
        v_0 = float(np.max(variances))  # a factor common to all components drops out of the softmax
        means = self._means - self._centre
        d = x.shape[1]
        constant = self._log_weights - 0.5 * d * np.log(variances / v_0) - 0.5 * np.sum(means**2, axis=1) / variances
        centre, mu = like(self._centre, x), like(means, x)  # (d,), (K, d)
        z = x - centre
        log_r = (like(constant, x) + (z @ mu.T) / like(variances, x)
                 - 0.5 * xp.sum(z * z, axis=1, keepdims=True) * like(1.0 / variances - 1.0 / v_0, x))
        r = _softmax(xp, log_r, axis=1)  # (J, K)
        g, h = like(self._variances / variances, x), like(s2 / variances, x)  # g_k, 1 - g_k of (O5)
        shrink = xp.sum(r * g, axis=1, keepdims=True)
        offset = shrink * z + (r * h) @ mu  # D - centre
        if v is None:
            return (centre + offset,)
        zv, ov = (xp.sum(a * v, axis=1, keepdims=True) for a in (z, offset))
        rs = r * (g * zv + h * (v @ mu.T) - ov) / s2  # r_k (m_k - D).v / sigma^2
        vjp = (shrink * v + xp.sum(rs * g, axis=1, keepdims=True) * z + (rs * h) @ mu
               - xp.sum(rs, axis=1, keepdims=True) * offset)
        return centre + offset, vjp

    def _general_arrays(self, xp, x, s2, v):
        variances = self._variances + s2  # (K, d), eigenvalues of v_k
        constant = self._log_weights - 0.5 * np.sum(np.log(variances), axis=1)
        mu, gain = like(self._means, x)[:, None, :], like(self._variances / variances, x)[:, None, :]
        modes = None if self._modes is None else like(self._modes, x)

        def into(a):  # (K, J, d) into the eigenbasis of every component
            return a if modes is None else a @ modes.mT

        def out_of(a):
            return a if modes is None else a @ modes

        z = into(x[None, :, :] - mu)
        log_r = like(constant, x)[:, None] - 0.5 * xp.sum(z * z / like(variances, x)[:, None, :], axis=2)
        r = _softmax(xp, log_r, axis=0)[:, :, None]  # (K, J, 1)
        m = mu + out_of(gain * z)
        denoised = xp.sum(r * m, axis=0)
        if v is None:
            return (denoised,)
        spread = m - denoised[None, :, :]
        along = xp.sum(spread * v[None, :, :], axis=2, keepdims=True) / s2
        inner = out_of(gain * into(v))
        return denoised, xp.sum(r * (inner + spread * along), axis=0)

    def _isotropic_graph(self, graph):
        means = graph.as_stored(self._means - self._centre)
        centre, mu, t2 = graph.table(self._centre), graph.table(means), graph.table(self._variances)
        d = means.shape[1]
        z = graph.sub(graph.x, centre)
        variances = graph.add(t2, graph.sigma2)  # (J, K)
        cross = graph.mul(graph.table(-2.0), graph.matmul_T(z, mu))
        square = graph.add(graph.add(graph.sum(graph.mul(z, z)), cross), graph.table(np.sum(means**2, axis=1)))
        penalty = graph.add(graph.mul(graph.table(d), graph.log(variances)), graph.div(square, variances))
        r = graph.softmax(graph.add(graph.table(self._log_weights), graph.mul(graph.table(-0.5), penalty)), axis=1)
        rg, rh = graph.mul(r, graph.div(t2, variances)), graph.mul(r, graph.div(graph.sigma2, variances))
        shrink = graph.sum(rg)
        offset = graph.add(graph.mul(shrink, z), graph.matmul(rh, mu))
        denoised = graph.add(centre, offset)
        if graph.v is None:
            return [denoised]
        zv, ov = graph.sum(graph.mul(z, graph.v)), graph.sum(graph.mul(offset, graph.v))
        m_v = graph.div(graph.add(graph.mul(t2, zv), graph.mul(graph.sigma2, graph.matmul_T(graph.v, mu))), variances)
        s = graph.div(graph.sub(m_v, ov), graph.sigma2)
        along = graph.add(graph.mul(graph.sum(graph.mul(rg, s)), z), graph.matmul(graph.mul(rh, s), mu))
        centred = graph.sub(along, graph.mul(graph.sum(graph.mul(r, s)), offset))
        return [denoised, graph.add(graph.mul(shrink, graph.v), centred)]

    def _general_graph(self, graph):
        mu, l = graph.table(self._means[:, None, :]), graph.table(self._variances[:, None, :])
        modes = modes_T = None
        if self._modes is not None:
            modes, modes_T = graph.table(self._modes), graph.table(np.swapaxes(self._modes, 1, 2))
        variances = graph.add(l, graph.sigma2)  # (K, J, d)
        gain = graph.div(l, variances)

        def into(a):
            return a if modes is None else graph.matmul(a, modes_T)

        def out_of(a):
            return a if modes is None else graph.matmul(a, modes)

        z = into(graph.sub(graph.x, mu))
        penalty = graph.add(graph.sum(graph.log(variances), 2), graph.sum(graph.div(graph.mul(z, z), variances), 2))
        log_weights = graph.table(self._log_weights[:, None, None])
        r = graph.softmax(graph.add(log_weights, graph.mul(graph.table(-0.5), penalty)), axis=0)
        m = graph.add(mu, out_of(graph.mul(gain, z)))
        denoised = graph.sum(graph.mul(r, m), 0, keep=0)
        if graph.v is None:
            return [denoised]
        spread = graph.sub(m, denoised)
        along = graph.div(graph.sum(graph.mul(spread, graph.v), 2), graph.sigma2)
        inner = out_of(graph.mul(gain, into(graph.v)))
        return [denoised, graph.sum(graph.mul(r, graph.add(inner, graph.mul(spread, along))), 0, keep=0)]


class _Graph:
    """An ONNX graph under construction: float64 values by name; x and v as (J, d), sigma^2 as (J, 1)."""

    def __init__(self, d, vjp, storage):
        if storage not in ("float64", "float32"):
            raise ValueError(f'storage must be "float64" or "float32", got {storage!r}')
        import onnx

        self._onnx, self._storage = onnx, np.dtype(storage)
        self._nodes, self._tables = [], []
        self.x = self._rows("x", (-1, d))
        self.v = self._rows("v", (-1, d)) if vjp else None
        sigma = self._rows("sigma", (-1, 1))
        self.sigma2 = self.mul(sigma, sigma)

    def _rows(self, name, shape):
        double = self._op("Cast", name, to=self._onnx.TensorProto.DOUBLE)
        return self._op("Reshape", double, self._constant(np.array(shape, dtype=np.int64)))

    def _constant(self, values):
        name = f"t{len(self._tables)}"
        self._tables.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def _op(self, kind, *inputs, output=None, **attributes):
        output = output or f"n{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def as_stored(self, values):
        """Float64 values as the graph will see them; only matrices are worth rounding to a smaller type."""
        values = np.asarray(values, dtype=np.float64)
        return values.astype(self._storage).astype(np.float64) if values.ndim > 1 else values

    def table(self, values):
        values = np.asarray(values, dtype=np.float64)
        if values.ndim < 2 or self._storage == np.float64:
            return self._constant(values)
        return self._op("Cast", self._constant(values.astype(self._storage)), to=self._onnx.TensorProto.DOUBLE)

    def add(self, a, b):
        return self._op("Add", a, b)

    def sub(self, a, b):
        return self._op("Sub", a, b)

    def mul(self, a, b):
        return self._op("Mul", a, b)

    def div(self, a, b):
        return self._op("Div", a, b)

    def matmul(self, a, b):
        return self._op("MatMul", a, b)

    def matmul_T(self, a, b):
        return self._op("Gemm", a, b, transB=1)

    def log(self, a):
        return self._op("Log", a)

    def sum(self, a, axis=1, keep=1):
        return self._op("ReduceSum", a, self._constant(np.array([axis], dtype=np.int64)), keepdims=keep)

    def softmax(self, a, axis):
        return self._op("Softmax", a, axis=axis)

    def save(self, path, outputs, event_shape, metadata):
        onnx, shape = self._onnx, model_shape(event_shape)
        facts = {"sigma_min": 1e-3, "sigma_max": 1e3, **metadata, "event_shape": event_shape}
        to_event = self._constant(np.array((-1, *shape), dtype=np.int64))
        names = ("denoised", "vjp")[: len(outputs)]
        for name, out in zip(names, outputs):
            self._op("Cast", self._op("Reshape", out, to_event), output=name, to=onnx.TensorProto.FLOAT)

        def port(name):
            axes = ["n"] if name == "sigma" else ["n", *shape]
            return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)

        ports = ["x", "sigma"] if self.v is None else ["x", "sigma", "v"]
        inputs, outputs = [port(n) for n in ports], [port(n) for n in names]
        graph = onnx.helper.make_graph(self._nodes, "prior", inputs, outputs, self._tables)
        opset = onnx.helper.make_opsetid("", OPSET)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="onnx_priors")
        onnx.helper.set_model_props(model, encode_metadata(facts))
        onnx.checker.check_model(model)
        Path(os.fspath(path)).write_bytes(model.SerializeToString())


def _noise_level(sigma):
    sigma = float(sigma)
    if not 0.0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and not negative, got {sigma}")
    return sigma


def _flat(x, event_shape, name):
    """Namespace and (J, d) form of an array (J, *event)."""
    xp = array_namespace(x)
    require_real(x, name)
    if tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(f"{name} must have shape (J, {', '.join(map(str, event_shape))}), got {tuple(x.shape)}")
    return xp, xp.reshape(x, (x.shape[0], math.prod(event_shape)))


def _softmax(xp, a, axis):
    e = xp.exp(a - xp.max(a, axis=axis, keepdims=True))
    return e / xp.sum(e, axis=axis, keepdims=True)


def _eigen(covariance):
    """Eigenvalues and eigenvectors (as rows) of a covariance; rounding below zero is cut off, more is refused."""
    covariance = np.asarray(covariance, dtype=np.float64)
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    if values[0] < -1e-10 * max(values[-1], 0.0):
        raise ValueError(f"covariance must be positive semi-definite, got an eigenvalue {values[0]:g}")
    return np.maximum(values, 0.0), vectors.T


def _orthonormal(modes, d, full=False):
    """Modes (r, d), checked."""
    if modes.shape[1] != d or len(modes) > d or (full and len(modes) != d):
        raise ValueError(f"modes must be {'' if full else 'at most '}{d} vectors of size {d}, got shape {modes.shape}")
    if not np.allclose(modes @ modes.T, np.eye(len(modes)), atol=1e-6):
        raise ValueError("modes must be orthonormal")
    return modes

"""Gaussian mixtures as priors: the denoiser is a closed form, whatever the number of components, (O4)-(O6).

With all training points as means and one small width it is the exact denoiser of the smoothed data. Array functions
compute in the dtype of x, on its device, in any array-API namespace; ``to_onnx`` writes a prior file.
"""

from __future__ import annotations

import numpy as np

from onnx_priors._xp import flat_rows, like, noise_level
from onnx_priors.eigenbasis import eigen, orthonormal
from onnx_priors.gaussian import GaussianPrior
from onnx_priors.graph import Graph
from onnx_priors.metadata import model_shape


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
        model_shape(self.event_shape)
        self._means = means.reshape(K, -1)
        d = self._means.shape[1]
        if weights.shape != (K,) or not np.all(weights > 0.0):
            raise ValueError(f"weights: got shape {weights.shape}, expected {K} positive numbers, one per mean")
        self._log_weights = np.log(weights / weights.sum())
        self._modes = None
        if modes is not None:
            self._modes = np.stack([orthonormal(np.reshape(q, (len(q), -1)), d, full=True) for q in modes])
        self._isotropic = modes is None and variances.ndim <= 1
        if self._isotropic:
            self._variances = np.broadcast_to(variances, (K,))
        elif variances.size == K * d:
            self._variances = variances.reshape(K, d)
        else:
            raise ValueError(f"variances: got shape {variances.shape}, expected {K} x {d} numbers")
        if not np.all(self._variances >= 0.0):
            raise ValueError(f"variances: got {float(np.min(self._variances)):g}, expected numbers >= 0")
        self._centre = np.exp(self._log_weights) @ self._means  # distances are taken from here: less cancellation

    @classmethod
    def from_covariances(cls, weights, means, covariances):
        """Mixture with (K, d, d) covariances of the events in C order."""
        variances, vectors = zip(*(eigen(c) for c in covariances))
        return cls(weights, means, np.stack(variances), np.stack(vectors))

    def denoise(self, x, sigma):
        """D(x, sigma) = sum_k r_k m_k, (O4); isotropic components by (O5). x (J, *event), sigma >= 0, D(x, 0) = x."""
        return x if noise_level(sigma) == 0.0 else self._evaluate(x, float(sigma), None)[0]

    def denoise_vjp(self, x, sigma, v):
        """(D, J_D^T v) with J_D = Cov[x0 | x]/sigma^2, symmetric and positive semi-definite, (O6); v (J, *event)."""
        return (x, v) if noise_level(sigma) == 0.0 else self._evaluate(x, float(sigma), v)

    def sample(self, rng, count):
        """``count`` draws, numpy float64 (count, *event)."""
        k = rng.choice(len(self._means), size=count, p=np.exp(self._log_weights))
        white = rng.standard_normal((count, self._means.shape[1]))
        deviation = np.sqrt(self._variances[k, None] if self._isotropic else self._variances[k]) * white
        if self._modes is not None:
            deviation = (deviation[:, None, :] @ self._modes[k])[:, 0, :]
        return (self._means[k] + deviation).reshape(count, *self.event_shape)

    def to_onnx(self, path, metadata=None, vjp=False, storage="float64"):
        """Write the denoiser, or (D, J_D^T v), as a prior file; arguments of ``GaussianPrior.to_onnx``."""
        graph = Graph(self._means.shape[1], vjp, storage)
        outputs = self.graph_outputs(graph)
        facts = {"parametrisation": "exact Gaussian-mixture denoiser, (O4)", **(metadata or {})}
        graph.save(path, outputs, self.event_shape, facts)

    def graph_outputs(self, graph):
        """The values [D] or [D, J_D^T v] for the rows x and v of the graph."""
        return (self._isotropic_graph if self._isotropic else self._general_graph)(graph)

    def _evaluate(self, x, sigma, v):
        xp, flat_x = flat_rows(x, self.event_shape, "x")
        flat_v = None if v is None else flat_rows(v, self.event_shape, "v")[1]
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


class PrincipalMixture:
    """A Gaussian mixture of the first principal coordinates of a Gaussian, whose other directions stay as they are.

    x0 = mean + V a0 + e, V the first r modes, a0 of the mixture, e the Gaussian's part orthogonal to V: for events with
    more entries than a full covariance per component could describe. D(x, s) = D_e(x, s) + V D_a(V^T (x - mean), s).

    Parameters
    ----------
    principal : gaussian.Principal   mean (*event), modes (d, R), variances (R,), rest
    mixture : MixturePrior           of events (r,), r <= R, in the place of the variances of the first r modes
    """

    def __init__(self, principal, mixture):
        r = mixture.event_shape[0]
        variances = np.where(np.arange(len(principal.variances)) < r, 0.0, principal.variances)
        self._others = GaussianPrior.from_principal(principal._replace(variances=variances))
        self.event_shape, self.mixture = principal.mean.shape, mixture
        self._mean, self._rows = principal.mean.reshape(-1), principal.modes.T[:r]

    def denoise(self, x, sigma):
        """D(x, sigma) of the class's formula.  x (J, *event), sigma >= 0; D(x, 0) = x."""
        if noise_level(sigma) == 0.0:
            return x
        xp, flat = flat_rows(x, self.event_shape, "x")
        rows = like(self._rows, x)
        inside = self.mixture.denoise((flat - like(self._mean, x)) @ rows.T, sigma)
        return self._others.denoise(x, sigma) + xp.reshape(inside @ rows, x.shape)

    def denoise_vjp(self, x, sigma, v):
        """(D, J_D^T v), J_D = J_e + V J_a V^T, symmetric.  v (J, *event)."""
        if noise_level(sigma) == 0.0:
            return x, v
        xp, flat = flat_rows(x, self.event_shape, "x")
        rows = like(self._rows, x)
        inside = self.mixture.denoise_vjp((flat - like(self._mean, x)) @ rows.T, sigma,
                                          flat_rows(v, self.event_shape, "v")[1] @ rows.T)
        return tuple(outside + xp.reshape(a @ rows, x.shape)
                     for outside, a in zip(self._others.denoise_vjp(x, sigma, v), inside))

    def sample(self, rng, count):
        """``count`` draws, numpy float64 (count, *event)."""
        inside = self.mixture.sample(rng, count) @ self._rows
        return self._others.sample(rng, count) + inside.reshape(count, *self.event_shape)

    def to_onnx(self, path, metadata=None, vjp=False, storage="float64"):
        """Write the denoiser, or (D, J_D^T v), as a prior file; arguments of ``GaussianPrior.to_onnx``."""
        graph = Graph(self._mean.size, vjp, storage)
        shrink, mean, rows = self._others.onnx_shrinkage(graph), graph.table(self._mean), graph.table(self._rows)
        centred = [graph.sub(graph.x, mean), *([graph.v] if vjp else [])]
        outside = [shrink(z) for z in centred]
        graph.x, graph.v = [*(graph.matmul_T(z, rows) for z in centred), None][:2]
        inside = self.mixture.graph_outputs(graph)
        outputs = [graph.add(a, graph.matmul(b, rows)) for a, b in zip(outside, inside)]
        outputs[0] = graph.add(outputs[0], mean)
        facts = {"parametrisation": "Gaussian mixture of the leading principal components, the others Gaussian, (O4)",
                 **(metadata or {})}
        graph.save(path, outputs, self.event_shape, facts)


def _softmax(xp, a, axis):
    e = xp.exp(a - xp.max(a, axis=axis, keepdims=True))
    return e / xp.sum(e, axis=axis, keepdims=True)

"""The Gaussian prior N(mu, C), the only one of the project: everything about it is a closed form.

With x = x0 + sigma n, x0 ~ N(mu, C) and n ~ N(0, I):

    denoiser        D(x, s) = mu + C (C + s^2)^-1 (x - mu)                                 E[x0 | x], (O1)
    flow            phi(x, s, t) = mu + (C + t^2)^(1/2) (C + s^2)^(-1/2) (x - mu)          probability flow s -> t, (O2)
    Jacobian        J_D = C (C + s^2)^-1, symmetric                                        (O3)

These forms of C share these formulas, each a function of C being a multiplication in the eigenbasis of C:

    GaussianPrior(mean, variances)                    diagonal C
    GaussianPrior(mean, variances, modes, rest)       principal components q_k and an isotropic rest
    GaussianPrior.from_covariance(mean, C)            a dense matrix C, by its eigenvectors
    GaussianPrior.stationary(mean, spectrum)          C invariant under shifts of a periodic grid, by its Fourier modes
    GaussianPrior.cosines(mean, variances)            patches of a stationary field without a period, by their cosines

Array functions compute in the dtype of x, on its device, in any array-API namespace. ``to_onnx`` writes a prior file.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from onnx_priors._xp import flat_rows, like, noise_level
from onnx_priors.eigenbasis import Cosines, Diagonal, Modes, Waves, eigen, orthonormal, ratio
from onnx_priors.graph import Graph
from onnx_priors.metadata import model_shape


class Principal(NamedTuple):
    """N(mean, V diag(variances) V^T + rest (I - V V^T)): mean (*event), modes V (d, r), variances (r,), falling."""

    mean: np.ndarray
    modes: np.ndarray
    variances: np.ndarray
    rest: float


class GaussianPrior:
    """N(mean, C) with C = sum_k variances[k] q_k q_k^T + rest (I - sum_k q_k q_k^T), q_k orthonormal.

    Parameters
    ----------
    mean : array (*event)
    variances : float or array   with ``modes``: (r,), eigenvalues of C; without: scalar or (*event), diagonal of C
    modes : array (r, *event) or None   eigenvectors q_k
    rest : float                 variance of all directions orthogonal to the modes (without effect if r = d)

    Attributes
    ----------
    mean : (*event) float64 on the host;  event_shape : tuple
    total_variance : float, the trace of C;  std : float, the root of the mean variance per entry of an event

    All on the host. Raises ValueError for negative or non-finite numbers, other shapes, modes that are not orthonormal.
    """

    def __init__(self, mean, variances, modes=None, rest=0.0):
        mean = np.asarray(mean, dtype=np.float64)
        variances = np.asarray(variances, dtype=np.float64)
        if modes is None:
            if variances.ndim and variances.size != mean.size:
                raise ValueError(f"variances: got shape {variances.shape}, expected a number or shape {mean.shape}")
            flat = variances.reshape(-1) if variances.ndim else variances
            self._hold(mean, Diagonal(np.broadcast_to(flat, mean.size)))
        else:
            modes = orthonormal(np.asarray(modes, dtype=np.float64).reshape(len(modes), -1), mean.size)
            if variances.shape != (len(modes),):
                raise ValueError(f"variances: got shape {variances.shape}, expected ({len(modes)},), one per mode")
            self._hold(mean, Modes(modes, np.append(variances, float(rest))))

    def _hold(self, mean, basis):
        if not np.all(np.isfinite(mean)):
            raise ValueError("mean: got a value that is not finite, expected numbers")
        if not np.all((basis.variances >= 0.0) & np.isfinite(basis.variances)):
            raise ValueError(f"variances: got {np.min(basis.variances):g} to {np.max(basis.variances):g}, expected "
                             "finite numbers >= 0")
        self.mean, self.event_shape, self._basis = mean, mean.shape, basis
        model_shape(self.event_shape)
        self.total_variance = float(np.sum(basis.counts * basis.variances))
        self.std = math.sqrt(self.total_variance / mean.size)

    @classmethod
    def from_covariance(cls, mean, covariance):
        """N(mean, covariance) with a (d, d) covariance of the events in C order."""
        covariance = np.asarray(covariance, dtype=np.float64)
        diagonal = np.diag(covariance)
        if np.array_equal(covariance, np.diag(diagonal)):
            return cls(mean, diagonal.reshape(np.shape(mean)))
        variances, vectors = eigen(covariance)
        return cls(mean, variances, vectors.reshape(-1, *np.shape(mean)))

    @classmethod
    def from_principal(cls, principal):
        """The Gaussian of a `Principal` (mean, modes (d, r), variances (r,), rest)."""
        mean, modes, variances, rest = principal
        return cls(mean, variances, modes.T.reshape(-1, *mean.shape), rest)

    @classmethod
    def stationary(cls, mean, spectrum):
        """N(mean, C) on a periodic grid, C invariant under shifts: C = F^-1 diag(spectrum) F, F the Fourier transform.

        mean : (n,) or (m, n);  spectrum : (n//2 + 1,) or (m, n//2 + 1), the eigenvalues of C for the wave numbers of
        ``numpy.fft.rfftn``, equal for k and -k
        """
        mean, spectrum = np.asarray(mean, dtype=np.float64), np.asarray(spectrum, dtype=np.float64)
        wanted = (*mean.shape[:-1], mean.shape[-1] // 2 + 1) if mean.ndim in (1, 2) else "that of a 1-D or 2-D mean"
        if spectrum.shape != wanted:
            raise ValueError(f"spectrum: got shape {spectrum.shape} for a mean of shape {mean.shape}, expected "
                             f"{wanted}")
        prior = object.__new__(cls)
        prior._hold(mean, Waves(mean.shape, spectrum))
        return prior

    @classmethod
    def cosines(cls, mean, variances):
        """N(mean, C), C diagonal in products of cosines (DCT-II) along every axis: variances (*event) by frequency.

        ``mean`` (*event), or one number for all entries.
        """
        variances = np.asarray(variances, dtype=np.float64)
        prior = object.__new__(cls)
        prior._hold(np.broadcast_to(np.asarray(mean, dtype=np.float64), variances.shape).copy(), Cosines(variances))
        return prior

    def denoise(self, x, sigma):
        """D(x, sigma) = mu + C (C + sigma^2)^-1 (x - mu), (O1).  x (J, *event), sigma >= 0; D(x, 0) = x."""
        return x if noise_level(sigma) == 0.0 else self._affine(x, lambda l: ratio(l, float(sigma) ** 2))

    def denoise_vjp(self, x, sigma, v):
        """(D, J_D^T v) with the symmetric J_D = C (C + sigma^2)^-1, (O3).  v (J, *event)."""
        if noise_level(sigma) == 0.0:
            return x, v
        xp, flat = flat_rows(v, self.event_shape, "v")
        pulled = self._basis.multiply(flat, ratio(self._basis.variances, float(sigma) ** 2))
        return self.denoise(x, sigma), xp.reshape(pulled, v.shape)

    def flow(self, x, sigma, sigma_next=0.0):
        """Exact probability flow from level sigma to sigma_next, (O2): modes scale by sqrt((l + t^2)/(l + s^2))."""
        s2, t2 = noise_level(sigma) ** 2, noise_level(sigma_next) ** 2
        if s2 == t2:
            return x
        if s2 == 0.0:
            raise ValueError("sigma: got 0, where modes without variance have left no trace of x, expected a level > 0")
        return self._affine(x, lambda l: np.sqrt((l + t2) / (l + s2)))

    def sample(self, rng, count):
        """``count`` draws, numpy float64 (count, *event); row i depends on the generator and i only."""
        white = rng.standard_normal((count, self.mean.size))
        coloured = self._basis.multiply(white, np.sqrt(self._basis.variances))
        return self.mean + coloured.reshape(count, *self.event_shape)

    def principal(self, modes=None):
        """Leading principal components: `Principal` (mean, modes (d, r), variances (r,), rest).

        modes : how many to keep, all by default; the variance of the others is spread evenly over the rest
        """
        vectors, variances = self._basis.leading(self.mean.size if modes is None else modes)
        left = max(self.total_variance - float(np.sum(variances)), 0.0)
        outside = self.mean.size - len(variances)
        return Principal(self.mean, vectors, variances, left / outside if outside else 0.0)

    def to_onnx(self, path, metadata=None, vjp=False, storage="float64"):
        """Write the denoiser (or with ``vjp`` the pair (D, J_D^T v)) as a prior file.

        ``metadata`` completes or overrides the parametrisation and the sigma range [1e-3, 1e3]. ``storage`` "float32"
        or "float16" makes the file smaller; the arithmetic stays float64.
        """
        graph = Graph(self.mean.size, vjp, storage)
        scale, mean = self.onnx_shrinkage(graph), graph.table(self.mean.reshape(-1))
        denoised = graph.add(mean, scale(graph.sub(graph.x, mean)))
        facts = {"parametrisation": "exact Gaussian denoiser, (O1)", **(metadata or {})}
        graph.save(path, [denoised, scale(graph.v)] if vjp else [denoised], self.event_shape, facts)

    def onnx_shrinkage(self, graph):
        """The linear part of the denoiser in a graph: a function of its rows, z -> C (C + sigma^2)^-1 z."""
        return self._basis.onnx_shrinkage(graph)

    def _affine(self, x, function):
        """mu + f(C) (x - mu), f given as a function of the eigenvalues."""
        xp, flat = flat_rows(x, self.event_shape, "x")
        mean = like(self.mean.reshape(-1), x)
        return xp.reshape(mean + self._basis.multiply(flat - mean, function(self._basis.variances)), x.shape)

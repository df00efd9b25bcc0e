"""The eigenbases in which a covariance C is diagonal: pixels, principal components, Fourier modes, cosines.

Each class holds ``variances``, the eigenvalues of C, and ``counts``, their multiplicities, and offers

    multiply(z, factors)      f(C) z for rows z (J, d), f given by its values ``factors`` on ``variances``
    leading(count)            the eigenvectors (d, r) of the at most ``count`` largest variances, and these (r,)
    onnx_shrinkage(graph)     a function of the graph's rows: z -> C (C + sigma^2)^-1 z
"""

from __future__ import annotations

import numpy as np

from onnx_priors._xp import array_namespace, like


class Diagonal:
    """A covariance that is diagonal in the entries of an event: variances (d,)."""

    def __init__(self, variances):
        self.variances, self.counts = variances, 1

    def multiply(self, z, factors):
        return like(factors, z) * z

    def leading(self, count):
        order = np.argsort(-self.variances, kind="stable")[:count]
        vectors = np.zeros((self.variances.size, order.size))
        vectors[order, np.arange(order.size)] = 1.0
        return vectors, self.variances[order]

    def onnx_shrinkage(self, graph):
        variances = graph.table(self.variances)
        gain = graph.div(variances, graph.add(variances, graph.sigma2))
        return lambda z: graph.mul(gain, z)


class Modes:
    """Orthonormal rows ``modes`` (r, d); the last of the r + 1 variances is that of the d - r directions outside."""

    def __init__(self, modes, variances):
        self.modes, self.variances = modes, variances
        r, d = modes.shape
        self.counts = np.append(np.ones(r), float(d - r))

    def multiply(self, z, factors):
        rest = float(factors[-1]) if self.counts[-1] else 0.0
        modes = like(self.modes, z)
        inside = (like(factors[:-1] - rest, z) * (z @ modes.T)) @ modes
        return inside + rest * z if rest else inside

    def leading(self, count):
        order = np.argsort(-self.variances[:-1], kind="stable")[:count]
        return self.modes[order].T, self.variances[order]

    def onnx_shrinkage(self, graph):
        variances, rest, modes = (graph.table(a) for a in (self.variances[:-1], self.variances[-1], self.modes))
        gain = graph.div(variances, graph.add(variances, graph.sigma2))
        if not self.counts[-1]:
            return lambda z: graph.matmul(graph.mul(gain, graph.matmul_T(z, modes)), modes)
        outside = graph.div(rest, graph.add(rest, graph.sigma2))
        extra = graph.sub(gain, outside)

        def scale(z):
            inside = graph.matmul(graph.mul(extra, graph.matmul_T(z, modes)), modes)
            return graph.add(graph.mul(outside, z), inside)

        return scale


class Waves:
    """Fourier modes of a periodic grid ``shape``; variances by the wave numbers of ``rfftn``."""

    def __init__(self, shape, spectrum):
        self.shape, self.variances = shape, spectrum
        self._waves = np.stack(np.meshgrid(*map(np.arange, spectrum.shape), indexing="ij"), axis=-1)
        sizes = np.array(shape)
        self._opposite = (-self._waves) % sizes
        in_table = self._opposite[..., -1] < spectrum.shape[-1]  # -k is a wave number of rfftn too
        self.counts = np.where(in_table, 1.0, 2.0)
        mirrored = spectrum[tuple(np.moveaxis(np.where(in_table[..., None], self._opposite, self._waves), -1, 0))]
        if not np.allclose(spectrum, mirrored, rtol=1e-6, atol=0.0):
            raise ValueError("spectrum: got different values for the wave numbers k and -k, expected equal ones")

    def multiply(self, z, factors):
        xp, axes = array_namespace(z), tuple(range(1, len(self.shape) + 1))
        waves = xp.fft.rfftn(xp.reshape(z, (-1, *self.shape)), axes=axes) * like(factors, z)
        return xp.reshape(xp.fft.irfftn(waves, s=self.shape, axes=axes), z.shape)

    def leading(self, count):
        """A cosine and a sine for each pair k, -k, a cosine only where they are the same wave."""
        waves, opposite = (a.reshape(-1, len(self.shape)) for a in (self._waves, self._opposite))
        own = np.all(waves == opposite, axis=1)
        code, mirrored = (np.ravel_multi_index(tuple(a.T), self.shape) for a in (waves, opposite))
        first = (self.counts.reshape(-1) == 2.0) | (code <= mirrored)
        use = np.concatenate([np.flatnonzero(first), np.flatnonzero(first & ~own)])
        sine = np.arange(use.size) >= np.sum(first)
        variances = self.variances.reshape(-1)[use]
        order = np.argsort(-variances, kind="stable")[:count]
        points = np.stack(np.meshgrid(*map(np.arange, self.shape), indexing="ij"), axis=-1).reshape(-1, len(self.shape))
        turns = sum((points[:, None, i] * waves[use[order], i]) % n / n for i, n in enumerate(self.shape))
        columns = np.where(sine[order], np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns))
        return columns / np.sqrt(np.sum(columns**2, axis=0)), variances[order]

    def onnx_shrinkage(self, graph):
        """Four small matrix products in place of two Fourier transforms: cos and sin along each axis."""
        m, n = (1, *self.shape)[-2:]
        half = n // 2 + 1

        def turn(size, waves):
            angle = 2 * np.pi * np.outer(np.arange(size), np.arange(waves)) % (2 * np.pi * size) / size
            return np.cos(angle), np.sin(angle)

        (c1, s1), (c2, s2) = turn(m, m), turn(n, half)
        columns = graph.table(np.hstack([c2, s2]))  # (n, 2 half): the cosine and the sine sums along a row
        rows = graph.table(np.block([[c1, -s1], [s1, c1]]))
        rows_T = graph.table(np.block([[c1, s1], [-s1, c1]]))
        back = graph.table(np.vstack([c2.T, s2.T]))
        variances, counts = (np.tile(a.reshape(m, half), (2, 1)) for a in (self.variances, self.counts))
        variances = graph.table(variances[None])
        gain = graph.div(variances, graph.add(variances, graph.reshape(graph.sigma2, (-1, 1, 1))))
        gain = graph.mul(gain, graph.table(counts[None] / (m * n)))

        def scale(z):
            sums = graph.matmul(graph.reshape(z, (-1, m, n)), columns)
            sums = graph.concat(graph.slice(sums, 0, half, 2), graph.slice(sums, half, 2 * half, 2), axis=1)
            sums = graph.matmul(rows_T, graph.mul(gain, graph.matmul(rows, sums)))
            sums = graph.concat(graph.slice(sums, 0, m, 1), graph.slice(sums, m, 2 * m, 1), axis=2)
            return graph.reshape(graph.matmul(sums, back), (-1, m * n))

        return scale


class Cosines:
    """Products of cosines (DCT-II) along every axis of an event: variances (*event) by their frequencies."""

    def __init__(self, variances):
        self.variances, self.counts = variances, 1
        self._bases = [cosine_basis(n) for n in variances.shape]

    def multiply(self, z, factors):
        xp = array_namespace(z)
        y = self._turned(xp.reshape(z, (-1, *self.variances.shape)), 0)
        return xp.reshape(self._turned(y * like(factors, z), 1), z.shape)

    def _turned(self, y, back):
        """The cosine transform along every axis but the first, or its transpose ``back``."""
        xp = array_namespace(y)
        for axis, basis in enumerate(self._bases, start=1):
            basis = like(basis if back else basis.T, y)
            y = xp.moveaxis(xp.matmul(xp.moveaxis(y, axis, -1), basis), -1, axis)
        return y

    def leading(self, count):
        order = np.argsort(-self.variances.reshape(-1), kind="stable")[:count]
        vectors = np.ones((order.size, 1))
        for basis, k in zip(self._bases, np.unravel_index(order, self.variances.shape)):
            vectors = (vectors[:, :, None] * basis[k][:, None, :]).reshape(order.size, -1)
        return vectors.T, self.variances.reshape(-1)[order]

    def onnx_shrinkage(self, graph):
        """A small matrix product along the last axis, and one for all the axes before it."""
        shape = self.variances.shape
        first = np.ones((1, 1))
        for basis in self._bases[:-1]:
            first = np.kron(first, basis)
        rows, rows_T, last, last_T = (graph.table(a) for a in (first, first.T, self._bases[-1], self._bases[-1].T))
        variances = graph.table(self.variances.reshape(1, -1, shape[-1]))
        gain = graph.div(variances, graph.add(variances, graph.reshape(graph.sigma2, (-1, 1, 1))))

        def scale(z):
            y = graph.matmul(rows, graph.matmul(graph.reshape(z, (-1, first.shape[0], shape[-1])), last_T))
            y = graph.matmul(rows_T, graph.matmul(graph.mul(gain, y), last))
            return graph.reshape(y, (-1, self.variances.size))

        return scale


def cosine_basis(n):
    """Orthogonal DCT-II matrix (n, n): row k is cos(pi k (j + 1/2)/n), normalised."""
    k = np.arange(n)[:, None]
    return np.cos(np.pi * k * (np.arange(n) + 0.5) / n) * np.sqrt(np.where(k == 0, 1.0, 2.0) / n)


def ratio(variances, s2):
    """l/(l + s^2), which is 0 for l = 0 at every level."""
    variances = np.asarray(variances)
    return np.divide(variances, variances + s2, out=np.zeros_like(variances), where=variances > 0.0)


def eigen(covariance):
    """Eigenvalues and eigenvectors (as rows) of a covariance; rounding below zero is cut off, more is refused."""
    covariance = np.asarray(covariance, dtype=np.float64)
    if not np.all(np.isfinite(covariance)):
        raise ValueError("covariance: got a value that is not finite, expected numbers")
    values, vectors = np.linalg.eigh(0.5 * (covariance + covariance.T))
    if values[0] < -1e-10 * max(values[-1], 0.0):
        raise ValueError(f"covariance: got an eigenvalue {values[0]:g}, expected a positive semi-definite matrix")
    return np.maximum(values, 0.0), vectors.T


def orthonormal(modes, d, full=False):
    """Modes (r, d), checked; with ``full`` r must be d."""
    if modes.shape[1] != d or len(modes) > d or (full and len(modes) != d):
        raise ValueError(f"modes: got shape {modes.shape}, expected {'' if full else 'at most '}{d} vectors of size "
                         f"{d}")
    if not np.allclose(modes @ modes.T, np.eye(len(modes)), atol=1e-6):
        raise ValueError("modes: got vectors that are not orthonormal, expected orthonormal ones")
    return modes

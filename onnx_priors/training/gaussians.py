"""The Gaussian part W of a trained prior as a torch module: the exact denoiser (O1), each row at its own noise.

Each class offers forward(x, sigma), ``variance(sigma)``, the posterior variance per pixel, ``mean`` and ``deviation``.
Everything here can be exported to ONNX, its vector-Jacobian product included. Shapes: x (J, C, H, W), sigma (J,).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn


def column(sigma):
    return sigma.reshape(-1, 1, 1, 1)


class PrincipalGaussian(nn.Module):
    """Gaussian of square images whose distribution is invariant under the eight symmetries of the square.

    Reflection symmetry makes the four parity classes (even or odd in rows and in columns) uncorrelated: an image is
    four quarter-size vectors, each with its own principal components, at a quarter of the usual storage and cost.
    D(x, sigma) = mu + sum_k l_k/(l_k + sigma^2) q_k q_k^T (x - mu), (O1), with the rest of each class isotropic.

    mean : (H, H), components : (4, (H/2)^2, n), variances : (4, n), rest : (4,) variance per discarded direction.
    """

    def __init__(self, mean, components, variances, rest):
        super().__init__()
        half = mean.shape[-1] // 2
        eye = np.eye(half)
        parity = np.block([[eye, eye[::-1]], [eye, -eye[::-1]]]) * math.sqrt(0.5)
        for name, value in (("mean", mean), ("components", components), ("variances", variances[:, None, :]),
                            ("rest", rest[:, None, None]), ("parity", parity), ("parity_t", parity.T)):
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        self.half = half
        total = float(variances.sum() + (rest * (half * half - variances.shape[1])).sum())
        self.deviation = math.sqrt(total / (4 * half * half))

    @classmethod
    def fit(cls, images, components, chunk=2000):
        """Moments of images (N, H, H), prior units, averaged over the symmetries; ``components`` per parity class."""
        size = images.shape[-1]
        half = size // 2
        total, second = np.zeros((half, half)), np.zeros((4, half * half, half * half))
        for start in range(0, len(images), chunk):
            y = _parity_classes(np.asarray(images[start:start + chunk], dtype=np.float32))
            total += y[0].sum(axis=0, dtype=np.float64).reshape(half, half)
            for k in range(4):
                second[k] += y[k].T @ y[k]
        total = 0.5 * (total + total.T) / len(images)
        turned = second.reshape(4, half, half, half, half).transpose(0, 2, 1, 4, 3).reshape(second.shape)
        second = 0.5 * (second + turned[[0, 2, 1, 3]]) / len(images)
        second[0] -= np.outer(total, total)
        variances, vectors = np.linalg.eigh(second)
        variances, vectors = np.maximum(variances[:, ::-1], 0.0), vectors[:, :, ::-1]
        left = half * half - components
        rest = variances[:, components:].sum(axis=1) / max(left, 1)
        mean = np.block([[total, total[:, ::-1]], [total[::-1], total[::-1, ::-1]]]) * 0.5
        return cls(mean, vectors[:, :, :components], variances[:, :components], rest)

    def forward(self, x, sigma):
        half, s2 = self.half, (sigma * sigma).reshape(1, -1, 1)
        y = self.parity @ (x - self.mean) @ self.parity_t
        y = y.reshape(-1, 2, half, 2, half).permute(1, 3, 0, 2, 4).reshape(4, -1, half * half)
        keep = self.rest / (self.rest + s2)
        gain = self.variances / (self.variances + s2) - keep
        y = keep * y + (gain * (y @ self.components)) @ self.components.transpose(1, 2)
        y = y.reshape(2, 2, -1, half, half).permute(2, 0, 3, 1, 4).reshape(-1, 1, 2 * half, 2 * half)
        return self.mean + self.parity_t @ y @ self.parity

    def variance(self, sigma):
        """Posterior variance per pixel, (J,): trace of C (C + sigma^2)^-1 sigma^2 over the number of pixels."""
        s2 = (sigma * sigma).reshape(1, -1, 1)
        left = self.half**2 - self.variances.shape[-1]
        kept = (self.variances * s2 / (self.variances + s2)).sum((0, 2))
        return (kept + left * (self.rest * s2 / (self.rest + s2)).sum((0, 2))) / (4 * self.half**2)


def _parity_classes(images):
    """(N, H, H) -> (4, N, (H/2)^2): even-even, even-odd, odd-even, odd-odd in (rows, columns), orthonormal."""
    half = images.shape[-1] // 2
    top, bottom = images[:, :half], images[:, :half - 1:-1]
    classes = []
    for rows in (top + bottom, top - bottom):
        left, right = rows[:, :, :half], rows[:, :, :half - 1:-1]
        classes += [(left + right) * 0.5, (left - right) * 0.5]
    return np.stack(classes).reshape(4, len(images), half * half)


class FourierGaussian(nn.Module):
    """Gaussian of periodic fields: a given mean and a covariance that is diagonal in products of cosines and sines.

    D(x, sigma) = mu + B^T [l/(l + sigma^2) * B (x - mu)], (O1), B the real orthogonal Fourier matrix of both axes: four
    small matrix products, no FFT. Exact for stationary fields with P(k, l) = P(k, -l), else the nearest such Gaussian.

    mean : (C, H, W), variances : (C, H, W) in the order of the basis (constant, cos 1, sin 1, cos 2, ..., cos n/2).
    """

    def __init__(self, mean, variances):
        super().__init__()
        rows, columns = fourier_basis(mean.shape[-2]), fourier_basis(mean.shape[-1])
        for name, value in (("mean", mean), ("variances", variances), ("rows", rows), ("rows_t", rows.T),
                            ("columns", columns), ("columns_t", columns.T)):
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        self.deviation = math.sqrt(float(variances.mean()))

    @classmethod
    def fit(cls, images, mean=0.0):
        """Power spectrum of fields (N, C, H, W), prior units, around ``mean``, cosines and sines pooled."""
        mean = np.broadcast_to(np.asarray(mean, dtype=np.float64), images.shape[1:])
        rows, columns = fourier_basis(images.shape[-2]), fourier_basis(images.shape[-1])
        power = np.zeros(images.shape[1:])
        for start in range(0, len(images), 1000):
            y = rows @ (np.asarray(images[start:start + 1000], dtype=np.float64) - mean) @ columns.T
            power += (y * y).sum(axis=0)
        power /= len(images)
        for axis in (-2, -1):
            power = np.moveaxis(power, axis, 0)
            pairs = power[1:-1].reshape(-1, 2, *power.shape[1:]).mean(axis=1).repeat(2, axis=0)
            power = np.moveaxis(np.concatenate([power[:1], pairs, power[-1:]]), 0, axis)
        return cls(mean, power)

    def forward(self, x, sigma):
        y = self.rows @ (x - self.mean) @ self.columns_t
        y = y * (self.variances / (self.variances + column(sigma) ** 2))
        return self.mean + self.rows_t @ y @ self.columns

    def variance(self, sigma):
        """Posterior variance per pixel, (J,)."""
        s2 = column(sigma) ** 2
        return (self.variances * s2 / (self.variances + s2)).mean((1, 2, 3))


def fourier_basis(n):
    """Real orthogonal Fourier matrix (n, n), n even: rows constant, cos 1, sin 1, ..., cos n/2."""
    j = np.arange(n)
    rows = [np.full(n, 1 / math.sqrt(n))]
    for k in range(1, n // 2):
        rows += [math.sqrt(2 / n) * np.cos(2 * np.pi * k * j / n), math.sqrt(2 / n) * np.sin(2 * np.pi * k * j / n)]
    return np.stack([*rows, np.cos(np.pi * j) / math.sqrt(n)])


class ModesGaussian(nn.Module):
    """Gaussian of any images: principal components and an isotropic rest.

    principal : gaussian.Principal of images (C, H, W): mean, modes (d, r), variances (r,), rest
    """

    def __init__(self, principal):
        super().__init__()
        mean, modes, variances, rest = principal
        for name, value in (("mean", mean), ("modes", modes), ("modes_t", modes.T), ("variances", variances)):
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        self.rest, self.outside = float(rest), mean.size - len(variances)
        self.deviation = math.sqrt((float(variances.sum()) + self.outside * self.rest) / mean.size)

    def forward(self, x, sigma):
        s2 = (sigma * sigma).reshape(-1, 1)
        z = (x - self.mean).reshape(-1, self.modes.shape[0])
        keep = self.rest / (self.rest + s2)
        gain = self.variances / (self.variances + s2) - keep
        z = keep * z + (gain * (z @ self.modes)) @ self.modes_t
        return self.mean + z.reshape(-1, *self.mean.shape)

    def variance(self, sigma):
        """Posterior variance per pixel, (J,)."""
        s2 = (sigma * sigma).reshape(-1, 1)
        kept = (self.variances * s2 / (self.variances + s2)).sum(1)
        return (kept + self.outside * (self.rest * s2 / (self.rest + s2)).sum(1)) / self.modes.shape[0]

"""What a measurement means: the residual that drives the correction, and the misfit that judges it.

``residual(g)`` is the half-gradient of ``misfit(g)`` with respect to the predicted observation g; for Gaussian noise
Gamma^-1 (g - y). Only this derivative, in observation space, is ever needed: never one of the forward model.
"""

from __future__ import annotations

import math

import numpy as np

from ._xp import array_namespace, like


class Gaussian:
    """y = G(x) + n, n ~ N(0, Gamma).

    misfit(g) = ||g - y||_Gamma^2 = (g - y)' Gamma^-1 (g - y),    residual(g) = Gamma^-1 (g - y)

    Parameters
    ----------
    y : array (*obs)      data, on the host; flattened to (m,)
    noise : float, array (m,) or (m, m)   standard deviation(s) > 0, or a covariance Gamma, in units of y.
                          ``noise=1.0`` is the un-weighted residual g - y of the official base class.

    Raises ValueError if y or noise is not finite, the noise is not positive, or the shapes do not fit.
    """

    def __init__(self, y, noise=1.0):
        self.y = np.asarray(y, dtype=np.float64).reshape(-1)
        m = self.y.shape[0]
        noise = np.asarray(noise, dtype=np.float64)
        if not np.all(np.isfinite(self.y)):
            raise ValueError(f"observation: got {np.sum(~np.isfinite(self.y))} non-finite of {m} values, "
                             "expected finite numbers")
        if noise.ndim == 2 and noise.shape == (m, m):
            if not np.allclose(noise, noise.T, rtol=1e-10, atol=0.0):
                raise ValueError("noise: got a covariance that is not symmetric, expected Gamma = Gamma'")
            try:
                self._whitener = np.linalg.inv(np.linalg.cholesky(noise))  # L^-1, Gamma = L L'
            except np.linalg.LinAlgError:
                raise ValueError("noise: got a covariance that is not positive definite") from None
        elif noise.size in (1, m) and noise.ndim <= 1:
            if not (np.all(np.isfinite(noise)) and np.all(noise > 0)):
                raise ValueError(f"noise: got a smallest value of {noise.min()}, expected standard deviations > 0")
            self._whitener = np.ones(m) / noise
        else:
            raise ValueError(f"noise: got shape {noise.shape}, expected a number, ({m},) or ({m}, {m})")

    @property
    def size(self):
        """m, the number of observations."""
        return self.y.shape[0]

    def difference(self, g):
        """g - y, the residual before weighting.  (J, m) -> (J, m)"""
        return g - like(self.y[None, :], g)

    def whiten(self, d):
        """L^-1 d for every row, Gamma = L L': unit noise in every component.  (J, m) -> (J, m)"""
        xp = array_namespace(d)
        if self._whitener.ndim == 1:
            return d * like(self._whitener[None, :], d)
        return xp.matmul(d, like(self._whitener.T, d))

    def residual(self, g):
        """Gamma^-1 (g - y).  (J, m) -> (J, m)"""
        xp = array_namespace(g)
        d = self.whiten(self.difference(g))
        if self._whitener.ndim == 1:
            return d * like(self._whitener[None, :], g)
        return xp.matmul(d, like(self._whitener, g))

    def misfit(self, g):
        """||g - y||_Gamma^2 of every row; its expectation at the truth is m.  (J, m) -> (J,)"""
        xp = array_namespace(g)
        d = self.whiten(self.difference(g))
        return xp.sum(d * d, axis=-1)


class Closures(Gaussian):
    """Independent data of which some are angles: closure phases, log closure amplitudes, a flux.

    misfit(g) = sum_a weight_a l(g_a - y_a)/sigma_a^2,  l(d) = d^2, and for an angle, by ``phase_loss``:

    * "cos" (default, and InverseBench): l = 2 (1 - cos d), residual sin(d)/sigma^2: smooth, blind to turns of 2 pi;
    * "square" (the official code's EnKG): l = d^2 with d as it comes, which jumps at +-pi.

    The theorems on monotonicity need an affine residual: "square", not "cos" (THEORY.md 1.3: e_j = b_j + ebar).

    Parameters
    ----------
    y, sigma : arrays (m,)       data and standard deviations; radians where angular
    angular : array (m,) of bool
    weights : array (m,) or None     relative weights, 1 by default; 0 switches a datum off
    """

    def __init__(self, y, sigma, angular, weights=None, phase_loss="cos"):
        super().__init__(y, sigma)
        if self._whitener.ndim != 1:
            raise ValueError(f"sigma: got shape {np.shape(sigma)}, expected a number or ({self.size},)")
        if phase_loss not in ("cos", "square"):
            raise ValueError(f"phase_loss: got {phase_loss!r}, expected 'cos' or 'square'")
        weights = np.ones(self.size) if weights is None else np.asarray(weights, dtype=np.float64)
        angular = np.asarray(angular, dtype=bool)
        if weights.shape != (self.size,) or angular.shape != (self.size,):
            raise ValueError(f"angular, weights: got shapes {angular.shape}, {weights.shape}, expected ({self.size},)")
        if not (np.all(np.isfinite(weights)) and np.all(weights >= 0)):
            raise ValueError(f"weights: got a smallest value of {weights.min()}, expected numbers >= 0")
        self._whitener = self._whitener * np.sqrt(weights)
        self.phase_loss = phase_loss
        self._angular = angular.astype(np.float64)[None, :]

    def difference(self, g):
        """g - y, for an angle in [-pi, pi] (left as it comes under "square").  (J, m) -> (J, m)"""
        d = super().difference(g)
        return d if self.phase_loss == "square" else self._by_kind(_wrap(d), d)

    def residual(self, g):
        """Half-gradient of the misfit: (g - y)/sigma^2, for an angle under "cos" sin(g - y)/sigma^2."""
        xp = array_namespace(g)
        d = super().difference(g)
        if self.phase_loss == "cos":
            d = self._by_kind(xp.sin(d), d)
        return self.whiten(self.whiten(d))

    def misfit(self, g):
        """Sum over data of weight l(g - y)/sigma^2.  (J, m) -> (J,)"""
        xp = array_namespace(g)
        d = super().difference(g)
        if self.phase_loss == "cos":
            d = self._by_kind(2.0 * xp.sin(0.5 * d), d)  # 4 sin^2(d/2) = 2 (1 - cos d), without cancellation
        d = self.whiten(d)
        return xp.sum(d * d, axis=-1)

    def _by_kind(self, for_angles, otherwise):
        xp = array_namespace(otherwise)
        return xp.where(xp.astype(like(self._angular, otherwise), xp.bool), for_angles, otherwise)


def _wrap(d):
    xp = array_namespace(d)
    return d - 2.0 * math.pi * xp.round(d / (2.0 * math.pi))

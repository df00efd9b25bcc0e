"""What a measurement means: the residual that drives the correction, and the misfit that judges it.

``residual(g)`` is the half-gradient of ``misfit(g)`` with respect to the predicted observation g; for Gaussian noise
Gamma^-1 (g - y). Only this derivative, in observation space, is ever needed: never one of the forward model.

Every likelihood has the same parts: ``size`` (m), ``y`` (m,), ``difference``, ``whiten``, ``precision``, ``residual``,
``misfit``;
``has_angles``; and for methods whose published settings belong to a loss without weights, ``unweighted()``, the
likelihood with that loss, and ``unweighted_scale``, the standard deviation that was left out. A new one is one class.
"""

from __future__ import annotations

import math

import numpy as np

from ._xp import array_namespace, like, numbers_like


def predictions(y_pred, x, likelihood, rows=None):
    """``y_pred``, G at the J rows of ``x``, as (J, m) beside ``x``. ValueError for another shape, or for no numbers.

    rows : J, where the points that were simulated are not the rows of ``x``
    """
    y_pred, J, m = numbers_like(y_pred, x), x.shape[0] if rows is None else rows, likelihood.size
    if y_pred is None:
        raise ValueError(f"forward: got something that is not an array of real numbers, expected shape ({J}, {m})")
    shape = tuple(y_pred.shape)
    if len(shape) == 0 or shape[0] != J:
        raise ValueError(f"forward: got an output of shape {shape}, expected ({J}, {m}): forward must return one row "
                         "per particle")
    if math.prod(shape[1:]) != m:
        raise ValueError(f"forward: got an output of shape {shape}, expected ({J}, {m}): the data are {m} numbers")
    return array_namespace(y_pred).reshape(y_pred, (J, m))


def change(likelihood, g, base):
    """g - base, an angle in [-pi, pi]: the change of a prediction.  (J, m), (J, m) or (1, m) -> (J, m)"""
    y = like(likelihood.y[None, :], g)
    return likelihood.difference(g - base + y) - likelihood.difference(y)


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

    has_angles = False

    def __init__(self, y, noise=1.0):
        self.y = _data(y)
        m = self.size
        noise = np.asarray(noise, dtype=np.float64)
        if noise.ndim == 2 and noise.shape == (m, m):
            self._whitener = _whitener_of(noise)
        else:
            self._whitener = 1.0 / _deviations(noise, m)
        self.unweighted_scale = float(noise) if noise.ndim == 0 else 1.0

    @property
    def size(self):
        """m, the number of observations."""
        return self.y.shape[0]

    def unweighted(self):
        """The same data with Gamma = I."""
        return Gaussian(self.y, 1.0)

    def difference(self, g):
        """g - y, the residual before weighting.  (J, m) -> (J, m)"""
        return g - like(self.y[None, :], g)

    def whiten(self, d):
        """L^-1 d for every row, Gamma = L L': unit noise in every component.  (J, m) -> (J, m)"""
        if self._whitener.ndim == 1:
            return d * like(self._whitener[None, :], d)
        return array_namespace(d).matmul(d, like(self._whitener.T, d))

    def residual(self, g):
        """Gamma^-1 (g - y).  (J, m) -> (J, m)"""
        return self.precision(self.difference(g))

    def precision(self, d):
        """Gamma^-1 d for every row.  (J, m) -> (J, m)"""
        d = self.whiten(d)
        if self._whitener.ndim == 1:
            return d * like(self._whitener[None, :], d)
        return array_namespace(d).matmul(d, like(self._whitener, d))

    def misfit(self, g):
        """||g - y||_Gamma^2 of every row; its expectation at the truth is m.  (J, m) -> (J,)"""
        d = self.whiten(self.difference(g))
        return array_namespace(g).sum(d * d, axis=-1)


class Closures:
    """Independent data of which some are angles: closure phases, log closure amplitudes, a flux.

    misfit(g) = sum_a weight_a l(g_a - y_a)/sigma_a^2,  l(d) = d^2, and for an angle, by ``phase_loss``:

    * "cos" (default, and InverseBench): l = 2 (1 - cos d), residual sin(d)/sigma^2: smooth, blind to turns of 2 pi;
    * "square" (the official code's EnKG): l = d^2 with d as it comes, which jumps at +-pi.

    The theorems on monotonicity need an affine residual: "square", not "cos" (THEORY.md 1.3: e_j = b_j + ebar).
    The published losses for such data are weighted by sigma already, so ``unweighted()`` is the likelihood itself.

    Parameters
    ----------
    y, sigma : arrays (m,)       data and standard deviations; radians where angular
    angular : array (m,) of bool
    weights : array (m,) or None     relative weights, 1 by default; 0 switches a datum off
    """

    has_angles = True
    unweighted_scale = 1.0

    def __init__(self, y, sigma, angular, weights=None, phase_loss="cos"):
        self.y = _data(y)
        if phase_loss not in ("cos", "square"):
            raise ValueError(f"phase_loss: got {phase_loss!r}, expected 'cos' or 'square'")
        weights = np.ones(self.size) if weights is None else np.asarray(weights, dtype=np.float64)
        angular = np.asarray(angular, dtype=bool)
        if weights.shape != (self.size,) or angular.shape != (self.size,):
            raise ValueError(f"angular, weights: got shapes {angular.shape}, {weights.shape}, expected ({self.size},)")
        if not (np.all(np.isfinite(weights)) and np.all(weights >= 0)):
            raise ValueError(f"weights: got a smallest value of {weights.min()}, expected numbers of at least 0")
        self._whitener = np.sqrt(weights) / _deviations(np.asarray(sigma, dtype=np.float64), self.size, "sigma")
        self.phase_loss = phase_loss
        self._angular = angular[None, :]

    @property
    def size(self):
        """m, the number of observations."""
        return self.y.shape[0]

    def unweighted(self):
        """This likelihood: see above."""
        return self

    def difference(self, g):
        """g - y, for an angle in [-pi, pi] (left as it comes under "square").  (J, m) -> (J, m)"""
        d = self._plain(g)
        return d if self.phase_loss == "square" else self._by_kind(_wrap(d), d)

    def whiten(self, d):
        """d sqrt(weight)/sigma: unit noise in every component.  (J, m) -> (J, m)"""
        return d * like(self._whitener[None, :], d)

    def residual(self, g):
        """Half-gradient of the misfit: weight (g - y)/sigma^2, for an angle under "cos" weight sin(g - y)/sigma^2."""
        d = self._plain(g)
        if self.phase_loss == "cos":
            d = self._by_kind(array_namespace(g).sin(d), d)
        return self.precision(d)

    def precision(self, d):
        """d weight/sigma^2 for every row.  (J, m) -> (J, m)"""
        return self.whiten(self.whiten(d))

    def misfit(self, g):
        """Sum over data of weight l(g - y)/sigma^2.  (J, m) -> (J,)"""
        xp = array_namespace(g)
        d = self._plain(g)
        if self.phase_loss == "cos":
            d = self._by_kind(2.0 * xp.sin(0.5 * d), d)  # 4 sin^2(d/2) = 2 (1 - cos d), without cancellation
        d = self.whiten(d)
        return xp.sum(d * d, axis=-1)

    def _plain(self, g):
        return g - like(self.y[None, :], g)

    def _by_kind(self, for_angles, otherwise):
        xp = array_namespace(otherwise)
        angular = xp.astype(like(self._angular.astype(np.float64), otherwise), xp.bool)
        return xp.where(angular, for_angles, otherwise)


class Poisson:
    """Counts y_a ~ Poisson(g_a + background_a), where the forward model predicts the mean counts g.

    misfit(g) = 2 sum_a (r_a - y_a + y_a log(y_a/r_a)), the deviance, r = max(g + background, floor); about m at the
    truth where the counts are not small. residual(g) = 1 - y/r is its half-gradient.
    ``whiten`` divides by sqrt(max(y, 1)), the standard deviation of the counts where they are many.

    Parameters
    ----------
    y : array (*obs)     counts, whole numbers of at least 0
    background : float or array (m,)    mean counts that are not the source's, known
    floor : float        the smallest mean count that is believed, above 0; a predicted mean below it counts as this
    """

    has_angles = False
    unweighted_scale = 1.0

    def __init__(self, y, background=0.0, floor=0.1):
        self.y = _data(y)
        if np.any(self.y < 0) or np.any(self.y != np.round(self.y)):
            raise ValueError("observation: got values that are no counts, expected whole numbers of at least 0 for "
                             "Poisson data")
        background = np.asarray(background, dtype=np.float64)
        if background.shape not in ((), (self.size,)) or not np.all(background >= 0):
            raise ValueError(f"background: got shape {background.shape} and a smallest value of {background.min()}, "
                             f"expected a number or ({self.size},), at least 0")
        if not 0 < floor < math.inf:
            raise ValueError(f"floor: got {floor}, expected a number above 0")
        self._background, self.floor = (np.ones(self.size) * background)[None, :], float(floor)
        self._whitener = 1.0 / np.sqrt(np.maximum(self.y, 1.0))[None, :]

    @property
    def size(self):
        """m, the number of observations."""
        return self.y.shape[0]

    def unweighted(self):
        """This likelihood: counts have no other loss."""
        return self

    def difference(self, g):
        """g + background - y.  (J, m) -> (J, m)"""
        return g + like(self._background - self.y[None, :], g)

    def whiten(self, d):
        """d / sqrt(max(y, 1)).  (J, m) -> (J, m)"""
        return d * like(self._whitener, d)

    def precision(self, d):
        """d / max(y, 1).  (J, m) -> (J, m)"""
        return self.whiten(self.whiten(d))

    def residual(self, g):
        """1 - y/r, r = max(g + background, floor).  (J, m) -> (J, m)"""
        return 1.0 - like(self.y[None, :], g) / self._rate(g)

    def misfit(self, g):
        """The deviance 2 sum (r - y + y log(y/r)) of every row.  (J, m) -> (J,)"""
        xp = array_namespace(g)
        r, y = self._rate(g), like(self.y[None, :], g)
        logs = like((self.y * np.log(np.maximum(self.y, 1.0)))[None, :], g) - y * xp.log(r)
        return 2.0 * xp.sum(r - y + logs, axis=-1)

    def _rate(self, g):
        r = g + like(self._background, g)
        xp = array_namespace(g)
        return xp.where(r < self.floor, self.floor + xp.zeros_like(r), r)


def _data(y):
    y = np.asarray(y, dtype=np.float64).reshape(-1)
    if y.size == 0:
        raise ValueError("observation: got no values, expected at least one")
    if not np.all(np.isfinite(y)):
        raise ValueError(f"observation: got {np.sum(~np.isfinite(y))} non-finite of {y.size} values, "
                         "expected finite numbers")
    return y


def _deviations(noise, m, name="noise"):
    """Standard deviations (m,) from a number or (m,)."""
    if not (noise.size in (1, m) and noise.ndim <= 1):
        raise ValueError(f"{name}: got shape {noise.shape}, expected a number, ({m},) or ({m}, {m})")
    noise = np.ones(m) * noise
    with np.errstate(over="ignore", divide="ignore"):
        usable = np.isfinite(noise) & (noise > 0) & np.isfinite(1.0 / noise**2)
    if not np.all(usable):
        raise ValueError(f"{name}: got a value of {noise[~usable][0]}, expected standard deviations > 0 whose inverse "
                         "squares are finite numbers")
    return noise


def _whitener_of(gamma):
    """L^-1 with Gamma = L L', (m, m)."""
    if not np.allclose(gamma, gamma.T, rtol=1e-10, atol=0.0):
        raise ValueError("noise: got a covariance that is not symmetric, expected Gamma = Gamma'")
    try:
        return np.linalg.inv(np.linalg.cholesky(gamma))
    except np.linalg.LinAlgError:
        raise ValueError("noise: got a covariance that is not positive definite, expected one that is") from None


def _wrap(d):
    xp = array_namespace(d)
    return d - 2.0 * math.pi * xp.round(d / (2.0 * math.pi))

"""A linear model of the forward map from all evaluations made so far: ridge regression, leave-one-out errors (E3, E4).

Part of EnKG-R, our extension; not in the EnKG paper. n rows (evaluations), r inputs, m outputs, all in the hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._xp import array_namespace, like

RIDGES = tuple(10.0 ** (half / 2) for half in range(-10, 3))  # lam / largest eigenvalue, 1e-5 ... 10
SKETCH = 32  # outputs are judged by this many random sign projections when there are more of them
SMALLEST_LEVERAGE_LEFT = 1e-9


SMALLEST_LOCAL_WEIGHT = 2e-3


@dataclass(frozen=True)
class Surrogate:
    """g(x) ~ y_mean + (x - x_mean) slope, and how wrong it is on points it has not seen.

    x_mean (1, r);  y_mean (1, m);  slope (r, m) = H'
    errors (n, m) : leave-one-out errors, scaled so that errors' errors = S, their weighted mean square
    ridge : lam relative to the largest eigenvalue
    """

    x_mean: Any
    y_mean: Any
    slope: Any
    errors: Any
    ridge: float

    def unscaled(self, scale):
        """The same model for inputs x where it was fitted to x scale.  scale : (1, r)"""
        return replace(self, x_mean=self.x_mean / scale, slope=self.slope * scale.T)

    def predict(self, x):
        """(J, r) -> (J, m)"""
        return self.y_mean + array_namespace(x).matmul(x - self.x_mean, self.slope)


def local_weights(x, current, weight, locality):
    """Weights of evaluations x times exp(-locality max(|x - c|^2/v - 1, 0)): a linear model of a curved map is local.

    c and v are the mean of the current evaluations and their mean squared distance from it.

    x : (n, r);  current : (J, r);  weight : (n,);  -> (n,)
    """
    xp = array_namespace(x, current)
    c = xp.mean(current, axis=0, keepdims=True)
    v = xp.mean(xp.sum((current - c) ** 2, axis=1))
    excess = xp.sum((x - c) ** 2, axis=1) / xp.where(v > 0, v, xp.ones_like(v)) - 1.0
    return weight * xp.exp(-locality * xp.where(excess > 0, excess, xp.zeros_like(excess)))


def ridge_regression(x, y, weight, output_scale=None, ridges=RIDGES):
    """(E3) Weighted ridge regression of y on x with intercept; lam minimises the leave-one-out error (E4).

    With Xc = sqrt(q)(x - xbar), Yc = sqrt(q)(y - ybar) (weighted means) and Xc Xc' = U diag(ev) U':

        H' = Xc' U (ev + lam)^-1 U' Yc
        loo_i = [U f U' Yc]_i / (([(U*U) f]_i - q_i/sum q) sqrt(q_i)),   f = lam/(ev + lam)

    loo_i is exactly y_i minus the prediction of a fit without row i, intercept and weights included, at the same lam.
    The smaller of the n x n (dual) and the r x r (primal) eigenproblem is solved; the results are equal.

    Parameters
    ----------
    x : (n, r);  y : (n, m);  weight : (n,), > 0
    output_scale : (1, m) or None   factors on the outputs in the choice of lam only
    ridges : candidates for lam, relative to the largest eigenvalue

    Raises ValueError for fewer than three rows: the errors cannot be estimated.
    """
    xp = array_namespace(x, y)
    n, r = x.shape
    if n < 3:
        raise ValueError(f"regression: got {n} finite evaluations, expected at least 3")
    q = weight[:, None]
    total = xp.sum(q)
    x_mean, y_mean = (xp.sum(q * v, axis=0, keepdims=True) / total for v in (x, y))
    Xc, Yc = (xp.sqrt(q) * (v - mean) for v, mean in ((x, x_mean), (y, y_mean)))

    U, ev, dual = _modes(Xc)
    P = xp.matmul(U.T, Yc)
    # what the modes leave out: nothing in the dual form, where U is complete
    Y_rest = xp.zeros_like(Yc) if dual else Yc - xp.matmul(U, P)
    UU = U * U
    h_rest = -weight / total + (0.0 if dual else 1.0 - xp.sum(UU, axis=1))

    def leverage_left(f):
        h = h_rest + xp.matmul(UU, f)
        return xp.where(h > SMALLEST_LEVERAGE_LEFT, h, SMALLEST_LEVERAGE_LEFT * xp.ones_like(h))[:, None]

    def judged(v):
        return _sketch(v if output_scale is None else v * output_scale)

    P_judged, judged_rest = judged(P), 0.0 if dual else judged(Y_rest)  # linear: P of a projection is that of P
    largest = ev[-1]

    def error(ridge):  # sum_i q_i |loo_i|^2
        f = ridge * largest / (ev + ridge * largest)
        loo = (judged_rest + xp.matmul(U, f[:, None] * P_judged)) / leverage_left(f)
        return float(xp.sum(loo * loo))

    ridge = min(ridges, key=error) if float(largest) > 0 and len(ridges) > 1 else ridges[-1]
    lam = ridge * largest if float(largest) > 0 else xp.ones_like(largest)
    f = lam / (ev + lam)
    errors = (Y_rest + xp.matmul(U, f[:, None] * P)) / leverage_left(f) / xp.sqrt(total)
    slope = xp.matmul(Xc.T, xp.matmul(U, P / (ev + lam)[:, None]))
    return Surrogate(x_mean, y_mean, slope, errors, ridge)


def _modes(Xc):
    """Left singular vectors U of Xc, eigenvalues ev (ascending), and whether U is complete (dual form)."""
    xp = array_namespace(Xc)
    n, r = Xc.shape
    dual = n <= r
    gram = xp.matmul(Xc, Xc.T) if dual else xp.matmul(Xc.T, Xc)
    ev, vectors = _eigh(gram)
    # eigenvalues at the rounding floor are zeros: sqrt(q), a null vector by centring, must get f = 1
    present = ev > 8 * float(xp.finfo(ev.dtype).eps) * ev[-1]
    ev = xp.where(present, ev, xp.zeros_like(ev))
    if dual:
        return vectors, ev, True
    scale = xp.where(present, 1.0 / xp.sqrt(xp.where(present, ev, xp.ones_like(ev))), xp.zeros_like(ev))
    return xp.matmul(Xc, vectors) * scale[None, :], ev, False


def _eigh(gram):
    """Half of the method's own time. SciPy's is measured 1.7 times as fast as NumPy's (n = 512, single precision)."""
    if not isinstance(gram, np.ndarray):
        return array_namespace(gram).linalg.eigh(gram)
    import scipy.linalg

    return scipy.linalg.eigh(gram, driver="evd", check_finite=False)


def _sketch(y):
    m = y.shape[1]
    if m <= SKETCH:
        return y
    signs = np.random.default_rng(m).choice([-1.0, 1.0], size=(m, SKETCH))
    return array_namespace(y).matmul(y, like(signs, y))

"""Periodic pseudo-spectral building blocks: wavenumbers, masks, FFT back-ends, and an integrating-factor Runge-Kutta
scheme with its tangent and its adjoint. Nothing here knows which equation is solved.

Fields are real (J, n, n) arrays on the torus [0, 2 pi)^2; their half spectra are (J, n, n//2 + 1), r2c unnormalised
over the last two axes, c2r with 1/n^2. In the inner products <a, b> = sum a b on the grid and <a, b>_s = Re sum_k W_k
conj(a_k) b_k / n^2 (W = 1 in the columns k2 = 0 and n/2, else 2) the transforms are each other's adjoints: r2c^T =
c2r, c2r^T = r2c.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np

from problems._xp import array_namespace, device


def wavenumbers(n):
    """Integer wavenumbers of the half spectrum, float64 on the host: k1 (n, 1) along axis 0, k2 (1, n//2 + 1) along
    axis 1.
    """
    return np.fft.fftfreq(n, 1 / n)[:, None], np.arange(n // 2 + 1.0)[None, :]


def disc_mask(n):
    """1 where |k|^2 <= 2 (n/3)^2 and both components are below n/2, else 0: the disc of radius sqrt(2) n/3 of the
    official code.
    """
    k1, k2 = wavenumbers(n)
    return ((k1**2 + k2**2 <= 2 * (n / 3) ** 2) & (abs(k1) < n / 2) & (k2 < n / 2)).astype(float)


def square_mask(n, cutoff):
    """1 where |k1|, |k2| <= cutoff (< n/2), else 0; cutoff = (n - 1)//3 removes every alias of a quadratic product."""
    if not 0 < cutoff < n / 2:
        raise ValueError(f"cutoff: got {cutoff}, expected 1 to {(n - 1) // 2} on a grid of {n} points")
    k1, k2 = wavenumbers(n)
    return ((abs(k1) <= cutoff) & (k2 <= cutoff)).astype(float)


def table(host, x):
    """Move a host table to the namespace and device of the real array ``x``, as complex numbers of the width of ``x``.

    Complex even where the entries are real: a real table times a complex array is promoted, and copied, at every
    product.
    """
    xp = array_namespace(x)
    dtype, name = (xp.complex64, "complex64") if x.dtype == xp.float32 else (xp.complex128, "complex128")
    return xp.asarray(np.asarray(host).astype(name), dtype=dtype, device=device(x))


# ----------------------------------------------------------------------------------------------------------- transforms


def transforms(x, fft="scipy"):
    """The pair (r2c, c2r) for fields like ``x`` (.., n, n).

    ``fft`` chooses the back-end of numpy arrays: "scipy" (always there; rows are bitwise independent of the batch),
    "ducc0" or "pyfftw" (extra ``fast``; a third faster), or an object with ``rfftn(x, axes=)`` and ``irfftn(h, s=,
    axes=)``. Arrays of every other namespace use their own ``xp.fft``: scipy.fft would silently return numpy arrays.
    Raises ValueError for an unknown name, ImportError for a package that is not installed.
    """
    n, axes = x.shape[-1], (-2, -1)
    if isinstance(fft, str) and not isinstance(x, np.ndarray):
        fft = array_namespace(x).fft
    if fft in ("ducc0", "pyfftw") and importlib.util.find_spec(fft) is None:
        raise ImportError(f"fft: got {fft}, which is not installed, expected it from the extra fast: "
                          "pip install -e '.[fast]'")
    if fft == "ducc0":
        from ducc0.fft import c2r, r2c

        return (lambda a: r2c(a, axes=axes),
                lambda h: c2r(h, axes=axes, lastsize=n, forward=False, inorm=2))
    if fft == "scipy":
        import scipy.fft as fft
    elif fft == "pyfftw":
        import pyfftw

        pyfftw.interfaces.cache.enable()  # keeps the plans between calls
        fft = pyfftw.interfaces.scipy_fft
    elif isinstance(fft, str):
        raise ValueError(f"fft: got {fft!r}, expected scipy, ducc0, pyfftw or an object with rfftn and irfftn")
    return (lambda a: fft.rfftn(a, axes=axes)), (lambda h: fft.irfftn(h, s=(n, n), axes=axes))


def resample(x, n_new, fft="scipy"):
    """Trigonometric interpolation of fields (J, n, n) on a grid of ``n_new`` points: zero-padded or cut off in
    wavenumber space.

    Keeps the modes with both |k| below min(n, n_new)/2 (Nyquist modes are dropped).
    """
    xp = array_namespace(x)
    n = x.shape[-1]
    keep = (min(n, n_new) + 1) // 2  # wavenumbers 0 .. keep - 1
    h = transforms(x, fft)[0](x)[:, :, :keep] * (n_new / n) ** 2
    gap = xp.zeros((h.shape[0], n_new - 2 * keep + 1, keep), dtype=h.dtype, device=device(x))
    h = xp.concat((h[:, :keep, :], gap, h[:, n - keep + 1 :, :]), axis=1)
    tail = xp.zeros((h.shape[0], n_new, n_new // 2 + 1 - keep), dtype=h.dtype, device=device(x))
    shape = xp.zeros((1, n_new, n_new), dtype=x.dtype, device=device(x))
    return transforms(shape, fft)[1](xp.concat((h, tail), axis=2))


# ----------------------------------------------------------------------------------------------------- time integration


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta scheme in which stage i uses the slope of stage i - 1 only, with weight a[i], at time
    c[i].
    """

    c: tuple[float, ...]
    a: tuple[float, ...]
    b: tuple[float, ...]
    source: str


RK4 = Tableau(c=(0.0, 0.5, 0.5, 1.0), a=(0.0, 0.5, 0.5, 1.0), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
              source="Kutta 1901; with an integrating factor: Lawson 1967, SIAM J. Numer. Anal. 4, 372")


class IntegratingFactor:
    """One step of dh/dt = F(h) - decay h, the linear part exact: (N10), (N11), with its tangent (N16) and its adjoint
    (N15).

        h_i = E(c_i) h + dt a_i E(c_i - c_{i-1}) F_{i-1},    h+ = h + (E(1) - 1) h + dt sum_i b_i E(1 - c_i) F_i,
        E(s) = exp(-s dt decay)

    E(1) - 1 is a table of its own (expm1): the rounding of a float32 table near 1 is the same in every step, hence an
    error that grows with the number of steps; like this it does not.

    ``decay`` is a host table (n, n//2 + 1); tables are made in float64 and cast to the width of ``like``. The equation
    offers ``velocity(h) -> q``, ``slope(q) -> F``, ``tangent(q, dh) -> F'(h) dh`` and ``adjoint(q, g) -> F'(h)^T g``.
    """

    def __init__(self, decay, dt, like, scheme=RK4):
        def factor(s):
            return np.exp(-s * dt * decay)

        c, a, b = scheme.c, scheme.a, scheme.b
        lag = [c[0], *(now - before for before, now in zip(c, c[1:]))]
        self.c = c
        self.carry = {s: table(factor(s), like) for s in set(c) if s}
        self.chain = [table(dt * w * factor(s), like) for w, s in zip(a, lag)]
        self.weigh = [table(dt * w * factor(1 - s), like) for w, s in zip(b, c)]
        self.shrink = table(np.expm1(-dt * decay), like)

    def _carried(self, h):
        """{c: E(c) h} for the distinct stage times."""
        return {0.0: h} | {s: e * h for s, e in self.carry.items()}

    def step(self, h, equation):
        """h at t -> h+ at t + dt."""
        carried, change, slope = self._carried(h), self.shrink * h, None
        for i, c in enumerate(self.c):
            stage = carried[c] + self.chain[i] * slope if i else h
            slope = equation.slope(equation.velocity(stage))
            change = change + self.weigh[i] * slope
        return h + change

    def tangent(self, h, dh, equation):
        """(h, dh) -> (h+, dh+), (N16)."""
        carried, change = self._carried(h), self.shrink * h
        d_carried, d_change = self._carried(dh), self.shrink * dh
        slope = d_slope = None
        for i, c in enumerate(self.c):
            stage = carried[c] + self.chain[i] * slope if i else h
            d_stage = d_carried[c] + self.chain[i] * d_slope if i else dh
            q = equation.velocity(stage)
            slope, d_slope = equation.slope(q), equation.tangent(q, d_stage)
            change, d_change = change + self.weigh[i] * slope, d_change + self.weigh[i] * d_slope
        return h + change, dh + d_change

    def adjoint(self, h, g, equation):
        """Cotangent g of h+ -> cotangent of h, (N15); the stages are recomputed from h."""
        carried, q, slope = self._carried(h), [], None
        for i, c in enumerate(self.c):
            stage = carried[c] + self.chain[i] * slope if i else h
            q.append(equation.velocity(stage))
            slope = equation.slope(q[i]) if i + 1 < len(self.c) else None  # nobody needs the slope of the last stage
        total, r = g + self.shrink * g, None
        for i in reversed(range(len(self.c))):
            kappa = self.weigh[i] * g if r is None else self.weigh[i] * g + self.chain[i + 1] * r
            r = equation.adjoint(q[i], kappa)
            total = total + (self.carry[self.c[i]] * r if self.c[i] else r)
        return total

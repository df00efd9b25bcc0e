"""The four measurements of image restoration, each with its adjoint and, where it has one, its proximal map.

    Inpainting        y = mask * x                                            (I5)
    MatrixPair        Y = A1 X A2^T, for super-resolution (I9) and blur (I11)
    FourierMagnitude  y = |F p|, p the picture with a margin of zeros          (I14)

Pictures are (J, *event), event (n1, n2) or (c, n1, n2): all act on the last two axes and treat channels alike.
Predictions are rows (J, m). Any array-API namespace; dtype and device follow the pictures.
Numbers (I...) and golden values: the project's specification of these problems, after the configuration of
devzhk/enkg-pytorch; nothing is copied from there.
"""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from problems._xp import array_namespace, device, like


class _Operator:
    """What the operators share: shapes, and constants that are moved beside the particles once."""

    def __init__(self, event_shape, observed_shape, **tables):
        self.event_shape, self.observed_shape = tuple(event_shape), tuple(observed_shape)
        self.size = math.prod(self.observed_shape)
        self._host, self._moved = tables, {}

    def _beside(self, x, name):
        key = (name, type(x), str(device(x)), str(x.dtype))
        if key not in self._moved:
            table = self._host[name]
            self._moved[key] = like(table, x) if table.dtype.kind == "f" else \
                array_namespace(x).asarray(table, device=device(x))
        return self._moved[key]

    def _pictures(self, rows):
        return array_namespace(rows).reshape(rows, (rows.shape[0], *self.observed_shape))

    def _rows(self, pictures):
        return array_namespace(pictures).reshape(pictures, (pictures.shape[0], self.size))


class Inpainting(_Operator):
    """y = mask * x, (I5): a box of zeros. Its noise is added inside the box as well.

    event_shape : (n1, n2) or (c, n1, n2);  hole : (top, left, height, width) in pixels
    """

    norm = 1.0  # ||G||, the largest singular value

    def __init__(self, event_shape, hole):
        top, left, height, width = hole
        mask = np.ones(event_shape[-2:])
        if not (0 <= top <= top + height <= mask.shape[0] and 0 <= left <= left + width <= mask.shape[1]):
            raise ValueError(f"hole: got {','.join(map(str, hole))}, expected top,left,height,width inside "
                             f"{mask.shape[0]} x {mask.shape[1]} pixels")
        mask[top:top + height, left:left + width] = 0.0
        super().__init__(event_shape, event_shape, mask=mask)
        self.mask = mask

    def __call__(self, x):
        """(J, *event) -> (J, m)"""
        return self._rows(x * self._beside(x, "mask"))

    def adjoint(self, v):
        """G^T v = mask * v, (I7).  (J, m) -> (J, *event)"""
        return self._pictures(v) * self._beside(v, "mask")

    def vjp(self, x, v):
        return self.adjoint(v)

    def prox(self, x0, y, rho):
        """argmin ||G x - y||^2 + rho ||x - x0||^2, (I8).  x0 (J, *event), y (m,) on the host, rho > 0"""
        mask = self._beside(x0, "mask")
        return (mask * like(np.reshape(y, self.observed_shape), x0) + rho * x0) / (mask + rho)


class MatrixPair(_Operator):
    """Y = A1 X A2^T for every channel X.  A1 (m1, n1), A2 (m2, n2);  channels : c, or None for events (n1, n2)"""

    def __init__(self, A1, A2, channels=None):
        lead = () if channels is None else (channels,)
        A1, A2 = np.asarray(A1, dtype=np.float64), np.asarray(A2, dtype=np.float64)
        super().__init__((*lead, A1.shape[1], A2.shape[1]), (*lead, A1.shape[0], A2.shape[0]),
                         A1=A1, A1t=A1.T.copy(), A2=A2, A2t=A2.T.copy())
        self.A1, self.A2 = A1, A2

    @cached_property
    def norm(self):
        """||G||, the largest singular value."""
        return float(np.linalg.norm(self.A1, 2) * np.linalg.norm(self.A2, 2))

    def __call__(self, x):
        """(J, *event) -> (J, m)"""
        return self._rows(self._both(x, "A1", "A2t"))

    def adjoint(self, v):
        """A1^T Y A2, (I10), (I13).  (J, m) -> (J, *event)"""
        return self._both(self._pictures(v), "A1t", "A2")

    def vjp(self, x, v):
        return self.adjoint(v)

    def prox(self, x0, y, rho):
        """argmin ||G x - y||^2 + rho ||x - x0||^2 in the singular vectors of A1 and A2, (I17).

        x0 (J, *event), y (m,) on the host, rho > 0
        """
        xp = array_namespace(x0)
        V1, V2 = (like(self._svd[k][0], x0) for k in (0, 1))
        gain = np.outer(self._svd[0][1], self._svd[1][1])
        pulled = self.adjoint(like(np.reshape(y, (1, -1)), x0)) + rho * x0
        inner = xp.matmul(xp.matmul(V1.T, pulled), V2) / (like(gain, x0) + rho)
        return xp.matmul(xp.matmul(V1, inner), V2.T)

    @cached_property
    def _svd(self):  # (V, squares of the singular values, zeros included) of A1 and A2
        found = []
        for A in (self.A1, self.A2):
            _, s, Vt = np.linalg.svd(A, full_matrices=True)
            found.append((Vt.T, np.append(s**2, np.zeros(A.shape[1] - len(s)))))
        return found

    def _both(self, x, left, right):
        """left @ X @ right; the first product is one matrix product over all rows of all pictures."""
        xp = array_namespace(x)
        L, R = self._beside(x, left), self._beside(x, right)
        rows = xp.matmul(xp.reshape(x, (-1, x.shape[-1])), R)
        return xp.matmul(L, xp.reshape(rows, (*x.shape[:-1], R.shape[-1])))


class FourierMagnitude(_Operator):
    """y = |F p|, (I14): F the orthonormal two-dimensional FFT, p = x with int(oversample/8 n) zeros on every side.

    y has the zero frequency in the middle. G(x) = G(-x) = G(x turned by 180 degrees) = G(x shifted inside the frame),
    (I16). Square pictures. Where a coefficient is zero the VJP takes 0 of its subgradients.

    The FFT is the real one, half the coefficients; the magnitudes of the other half are the mirror image. Zeros before
    the picture or after it differ by a phase, so all stand after it.
    """

    norm = 1.0

    def __init__(self, event_shape, oversample=2.0):
        n = event_shape[-1]
        if event_shape[-2] != n:
            raise ValueError(f"event_shape: got {tuple(event_shape)}, expected square pictures")
        margin = int(oversample / 8.0 * n)
        if margin < 0:
            raise ValueError(f"oversample: got {oversample}, expected a number >= 0")
        self.frame, self.oversample = n + 2 * margin, oversample
        N, H = self.frame, self.frame // 2 + 1
        k = (np.arange(N) - N // 2) % N  # frequency shown at each place
        rows, columns = np.meshgrid(k, k, indexing="ij")
        mirrored = columns >= H
        full = np.where(mirrored, (-rows) % N * H + (-columns) % N, rows * H + columns)
        shown = np.empty((N, N), dtype=int)  # where frequency (row, column) is shown
        shown[rows, columns] = np.arange(N * N).reshape(N, N)
        half_rows, half_columns = np.meshgrid(np.arange(N), np.arange(H), indexing="ij")
        here = shown[half_rows, half_columns]
        there = shown[-half_rows % N, -half_columns % N]
        super().__init__(event_shape, (*event_shape[:-2], N, N), full=full.reshape(-1).astype(np.int32),
                         here=here.reshape(-1).astype(np.int32), there=there.reshape(-1).astype(np.int32))

    def __call__(self, x):
        """(J, *event) -> (J, m)"""
        xp = array_namespace(x)
        z = self._transform(x)
        a = xp.reshape(xp.abs(z), (*x.shape[:-2], -1))
        return self._rows(xp.take(a, self._beside(x, "full"), axis=-1))

    def vjp(self, x, v):
        """J_G(x)^T v = crop(Re F^-1[v z/|z|]), (I15).  x (J, *event), v (J, m) -> (J, *event)"""
        xp = array_namespace(x, v)
        n, N = x.shape[-1], self.frame
        z = self._transform(x)
        flat = xp.reshape(v, (*x.shape[:-2], N * N))
        folded = 0.5 * (xp.take(flat, self._beside(x, "here"), axis=-1)
                        + xp.take(flat, self._beside(x, "there"), axis=-1))  # k and -k share a real cosine
        a = xp.abs(z)
        weight = xp.reshape(folded, a.shape) / xp.where(a > 0, a, xp.ones_like(a))
        back = xp.fft.irfftn(z * xp.astype(weight, z.dtype), s=(N, N), axes=(-2, -1), norm="ortho")
        return xp.astype(back[..., :n, :n], x.dtype)

    def _transform(self, x):
        return array_namespace(x).fft.rfftn(x, s=(self.frame, self.frame), axes=(-2, -1), norm="ortho")


def bicubic(n, factor):
    """W (n/factor, n) of antialiased bicubic reduction, (I9): Keys' cubic, a = -1/2, stretched by the factor.

    The rows sum to 1, at the margin too. What torch's ``interpolate(mode="bicubic", antialias=True)`` computes.
    Raises ValueError unless ``factor`` divides n.
    """
    if factor < 1 or n % factor:
        raise ValueError(f"factor: got {factor}, expected a whole number that divides {n}")
    W = np.zeros((n // factor, n))
    for i, row in enumerate(W):
        centre = (i + 0.5) * factor
        first, end = max(int(centre - 2 * factor + 0.5), 0), min(int(centre + 2 * factor + 0.5), n)
        row[first:end] = _keys((np.arange(first, end) - centre + 0.5) / factor)
        row /= row.sum()
    return W


def _keys(u, a=-0.5):
    u = np.abs(u)
    near = (a + 2) * u**3 - (a + 3) * u**2 + 1
    far = a * u**3 - 5 * a * u**2 + 8 * a * u - 4 * a
    return np.where(u < 1, near, np.where(u < 2, far, 0.0))


def gaussian_taps(std):
    """g_j = exp(-j^2/(2 std^2))/sum, |j| <= int(4 std + 1/2), (I11)."""
    radius = int(4.0 * std + 0.5)
    j = np.arange(-radius, radius + 1)
    g = np.exp(-0.5 * (j / std) ** 2)
    return g / g.sum()


def blur(n, std):
    """M (n, n) of the Gaussian blur in one direction, the picture reflected without repeating its edge, (I12).

    Not symmetric near the edge. Raises ValueError for std <= 0 or pictures smaller than the reflection reaches.
    """
    if not std > 0:
        raise ValueError(f"blur: got {std}, expected a standard deviation > 0 in pixels")
    g = gaussian_taps(std)
    radius = len(g) // 2
    if n <= radius:
        raise ValueError(f"blur: got {std:g} pixels for a picture of {n}, expected one of more than {radius} pixels, "
                         "for the reflection reaches as far")
    M = np.zeros((n, n))
    for i in range(n):
        for j, weight in zip(range(i - radius, i + radius + 1), g):
            q = -j if j < 0 else 2 * (n - 1) - j if j > n - 1 else j
            M[i, q] += weight
    return M

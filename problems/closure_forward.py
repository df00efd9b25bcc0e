"""The forward model of black-hole imaging: image -> closure phases, log closure amplitudes, total flux."""

from __future__ import annotations

import math

import numpy as np

from problems._xp import array_namespace, device, like
from problems.vlbi import MICROARCSECOND

PIXELS = 64
FIELD_OF_VIEW = 160.0  # micro-arcseconds


def fourier_table(u, v, pixels=PIXELS, field_of_view=FIELD_OF_VIEW, pulse=2):
    """Direct Fourier transform of an image as a real matrix (2 n_vis, pixels^2): real above imaginary parts, (BH2).

    Parameters
    ----------
    u, v : arrays (n_vis,)     wavelengths
    field_of_view : float      micro-arcseconds
    pulse : int                power of the sinc: 2 triangle (default), 1 rectangle, 0 delta

    V = table @ image in the unit of the image per pixel; V(0) = sum of the image. Row 0 is North, column 0 is East.
    """
    size = field_of_view * MICROARCSECOND / pixels
    x = ((pixels - 1) / 2 - np.arange(pixels)) * size  # (BH1)
    along_x = np.exp(2j * np.pi * np.outer(u, x)) * (np.sinc(np.asarray(u) * size) ** pulse)[:, None]
    along_y = np.exp(2j * np.pi * np.outer(v, x)) * (np.sinc(np.asarray(v) * size) ** pulse)[:, None]
    table = (along_y[:, :, None] * along_x[:, None, :]).reshape(len(u), -1)
    return np.concatenate([table.real, table.imag])


class ClosureForward:
    """z -> [closure phases (rad), log closure amplitudes, total flux (peak pixels, optional)], (BH13).

    z : array (J, n, n) in prior units, x = scale z + shift; result (J, m). Rows are independent of each other; dtype,
    device and namespace follow z. An image with a null on a baseline gives a non-finite row.

    Parameters
    ----------
    table : array (2 n_vis, n^2)     from ``fourier_table``
    closures : vlbi.ClosureSet
    data_phases : array (n_cp,) or None   measured phases: predictions are returned in the branch around them,
        cp <- y + wrap(cp - y), so that ensemble means and anomalies see no jump but at the antipode of the datum;
        None: in [-pi, pi] (the official code's choice)
    flux : bool                      append sum x
    """

    def __init__(self, table, closures, data_phases=None, flux=False, scale=0.5, shift=0.5):
        rows = table.shape[0] // 2
        centre = np.zeros(len(closures.triangles)) if data_phases is None else np.asarray(data_phases)
        self._host = {"table": table, "cp": closures.phase_matrix(rows), "lca": closures.amplitude_matrix(rows),
                      "centre": centre}
        self._moved = {}
        self.flux, self.scale, self.shift = flux, float(scale), float(shift)

    def _tables(self, x):
        """The constant arrays beside ``x``; moved once per namespace, device and dtype."""
        key = (type(x), str(device(x)), str(x.dtype))
        if key not in self._moved:
            self._moved[key] = {name: like(host, x) for name, host in self._host.items()}
        return self._moved[key]

    def visibilities(self, z):
        """Real and imaginary parts, each (J, n_vis), in units of the peak pixel, of z (J, n, n)."""
        xp = array_namespace(z)
        x = self.scale * xp.reshape(z, (z.shape[0], -1)) + self.shift
        table = self._tables(z)["table"]
        parts = xp.matmul(x, table.T)
        half = table.shape[0] // 2
        return parts[:, :half], parts[:, half:]

    def __call__(self, z):
        xp = array_namespace(z)
        tables = self._tables(z)
        re, im = self.visibilities(z)
        phase = xp.matmul(xp.atan2(im, re), tables["cp"].T)
        turns = xp.round((phase - tables["centre"]) / (2 * math.pi))
        blocks = [phase - 2 * math.pi * turns,  # (BH8)
                  xp.matmul(0.5 * xp.log(re * re + im * im), tables["lca"].T)]  # (BH9)
        if self.flux:
            x = self.scale * xp.reshape(z, (z.shape[0], -1)) + self.shift
            blocks.append(xp.sum(x, axis=-1, keepdims=True))  # (BH12)
        return xp.concat(blocks, axis=-1)

    def vjp(self, z, v):
        """J_G(z)^T v in closed form: z (J, n, n), v (J, m) -> (J, n, n).

        d cp/dI = sum_k +- Im(A_k/V_k),  d lca/dI = sum_k +- Re(A_k/V_k).
        """
        xp = array_namespace(z, v)
        tables = self._tables(z)
        re, im = self.visibilities(z)
        n_cp, n_lca = tables["cp"].shape[0], tables["lca"].shape[0]
        power = re * re + im * im
        a = xp.matmul(v[:, :n_cp], tables["cp"]) / power  # cotangent of the phases, over |V|^2
        b = xp.matmul(v[:, n_cp:n_cp + n_lca], tables["lca"]) / power  # cotangent of ln|V|, over |V|^2
        cotangent = xp.concat([b * re - a * im, a * re + b * im], axis=-1)
        gradient = xp.matmul(cotangent, tables["table"])
        if self.flux:
            gradient = gradient + v[:, n_cp + n_lca:]
        return xp.reshape(self.scale * gradient, z.shape)

"""The Navier-Stokes solver of the public EnKG code (devzhk/enkg-pytorch 2ee4a90), for comparisons only."""

from __future__ import annotations

import math

import numpy as np

from problems._xp import array_namespace
from problems.navier_stokes_solver import PAPER
from problems.spectral import table, transforms, wavenumbers


class OfficialSolver:
    """The solver of the public EnKG code, defects included: divergence form, Heun + Crank-Nicolson, one step for the
    whole batch.

    For reproducing official numbers and for studies of the difference; not for production. Its output is not masked,
    its rows share the adaptive step, and one bad row stops the batch with a ValueError, all as in the original. ``dt``
    is the first step, and the only one with ``adaptive=False``. Float64 input agrees with the golden values of the
    original to rounding.
    """

    def __init__(self, n, flow=PAPER, dt=1e-2, adaptive=True, fft="scipy"):
        self.n, self.flow, self.dt, self.adaptive, self.fft = n, flow, dt, adaptive, fft

    def _tables(self, like):
        n, flow = self.n, self.flow
        k1, k2 = wavenumbers(n)
        square = k1**2 + k2**2
        mask = (square <= 2 * (n / 3) ** 2).astype(float)
        mask[0, 0] = 0.0
        # first derivatives only: no Nyquist mode
        k1, k2 = np.where(abs(k1) == n / 2, 0.0, k1), np.where(k2 == n / 2, 0.0, k2)
        inverse = 1.0 / np.where(square == 0, 1.0, square)
        force = np.zeros_like(square)
        force[0, flow.k_f] = -flow.amplitude * n * n / 2
        self.d_1, self.d_2 = table(-1j * k1, like), table(-1j * k2, like)
        self.to_u, self.to_v = table(1j * k2 * inverse, like), table(-1j * k1 * inverse, like)
        self.mask, self.force = table(mask, like), table(force, like)
        self.decay = square / flow.reynolds
        self.r2c, self.c2r = transforms(like, self.fft)

    def slope(self, z):
        """F_off(z), (N4): five transforms, only the input masked."""
        z = self.mask * z
        omega, u, v = self.c2r(z), self.c2r(self.to_u * z), self.c2r(self.to_v * z)
        return self.d_1 * self.r2c(u * omega) + self.d_2 * self.r2c(v * omega) + self.force

    def step_size(self, z):
        """(N6): the smaller of an advective and a viscous bound, over grid and batch, from the unmasked state."""
        xp = array_namespace(z)
        u, v = self.c2r(self.to_u * z), self.c2r(self.to_v * z)
        speed = math.sqrt(float(xp.max(u * u + v * v)))
        if not math.isfinite(speed):
            raise ValueError("the official solver met a field that is not finite; it has no rule for a single bad row")
        h = 1.0 / self.n  # the original takes 1/n for the mesh width, not 2 pi/n
        mu = (math.sqrt(abs(self.flow.amplitude)) or 1.0) / self.flow.reynolds
        return min(h / (2.0 * speed) if speed > 0.0 else math.inf, h * h / (2.0 * mu))

    def run(self, omega):
        """(omega(T) (J, n, n), number of steps). Raises ValueError where any row is not finite."""
        xp = array_namespace(omega)
        if omega.ndim != 3 or tuple(omega.shape[1:]) != (self.n, self.n):
            raise ValueError(f"fields: got shape {tuple(omega.shape)}, expected (J, {self.n}, {self.n})")
        self._tables(omega)
        z, t, dt, count, tables = self.r2c(omega), 0.0, self.dt, 0, (None, None, None)
        with np.errstate(over="ignore", invalid="ignore"):
            if self.adaptive:
                dt = self.step_size(z)
            while t < self.flow.time:
                dt = min(dt, self.flow.time - t)
                if dt != tables[0]:
                    explicit, implicit = 1.0 - dt * self.decay / 2.0, 1.0 / (1.0 + dt * self.decay / 2.0)
                    tables = dt, table(explicit, omega), table(implicit, omega)
                _, explicit, implicit = tables
                first = self.slope(z)  # (N5)
                guess = implicit * (explicit * z + dt * first)
                z = implicit * (explicit * z + (dt / 2.0) * (first + self.slope(guess)))
                t, count = t + dt, count + 1
                if self.adaptive:
                    dt = self.step_size(z)
            out = self.c2r(z)
        if not bool(xp.all(xp.isfinite(out))):
            raise ValueError("the official solver produced values that are not finite; take a smaller dt")
        return out, count

    def __call__(self, omega):
        """omega(0) -> omega(T); see `run`."""
        return self.run(omega)[0]

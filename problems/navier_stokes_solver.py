"""Two-dimensional Navier-Stokes flow in vorticity form: the solver, its tangent and its adjoint.

(N1)  d omega/dt = - u . grad omega + nu Laplace omega + f   on the torus [0, 2 pi)^2, x along axis 0, y along axis 1
      (the last axis), u = (d_y chi, - d_x chi),  - Laplace chi = omega,  so that omega = d_x u_2 - d_y u_1  (other
      codes use the opposite sign of chi), f = - A cos(k_f y),  nu = 1/Re, Re the Reynolds number.

Discretised in Basdevant's form, integrating-factor RK4, a step count per row. The solver of the public EnKG code is
`navier_stokes_official`; the two differ by 0.3 % at 128^2 and by 9 % at 64^2: never mix them between data and
inversion without saying so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from problems._xp import array_namespace, device, to_numpy
from problems.spectral import IntegratingFactor, disc_mask, square_mask, table, transforms, wavenumbers

STEP_CAP = 4000


@dataclass(frozen=True)
class Flow:
    """Constants of (N1); the defaults are those of the public EnKG code (configs/problem/navier-stokes.yaml)."""

    reynolds: float = 200.0
    amplitude: float = 4.0
    k_f: int = 4
    time: float = 1.0


PAPER = Flow()

# ------------------------------------------------------------------------------------------------------------- equation


class Basdevant:
    """The nonlinear term in Basdevant's form, four real transforms: (N8), (N9), tangent (N13), adjoint (N14).

        u = c2r(a_u h), v = c2r(a_v h),   F(h) = b_1 r2c(u v) + b_2 r2c(v^2 - u^2) + f

    The curl of div(u u^T) is (d_xx - d_yy)(u v) + d_xy(v^2 - u^2). State, velocity and products share one mask, so
    that primal and adjoint agree; a_u, a_v, b_1, b_2 and f vanish at k = 0: the mean of omega is conserved.
    """

    def __init__(self, n, flow, mask, like, fft="scipy"):
        k1, k2 = wavenumbers(n)
        square = k1**2 + k2**2
        inverse = mask / np.where(square == 0, 1.0, square)
        force = np.zeros_like(square)
        force[0, flow.k_f] = -flow.amplitude * n * n / 2
        self.a_u, self.a_v = table(1j * k2 * inverse, like), table(-1j * k1 * inverse, like)
        self.b_1, self.b_2 = table((k1**2 - k2**2) * mask, like), table(k1 * k2 * mask, like)
        self.force, self.mask = table(force * mask, like), table(mask, like)
        self.a_u_adjoint, self.a_v_adjoint = table(-1j * k2 * inverse, like), table(1j * k1 * inverse, like)
        self.r2c, self.c2r = transforms(like, fft)

    def velocity(self, h):
        """(u, v) on the grid."""
        return self.c2r(self.a_u * h), self.c2r(self.a_v * h)

    def slope(self, q):
        """F from the velocity, (N9)."""
        u, v = q
        return self.b_1 * self.r2c(u * v) + self.b_2 * self.r2c((v - u) * (v + u)) + self.force

    def tangent(self, q, dh):
        """F'(h) dh, (N13)."""
        (u, v), (du, dv) = q, self.velocity(dh)
        return self.b_1 * self.r2c(u * dv + v * du) + self.b_2 * self.r2c(2.0 * (v * dv - u * du))

    def adjoint(self, q, g):
        """F'(h)^T g, (N14)."""
        (u, v), g_1, g_2 = q, self.c2r(self.b_1 * g), 2.0 * self.c2r(self.b_2 * g)
        return self.a_u_adjoint * self.r2c(v * g_1 - u * g_2) + self.a_v_adjoint * self.r2c(u * g_1 + v * g_2)


# ------------------------------------------------------------------------------------------------------- default solver


def step_ladder(n):
    """Allowed step counts: ceil(base 1.25^q), q of either sign, up to the cap; base 80 above 64 points, else 40.
    Exact integers.
    """
    base, rungs = (80 if n > 64 else 40), set()
    for q in range(-20, 40):
        top, bottom = base * 5 ** max(q, 0) * 4 ** max(-q, 0), 4 ** max(q, 0) * 5 ** max(-q, 0)
        rungs.add(-(-top // bottom))
    return [r for r in sorted(rungs) if r < STEP_CAP] + [STEP_CAP]


class NavierStokes:
    """omega(0) (J, n, n) -> omega(T) (J, n, n), physical units; dtype, namespace and device of the input.

    Row i of the result depends on row i alone, its step count included. A row that is not finite, too fast for the
    step cap of the rule, or blows up comes back as a row of NaN; nothing is raised and no other row changes (bitwise,
    with the scipy back-end).

    Parameters
    ----------
    n : int                        grid points per axis, even
    flow : Flow                    equation constants
    cutoff : int or None           None: the disc mask |k| <= sqrt(2) n/3; else the square mask |k_i| <= cutoff
    courant, rate_min : float      step rule (N12): n_t >= T (U_max + A T/k_f) max(k_max/courant, rate_min); the first
                                   term keeps RK4 stable, the second keeps coarse grids accurate
    steps : int or None            a fixed step count for every row (finite differences, comparisons) instead of the
                                   rule; rows are then not retried
    chunk : int or None            rows marched together; None fits the cache of a CPU core (4 at 128^2); a GPU wants
                                   hundreds
    fft : str or object            see `spectral.transforms`
    """

    def __init__(self, n, flow=PAPER, cutoff=None, courant=3.0, rate_min=15.0, steps=None, chunk=None, fft="scipy"):
        if n < 4 or n % 2:
            raise ValueError(f"n: got {n}, expected an even number of grid points per axis, at least 4")
        if not flow.k_f < n / 2:
            raise ValueError(f"n: got {n} points, expected more than twice the wavenumber of the forcing, {flow.k_f}")
        transforms(np.zeros((1, n, n)), fft)  # a back-end that is not there is refused now, not in the middle of a run
        self.n, self.flow, self.fft, self.fixed_steps = n, flow, fft, steps
        self.mask = disc_mask(n) if cutoff is None else square_mask(n, cutoff)
        self.chunk = chunk or max(1, 65536 // n**2)
        k1, k2 = wavenumbers(n)
        self.decay = (k1**2 + k2**2) / flow.reynolds
        k_max = math.floor(math.sqrt(((k1**2 + k2**2) * self.mask).max()))
        self.rate = flow.time * max(k_max / courant, rate_min)
        self.ladder = np.array(step_ladder(n))

    # ---- the three maps

    def __call__(self, omega):
        """omega(0) -> omega(T)."""
        return self._by_rows(self._march, omega)[0]

    def value_and_jvp(self, omega, direction):
        """(omega(T), D omega(T) direction), arrays (J, n, n); (N16)."""
        return self._by_rows(self._march_tangent, omega, direction)

    def value_and_vjp(self, omega, cotangent):
        """(omega(T), D omega(T)^T cotangent), arrays (J, n, n); inner products are sums over the grid.

        The exact adjoint of the discrete map at each row's own step count (which is piecewise constant and not
        differentiated), (N15). Costs three forward solves and stores one half spectrum per step and row of a chunk.
        """
        return self._by_rows(self._march_adjoint, omega, cotangent)

    def steps(self, omega):
        """Step count of each row, by (N12) or fixed, host integers (J,); 0 where the row cannot be solved."""
        xp = array_namespace(omega)
        if self.fixed_steps is not None:
            return np.where(to_numpy(xp.all(xp.isfinite(omega), axis=(1, 2))), self.fixed_steps, 0)
        speeds = []
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, omega.shape[0], self.chunk):
                rows = omega[first : min(first + self.chunk, omega.shape[0]), :, :]
                equation = Basdevant(self.n, self.flow, self.mask, rows, self.fft)
                u, v = equation.velocity(equation.r2c(rows))
                speeds.append(to_numpy(xp.max(u * u + v * v, axis=(1, 2))).astype(float) ** 0.5)
        return self.steps_for_speed(np.concatenate(speeds) if speeds else np.zeros(0))

    def steps_for_speed(self, speed):
        """(N12): smallest rung of the ladder for these maximal speeds (J,); 0 where none is large enough or the speed
        is not finite.
        """
        usable = np.isfinite(speed)
        required = self.rate * (np.where(usable, speed, 0.0) + self.flow.amplitude * self.flow.time / self.flow.k_f)
        usable &= required <= STEP_CAP
        rung = np.searchsorted(self.ladder, np.minimum(required, STEP_CAP))
        return np.where(usable, self.ladder[rung], 0)

    # ---- one chunk of rows, all with n_t steps

    def _setup(self, n_t, omega):
        equation = Basdevant(self.n, self.flow, self.mask, omega, self.fft)
        return equation, IntegratingFactor(self.decay, self.flow.time / n_t, omega), equation.mask * equation.r2c(omega)

    def _march(self, n_t, omega):
        equation, scheme, h = self._setup(n_t, omega)
        for _ in range(n_t):
            h = scheme.step(h, equation)
        return (equation.c2r(h),)

    def _march_tangent(self, n_t, omega, direction):
        equation, scheme, h = self._setup(n_t, omega)
        dh = equation.mask * equation.r2c(direction)
        for _ in range(n_t):
            h, dh = scheme.tangent(h, dh, equation)
        return equation.c2r(h), equation.c2r(dh)

    def _march_adjoint(self, n_t, omega, cotangent):
        equation, scheme, h = self._setup(n_t, omega)
        states = []
        for _ in range(n_t):
            states.append(h)
            h = scheme.step(h, equation)
        g = equation.mask * equation.r2c(cotangent)
        while states:
            g = scheme.adjoint(states.pop(), g, equation)
        return equation.c2r(h), equation.c2r(equation.mask * g)

    # ---- rows: grouped by step count, marched in chunks, retried, put back in order

    def _by_rows(self, march, omega, *others):
        xp = array_namespace(omega)
        for array in (omega, *others):
            if array.ndim != 3 or tuple(array.shape) != (omega.shape[0], self.n, self.n):
                raise ValueError(f"fields: got shape {tuple(array.shape)}, expected (J, {self.n}, {self.n})")

        def take(array, rows):
            return xp.take(array, xp.asarray(rows.astype("int32"), device=device(array)), axis=0)

        steps = self.steps(omega)
        todo = np.flatnonzero(steps)
        done, parts = [np.zeros(0, int)], []
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(3 if self.fixed_steps is None else 1):
                failed = [np.zeros(0, int)]
                for n_t in np.unique(steps[todo]):
                    group = todo[steps[todo] == n_t]
                    for first in range(0, len(group), self.chunk):
                        rows = group[first : first + self.chunk]
                        out = march(int(n_t), *(take(array, rows) for array in (omega, *others)))
                        finite = to_numpy(xp.all(xp.isfinite(out[0]), axis=(1, 2)))
                        done.append(rows[finite])
                        failed.append(rows[~finite])
                        parts.append([take(array, np.flatnonzero(finite)) for array in out])
                todo = np.concatenate(failed)
                todo = todo[2 * steps[todo] <= STEP_CAP]
                steps[todo] *= 2
        done = np.concatenate(done)
        lost = np.setdiff1d(np.arange(omega.shape[0]), done)
        blank = xp.full((len(lost), self.n, self.n), xp.nan, dtype=omega.dtype, device=device(omega))
        parts.append([blank] * (1 + len(others)))
        order = np.argsort(np.concatenate([done, lost]))
        return tuple(take(xp.concat(column, axis=0), order) for column in zip(*parts))

"""Two-dimensional Navier-Stokes flow in vorticity form: the forward model, its tangent and adjoint, and the inverse
problem.

(N1)  d omega/dt = - u . grad omega + nu Laplace omega + f   on the torus [0, 2 pi)^2, x along axis 0, y along axis 1
      (the last axis), u = (d_y chi, - d_x chi),  - Laplace chi = omega,  so that omega = d_x u_2 - d_y u_1  (other
      codes use the opposite sign of chi), f = - A cos(k_f y),  nu = 1/Re.
(N2)  G(x) = every second grid point, in both axes, of omega(T) from omega(0) = scale x.

Two discretisations: `NavierStokes` (Basdevant form, integrating-factor RK4, a step count per row) is for everything;
`OfficialSolver` reproduces the public EnKG code (devzhk/enkg-pytorch 2ee4a90) for comparisons. They differ by 0.3 % at
128^2 and by 9 % at 64^2: never mix them between data and inversion without saying so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from problems._xp import array_namespace, device, to_numpy
from problems.calibration_figure import draw_calibration
from problems.files import read_array
from problems.problem import (
    ITEM,
    OBSERVATION,
    TRUTH,
    Entry,
    Observation,
    Option,
    Problem,
    assumed_noise,
    integer,
    nonnegative,
)
from problems.spectral import (
    IntegratingFactor,
    disc_mask,
    resample,
    square_mask,
    table,
    transforms,
    wavenumbers,
)

STEP_CAP = 4000
STRIDE = 2  # observed: every second point in both axes
DATA_SOLVERS = ("same", "padded")


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
    """omega(0) (J, n, n) -> omega(T) (J, n, n), physical units; dtype, namespace and device of the input. The default
    mode.

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


# -------------------------------------------------------------------------------------------------------- parity solver


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


# ------------------------------------------------------------------------------------------------- the inverse problem


def observe(omega):
    """O: (J, n, n) -> (J, m), every second point in both axes, row by row; m = (n/2)^2."""
    return array_namespace(omega).reshape(omega[:, ::STRIDE, ::STRIDE], (omega.shape[0], -1))


def observe_adjoint(y, n):
    """O^T: (J, m) -> (J, n, n), zero between the observed points."""
    xp = array_namespace(y)
    y = xp.reshape(y, (y.shape[0], n // STRIDE, 1, n // STRIDE, 1))
    y = xp.concat((y, xp.zeros_like(y)), axis=4)
    return xp.reshape(xp.concat((y, xp.zeros_like(y)), axis=2), (y.shape[0], n, n))


def padded_observation(omega, flow):
    """G by a finer discretisation: the same start on 2n points with a true 2/3 mask, seen at the same points.

    Not exact: at n = 64 its own error against 256^2 (relative, at the observed points) was 1.1e-2, 1.1e-2 and 5.8e-3 on
    three fields, where the n-point grid itself is 4.5e-2 to 6.6e-2 off.
    """
    n = omega.shape[-1]
    fine = NavierStokes(2 * n, flow, cutoff=(2 * n - 1) // 3)(resample(omega, 2 * n))
    return observe(fine[:, ::2, ::2])


def relative_l2(x, truth):
    """||x_j - truth|| / ||truth|| of each row of x (J, n, n) -> (J,)."""
    return np.sqrt(np.sum((x - truth) ** 2, axis=(1, 2)) / np.sum(truth**2))


def navier_stokes(size=32, noise=0.0, seed=0, data_solver="same", truth=None, observation=None, steps=None,
                  fft="scipy"):
    """The inverse problem: initial vorticity from every second point of the vorticity at time 1.

    Parameters
    ----------
    size : 32, 64 or 128           grid points per axis; Reynolds number, data and scale belong to it: see
                                   `vorticity.PRESETS`
    noise : float >= 0             standard deviation of the noise on y, vorticity units. 0 leaves y clean; it is then
                                   inverted with `problem.assumed_noise` (EnKG's step does not depend on that scale)
    seed : int >= 0                number of the held-out field, and seed of the noise (a generator of its own)
    data_solver : "same" | "padded"   what makes y: the forward model itself, or a run on twice the grid, see
                                   `padded_observation`
    truth : array (n, n), path of an .npy file, or None   a field of the caller instead of the held-out one, physical
                                   units; not zero
    observation : array (m,) or (n/2, n/2), path, or None   measured data instead of simulated ones; there is then no
                                   truth unless ``truth`` is given too
    steps, fft                     see `NavierStokes`
    """
    from problems import vorticity  # here, because the data are made by the solver above

    own = vorticity.preset(size)
    n = own.n
    if not (math.isfinite(noise) and noise >= 0.0):
        raise ValueError(f"noise: got {noise}, expected a standard deviation >= 0")
    if data_solver not in DATA_SOLVERS:
        raise ValueError(f"data_solver: got {data_solver!r}, expected 'same' or 'padded'")
    if seed < 0:
        raise ValueError(f"seed: got {seed}, expected a number >= 0")
    solver = NavierStokes(n, own.flow, courant=own.courant, rate_min=own.rate_min, steps=steps, fft=fft)

    def forward(x):
        """(J, n, n) prior units -> (J, m) vorticity at time 1; a row that cannot be solved is NaN."""
        return observe(solver(x * own.scale))

    def forward_vjp(x, v):
        """(x (J, n, n), v (J, m)) -> J_G(x)^T v (J, n, n), prior units."""
        return own.scale * solver.value_and_vjp(x * own.scale, observe_adjoint(v, n))[1]

    if truth is not None:
        truth = _field("truth", truth, (n, n))
        if not np.any(truth):
            raise ValueError("truth: got zeros everywhere, expected another field: errors are relative to its norm")
    elif observation is None:
        truth = vorticity.fields(size, 1, "test", first=seed)[0].astype("float64")
    if observation is not None:
        y = _field("observation", observation, (n // STRIDE, n // STRIDE)).reshape(-1)
    else:
        start = truth[None, :, :]
        y = observe(solver(start))[0] if data_solver == "same" else padded_observation(start, own.flow)[0]
        if not np.all(np.isfinite(y)):
            raise ValueError(f"truth: got a flow whose largest speed needs more than {STEP_CAP} time steps, expected a "
                             "weaker one")
        y = y + noise * np.random.default_rng([seed, size]).standard_normal(y.shape)
    notes = _notes(own, noise, data_solver, observation is not None)
    assumed = not noise
    if assumed:
        noise = assumed_noise(y)
        notes += (" No noise was given: the data" if observation is not None else " The noise-free data") + (
            f" were inverted with an assumed noise of {noise:.3g}.")

    def moments():
        """Mean and half spectrum of the training fields, prior units."""
        mean, spectrum = vorticity.prior_moments(size)
        return mean / own.scale, spectrum / own.scale**2

    def score(ensemble):
        """Relative L2, particle mean (M1) and ensemble mean (M2), beside what no data would score.

        The prior sample's entry is the root of its mean square under the Gaussian with the prior's moments.
        """
        if truth is None:
            return {}
        rows = ensemble[np.all(np.isfinite(ensemble), axis=(1, 2))].astype("float64")
        mean, spectrum = vorticity.prior_moments(size)
        distance = np.sum((truth - mean) ** 2)
        variance = vorticity.total_variance(spectrum)
        return {
            "relative_l2_particles": float(relative_l2(rows, truth).mean()),
            "relative_l2_mean": float(relative_l2(rows.mean(axis=0)[None], truth)[0]),
            "relative_l2_zero_field": 1.0,
            "relative_l2_prior_mean": float(np.sqrt(distance / np.sum(truth**2))),
            "relative_l2_prior_sample": float(np.sqrt((distance + variance) / np.sum(truth**2))),
        }

    return Problem(
        name=f"navier-stokes-{n}",
        event_shape=(n, n),
        forward=forward,
        observation=Observation(y, noise, noise_is_assumed=assumed),
        scale=own.scale,
        units="vorticity (box 2 pi, time unit = observation time)",
        truth=truth,
        forward_vjp=forward_vjp,
        prior=own.prior,
        moments=moments,
        known={"prior mean": vorticity.prior_moments(size)[0]},
        defaults={"particles": 256, "steps": 40, "guidance": 2.0, "updates": 2},
        score=score,
        figure=_figure,
        notes=notes,
    )


def _field(name, host, shape):
    """``host``, an array or the path of an .npy file, as a finite float64 array of this shape; else ValueError."""
    host = read_array(host, name)
    if host.shape not in (shape, (math.prod(shape),)):
        raise ValueError(f"{name}: got shape {host.shape}, expected {shape}")
    return host.reshape(shape)


def _notes(own, noise, data_solver, measured):
    made = {"same": "by the forward model itself",
            "padded": f"by a run on {2 * own.n} x {2 * own.n} points (itself about 1 % off, at size 64)"}
    parts = [
        f"{own.n} x {own.n} grid points, Re = {own.flow.reynolds:g}; the paper uses 128 x 128, Re = 200.",
    ]
    if measured:
        parts.append("The observation was given by the caller.")
    else:
        parts.append("The held-out fields are stand-ins, Gaussian random fields evolved for five time units; the "
                     "paper's data are not public.")
        parts.append(f"The observation was made {made[data_solver]}, noise {noise:g}.")
    if own.prior is None:
        parts.append("No prior is shipped for this size: train one with python -m onnx_priors.training.navier_stokes "
                     f"--size {own.n}, or use --prior gaussian.")
    return " ".join(parts)


def _figure(result):
    """Truth, observation (unobserved points grey), mean, error and spread; below, particles and, where the truth is
    known, the calibration of the spread. ``result`` holds physical units.
    """
    import textwrap

    from matplotlib.figure import Figure

    mean, spread, truth = np.asarray(result["mean"]), np.asarray(result["std"]), result.get("truth")
    n = mean.shape[-1]
    seen = np.full((n, n), np.nan)
    seen[::STRIDE, ::STRIDE] = np.reshape(result["observation"], (n // STRIDE, n // STRIDE))
    panels = [("observation at time 1", seen), ("mean", mean), ("spread", spread)]
    if truth is not None:
        truth = np.asarray(truth)
        panels = [("truth", truth), *panels[:2], ("error (mean - truth)", mean - truth), panels[2]]
    ensemble = np.asarray(result["ensemble"])
    particles = [(f"particle {j}", ensemble[j]) for j in range(min(3, len(ensemble)))]
    top = float(np.nanmax(np.abs(seen if truth is None else truth)))
    figure = Figure(figsize=(3.2 * len(panels), 6.4), layout="constrained")
    axes = figure.subplots(2, len(panels))
    for axis, (title, image) in zip([*axes[0], *axes[1]], [*panels, *particles]):
        axis.set_facecolor("0.8")
        limits = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if title != "spread" else {"cmap": "viridis", "vmin": 0}
        drawn = axis.imshow(image.T, origin="lower", interpolation="nearest", **limits)
        figure.colorbar(drawn, ax=axis, shrink=0.75)
        axis.set(title=title, xticks=[], yticks=[])
    rest = list(axes[1][len(particles):])
    if "calibration" in result:
        draw_calibration(rest.pop(0), rest.pop(0), result["calibration"])
    for axis in rest:
        axis.set_axis_off()
    sentences = [*result.get("caption", ()), "x to the right, y upwards."]
    words = [line for sentence in sentences for line in textwrap.wrap(sentence, 200)]
    figure.text(0.5, -0.01, "\n".join(words), ha="center", va="top", fontsize=8)
    return figure


def build(size=32, noise=0.0, item=0, truth=None, observation=None, data_solver="same", fft="scipy"):
    """Problem ``item`` of a size: the held-out field and the noise of that number, see `navier_stokes`."""
    return navier_stokes(size, noise, item, data_solver, truth, observation, fft=fft)


ENTRY = Entry(
    build, "initial vorticity from a later, sparse, noisy one: --size 32, 64 or 128",
    (Option("size", integer, "grid points per axis: 32 (Reynolds number 50), 64 or 128 (Reynolds number 200)", 32),
     Option("data_solver", str, "what makes the data: same (the forward model) or padded (a run on twice the grid)",
            "same", DATA_SOLVERS, data="simulated"),
     Option("fft", str, "scipy, ducc0 or pyfftw; the last two need the extra fast", "scipy"),
     Option("noise", nonnegative, "standard deviation of the data; 0 inverts them with an assumed 2 % of theirs", 0.0),
     ITEM, OBSERVATION, TRUTH))

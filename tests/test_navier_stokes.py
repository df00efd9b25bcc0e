"""The Navier-Stokes solvers against closed forms, orders of accuracy, symmetries and golden values; (N1)-(N12)."""

import numpy as np
import pytest

from problems import vorticity
from problems.navier_stokes_official import OfficialSolver
from problems.navier_stokes_solver import PAPER, Basdevant, Flow, NavierStokes
from problems.spectral import IntegratingFactor, disc_mask, resample, square_mask, table, wavenumbers

UNFORCED = Flow(amplitude=0.0)


def grid(n):
    return np.meshgrid(*2 * [2 * np.pi * np.arange(n) / n], indexing="ij")


def n7(n):
    """The deterministic field (N7), (1, n, n) float64."""
    x, y = grid(n)
    return (4 * np.sin(x) * np.cos(2 * y) + 3 * np.cos(3 * x + y) - 2 * np.sin(2 * x - 3 * y) + 1.5 * np.cos(5 * y -
    x))[None]


def relative(a, b):
    """||a_j - b_j|| / ||b_j|| of each row."""
    return np.sqrt(((a - b) ** 2).sum((1, 2)) / (b**2).sum((1, 2)))


def points(omega):
    n = omega.shape[-1]
    at = [(0, 0), (n // 4, n // 8), (n // 2, 3 * n // 4), (3 * n // 8, n // 2)]
    return np.array([np.sqrt((omega**2).mean())] + [omega[0, i, j] for i, j in at])


# ------------------------------------------------------------------------------------------------ exact solutions


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 5e-6)])
@pytest.mark.parametrize("n", [32, 64])
def test_forced_flow_from_rest_is_laminar_and_grows_as_the_closed_form(n, dtype, tolerance):
    y = grid(n)[1]
    amplitude = -PAPER.amplitude * PAPER.reynolds / 16 * -np.expm1(-16 / PAPER.reynolds)
    assert abs(amplitude - -3.844183) < 1e-6
    out = NavierStokes(n, steps=40)(np.zeros((1, n, n), dtype))
    assert np.abs(out[0] - amplitude * np.cos(4 * y)).max() < tolerance * abs(amplitude)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("k", [(1, 0), (3, 2), (-2, 5), (5, 5)])
def test_a_single_mode_decays_with_its_viscous_rate(k, dtype, tolerance):
    n = 32
    x, y = grid(n)
    omega = (1.7 * np.cos(k[0] * x + k[1] * y + 0.3))[None].astype(dtype)
    exact = omega * np.exp(-(k[0] ** 2 + k[1] ** 2) / PAPER.reynolds)
    assert relative(NavierStokes(n, UNFORCED, steps=40)(omega), exact)[0] < tolerance


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_taylor_green_vortices_decay_with_twice_the_squared_wavenumber(k, dtype, tolerance):
    n = 32
    x, y = grid(n)
    omega = (2 * k * np.cos(k * x) * np.cos(k * y))[None].astype(dtype)
    out = NavierStokes(n, UNFORCED, steps=40)(omega)
    assert relative(out, omega * np.exp(-2 * k * k / PAPER.reynolds))[0] < tolerance


# ---------------------------------------------------------------------------------------------- algebra of the form


@pytest.mark.parametrize("n", [32, 64])
def test_the_velocity_has_the_masked_vorticity_as_its_curl_and_no_divergence(n):
    omega = np.random.default_rng(0).standard_normal((2, n, n))
    equation = Basdevant(n, PAPER, disc_mask(n), omega)
    k1, k2 = wavenumbers(n)
    u, v = (np.fft.rfft2(q) for q in equation.velocity(equation.r2c(omega)))
    masked = np.fft.rfft2(omega) * disc_mask(n) * ((k1 != 0) | (k2 != 0))
    assert np.abs(1j * k1 * v - 1j * k2 * u - masked).max() < 1e-13 * np.abs(masked).max()
    assert np.abs(1j * k1 * u + 1j * k2 * v).max() < 1e-13 * np.abs(masked).max()


def test_the_mean_is_conserved_and_a_constant_passes_through():
    omega = n7(32)
    solve = NavierStokes(32, steps=40)
    out = solve(omega)
    assert abs(out.mean() - omega.mean()) < 1e-13
    assert np.abs(solve(omega + 0.7) - (out + 0.7)).max() < 1e-13 * np.abs(out).max()


def test_a_square_two_thirds_mask_conserves_enstrophy_and_energy_and_the_disc_does_not():
    n = 64
    omega = vorticity.bench16(n)[:1]
    defect = {}
    for name, mask in (("square", square_mask(n, (n - 1) // 3)), ("disc", disc_mask(n))):
        equation = Basdevant(n, UNFORCED, mask, omega)
        h = equation.mask * equation.r2c(omega)
        slope = equation.c2r(equation.slope(equation.velocity(h)))
        omega_m, squares = equation.c2r(h), np.add.outer(np.fft.fftfreq(n, 1 / n) ** 2, np.arange(n // 2 + 1.0) ** 2)
        squares[0, 0] = 1.0
        chi = equation.c2r(h / squares)
        defect[name] = [abs((a * slope).sum()) / np.sqrt((a**2).sum() * (slope**2).sum()) for a in (omega_m, chi)]
    assert max(defect["square"]) < 1e-14
    assert defect["disc"][0] > 1e-6


def test_the_nonlinear_term_of_both_forms_has_its_golden_values():
    for n in (32, 64):
        omega = n7(n)
        basdevant, official = Basdevant(n, PAPER, disc_mask(n), omega), OfficialSolver(n)
        official._tables(omega)
        for slope in (basdevant.slope(basdevant.velocity(basdevant.r2c(omega))), official.slope(official.r2c(omega))):
            slope = slope[0] / n**2
            for k, value in (((2, 3), 1.05j), ((4, 3), -0.75j), ((0, 4), -2.0), ((1, 1), 0.0), ((3, 1), 0.0)):
                assert abs(slope[k] - value) < 1e-12


# ----------------------------------------------------------------------------------------------------- golden values

OFFICIAL = [  # n, dt (None: adaptive), steps, rms, p1 .. p4
    (32, None, 165, 4.192826529693, 3.1835237012, 4.5758371859, -3.2098399061, -3.8153863770),
    (32, 4e-3, 250, 4.192818661885, 3.1831920707, 4.5749016544, -3.2098828927, -3.8153458527),
    (32, 2e-3, 500, 4.192813197983, 3.1829699935, 4.5742715342, -3.2098894454, -3.8153194515),
    (64, None, 339, 4.065600326076, 2.5202530464, 4.6083583542, -3.5216469327, -3.6833968810),
    (64, 4e-3, 250, 4.065601107745, 2.5204160124, 4.6083681460, -3.5216819251, -3.6834109359),
    (64, 2e-3, 500, 4.065600183798, 2.5201698644, 4.6083643640, -3.5216343256, -3.6833867777),
    (128, None, 678, 4.060161030707, 2.4202143052, 4.6758223395, -3.5327789071, -3.6395862239),
    (128, 4e-3, 250, 4.060160498940, 2.4204239559, 4.6757633312, -3.5328021953, -3.6395856088),
    (128, 2e-3, 500, 4.060160951274, 2.4202441299, 4.6758156850, -3.5327826974, -3.6395859194),
]
DEFAULT = [  # n, steps, rms, p1 .. p4
    (32, 100, 4.069187709623, 2.3905940667, 4.6747999972, -3.6893401881, -3.5781597743),
    (64, 50, 4.060368112565, 2.3935506840, 4.5892478950, -3.5811562943, -3.6161130814),
    (64, 100, 4.060368133944, 2.3935695593, 4.5892624518, -3.5811572839, -3.6161131064),
    (128, 50, 4.060155547465, 2.4216286947, 4.6772392941, -3.5331356639, -3.6378390368),
    (128, 100, 4.060155561085, 2.4216410141, 4.6772455791, -3.5331357801, -3.6378391934),
]


@pytest.mark.parametrize("n, dt, steps, golden", [(*row[:3], row[3:]) for row in OFFICIAL])
def test_the_official_solver_reproduces_the_values_and_step_counts_of_the_original(n, dt, steps, golden):
    out, count = (OfficialSolver(n) if dt is None else OfficialSolver(n, dt=dt, adaptive=False)).run(n7(n))
    assert count == steps
    assert np.abs(points(out) / golden - 1).max() < 1e-9


@pytest.mark.parametrize("n, first", [(32, 6.622830583257e-3), (64, 3.292309985770e-3), (128, 1.644348124093e-3)])
def test_the_official_first_adaptive_step_is_reproduced(n, first):
    solver = OfficialSolver(n)
    solver._tables(n7(n))
    assert abs(solver.step_size(solver.r2c(n7(n))) / first - 1) < 1e-11


@pytest.mark.parametrize("n, steps, golden", [(*row[:2], row[2:]) for row in DEFAULT])
def test_the_default_solver_reproduces_its_golden_values(n, steps, golden):
    assert np.abs(points(NavierStokes(n, steps=steps)(n7(n))) / golden - 1).max() < 1e-9


# ---------------------------------------------------------------------------------------------------------- accuracy


@pytest.mark.parametrize("n, first, expected", [(64, 80, [2.4e-4, 1.5e-5, 9.6e-7]),
                                                (128, 100, [7.2e-5, 4.6e-6, 2.9e-7])])
def test_the_integrating_factor_scheme_converges_with_order_four(n, first, expected):
    omega = vorticity.bench16(n)[:1]
    runs = [NavierStokes(n, steps=first * factor)(omega) for factor in (1, 2, 4, 8)]
    errors = [relative(a, b)[0] for a, b in zip(runs, runs[1:])]
    assert np.allclose(errors, expected, rtol=0.05)
    assert np.abs(np.log2(np.array(errors[:-1]) / errors[1:]) - 4).max() < 0.1


def test_the_official_scheme_converges_with_order_two():
    omega = vorticity.bench16(64)[:1]
    runs = [OfficialSolver(64, dt=1 / steps, adaptive=False)(omega) for steps in (400, 800, 1600, 3200)]
    errors = [relative(a, b)[0] for a, b in zip(runs, runs[1:])]
    assert np.allclose(errors, [6.2e-4, 1.5e-4, 3.9e-5], rtol=0.05)
    assert np.abs(np.log2(np.array(errors[:-1]) / errors[1:]) - 2).max() < 0.05


def test_float32_rounding_does_not_grow_with_the_step_count_because_the_decay_is_written_with_expm1(monkeypatch):
    """One field of four: they have 1.5e-6 .. 2.0e-6, and 2.0e-5 .. 2.4e-5 with E h."""
    omega = vorticity.bench16(128)[:1].astype("float32")
    solve = NavierStokes(128, steps=640)
    exact = solve(omega.astype("float64"))
    assert relative(solve(omega), exact).max() < 5e-6

    def step(self, h, equation):  # the same scheme with E h in place of h + (E - 1) h
        return plain(self, h, equation) - h - self.shrink * h + self.carry[1.0] * h

    plain = IntegratingFactor.step
    monkeypatch.setattr(IntegratingFactor, "step", step)
    assert relative(solve(omega), exact).max() > 1.5e-5


def test_the_step_rule_gives_the_published_step_lists_from_the_speeds():
    speeds = np.array([3.365, 3.775, 3.659, 4.121, 4.270, 4.596, 3.386, 3.431, 4.205, 3.506, 3.704, 3.875, 3.214,
                       4.400, 4.159, 3.609])
    assert np.array_equal(NavierStokes(128).steps(vorticity.bench16()), NavierStokes(128).steps_for_speed(speeds))
    rule = NavierStokes(128).steps_for_speed(speeds)
    assert np.array_equal(np.flatnonzero(rule == 125), [3, 4, 5, 8, 13, 14])
    assert np.count_nonzero(rule == 100) == 10
    precise = NavierStokes(128, courant=2.5).steps_for_speed(speeds)
    assert np.array_equal(np.flatnonzero(precise == 157), [4, 5, 13])
    assert np.count_nonzero(precise == 125) == 13


def test_the_step_ladder_is_the_published_one():
    assert [r for r in NavierStokes(128).ladder if r >= 21] == [
        21, 27, 33, 41, 52, 64, 80, 100, 125, 157, 196, 245, 306, 382, 477, 597, 746, 932, 1165, 1456, 1819, 2274, 2843,
        3553, 4000]
    assert [r for r in NavierStokes(64).ladder if r >= 21] == [
        21, 26, 32, 40, 50, 63, 79, 98, 123, 153, 191, 239, 299, 373, 466, 583, 728, 910, 1137, 1422, 1777, 2221, 2776,
        3470, 4000]


@pytest.mark.parametrize("n, limit", [(64, 4.1e-4), (128, 1e-4)])
def test_the_step_rule_keeps_the_time_error_below_the_official_one(n, limit):
    """All sixteen at 64^2, six at 128^2 (three of the fastest, three others: the sixteen would take ten seconds)."""
    omega = vorticity.bench16(n) if n == 64 else vorticity.bench16(n)[:6]
    error = relative(NavierStokes(n)(omega.astype("float32")), NavierStokes(n, steps=250)(omega))
    assert np.sqrt((error**2).mean()) < limit


@pytest.fixture(scope="module")
def reference():
    """omega(1) of the first four fields, 256 x 256, float64, 400 steps, mask |k_i| <= 85."""
    return NavierStokes(256, cutoff=85, steps=400)(resample(vorticity.bench16()[:4], 256))


@pytest.mark.slow
@pytest.mark.parametrize("n, limit", [(64, 6.5e-2), (128, 2.2e-3)])
def test_the_total_error_at_the_observed_points_is_that_of_the_grid(reference, n, limit):
    """Over four of the sixteen fields: their references at 256^2 take five seconds each."""
    out = NavierStokes(n)(vorticity.bench16(n)[:4].astype("float32"))
    start = resample(vorticity.bench16(n)[:4], 256)
    exact = reference if n == 128 else NavierStokes(256, cutoff=85, steps=400)(start)
    error = relative(out[:, ::2, ::2], exact[:, :: 512 // n, :: 512 // n])
    assert np.sqrt((error**2).mean()) < limit


@pytest.mark.slow
def test_a_padded_run_is_ten_times_nearer_to_the_reference(reference):
    out = resample(NavierStokes(240, cutoff=79, steps=160)(resample(vorticity.bench16()[:4], 240)), 256)
    error = relative(out[:, ::4, ::4], reference[:, ::4, ::4])
    assert np.sqrt((error**2).mean()) < 3e-4


# --------------------------------------------------------------------------------------------------------- symmetries


def shift_x(w):
    return np.roll(w, 5, axis=1)


def shift_y(w):
    return np.roll(w, w.shape[-1] // 4, axis=2)


def turn(w):
    return np.roll(w[:, ::-1, ::-1], 1, axis=(1, 2))


def reflect(w, shift=True):
    """-omega(-x, y + n/8 points)."""
    return -np.roll(np.roll(w[:, ::-1, :], 1, axis=1), -(w.shape[-1] // 8) if shift else 0, axis=2)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("symmetry", [shift_x, shift_y, turn, reflect])
def test_the_solver_commutes_with_the_symmetries_of_the_forced_flow(symmetry, dtype, tolerance):
    omega, solve = vorticity.bench16(64)[:1].astype(dtype), NavierStokes(64, steps=80)
    assert relative(solve(symmetry(omega)), symmetry(solve(omega)))[0] < tolerance


@pytest.mark.parametrize("broken", [lambda w: np.roll(w, 1, axis=2), lambda w: reflect(w, shift=False)])
def test_the_solver_does_not_commute_with_what_is_no_symmetry(broken):
    omega, solve = vorticity.bench16(64)[:1], NavierStokes(64, steps=80)
    assert relative(solve(broken(omega)), broken(solve(omega)))[0] > 1e-2


def test_resampling_to_a_finer_grid_and_back_is_the_identity_on_resolved_fields():
    omega = n7(32)
    assert np.abs(resample(omega, 64) - n7(64)).max() < 1e-12
    assert np.abs(resample(resample(omega, 64), 32) - omega).max() < 1e-12


def test_tables_take_the_complex_width_of_the_field():
    assert table(np.eye(2), np.zeros((1, 2, 2), "float32")).dtype == np.complex64
    assert table(np.eye(2), np.zeros((1, 2, 2))).dtype == np.complex128

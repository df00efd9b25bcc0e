"""Rows are independent, bad rows are flagged and harmless, every array back-end and every FFT agrees."""

import numpy as np
import pytest
import scipy.fft
from test_navier_stokes import n7, relative

from problems import vorticity
from problems.navier_stokes_official import OfficialSolver
from problems.navier_stokes_solver import NavierStokes

STRICTEST_EXTENSIONS = ("fft",)


@pytest.fixture(scope="module")
def mixed():
    """Seven float32 fields with three different step counts."""
    omega = vorticity.bench16(64)[:7].astype("float32")
    return omega * np.array([1, 0.4, 1, 2, 0.4, 1, 2], "float32")[:, None, None]


def test_a_row_alone_equals_the_row_in_the_batch_bitwise_whatever_the_chunk(mixed):
    together = NavierStokes(64)(mixed)
    assert len(set(NavierStokes(64).steps(mixed))) >= 3
    for chunk in (1, 3, 5, 7):
        assert np.array_equal(NavierStokes(64, chunk=chunk)(mixed), together)
    for row in (0, 3, 6):
        assert np.array_equal(NavierStokes(64)(mixed[row : row + 1])[0], together[row])
    assert np.array_equal(NavierStokes(64)(mixed[::-1])[::-1], together)


def test_the_official_solver_couples_its_rows_through_the_step():
    omega = np.concatenate([n7(32), 5 * n7(32)])
    assert relative(OfficialSolver(32)(omega)[:1], OfficialSolver(32)(omega[:1]))[0] > 1e-5


def test_bad_rows_come_back_as_nan_and_leave_the_others_bitwise_alone(mixed):
    bad = mixed.copy()
    bad[1], bad[2, 3, 4], bad[4], bad[5] = np.nan, np.inf, 1000 * mixed[4], 1e30 * mixed[5]
    good = [0, 3, 6]
    out = NavierStokes(64)(bad)
    assert np.all(np.isnan(out[[1, 2, 4, 5]]))
    assert np.array_equal(out[good], NavierStokes(64)(mixed)[good])
    _, gradient = NavierStokes(64)(bad), NavierStokes(64).value_and_vjp(bad, np.ones_like(bad))[1]
    assert np.all(np.isnan(gradient[[1, 2, 4, 5]])) and np.all(np.isfinite(gradient[good]))


def test_a_row_fifty_times_too_large_blows_up_at_fixed_steps_and_is_flagged(mixed):
    bad = mixed.copy()
    bad[2] = 50 * mixed[2]
    solve = NavierStokes(64, steps=80)
    out = solve(bad)
    assert np.all(np.isnan(out[2]))
    assert np.array_equal(np.delete(out, 2, axis=0), np.delete(solve(mixed), 2, axis=0))


def test_a_batch_of_bad_rows_and_an_empty_batch_are_answered():
    assert np.all(np.isnan(NavierStokes(16)(np.full((2, 16, 16), np.nan))))
    assert NavierStokes(16)(np.zeros((0, 16, 16), "float32")).shape == (0, 16, 16)


def test_rows_that_blow_up_are_repeated_with_more_steps():
    omega = vorticity.bench16(128)[::2].astype("float32")
    loose = NavierStokes(128, courant=5.5, rate_min=0.0)
    at_once = NavierStokes(128, steps=int(loose.steps(omega).max()))(omega)
    assert np.any(np.isnan(at_once))  # without a second try
    out = loose(omega)
    assert relative(out, NavierStokes(128)(omega)).max() < 1e-3


def test_a_field_of_the_wrong_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"fields: got shape \(1, 16, 16\), expected \(J, 32, 32\)"):
        NavierStokes(32)(np.zeros((1, 16, 16)))
    with pytest.raises(ValueError, match="got 33"):
        NavierStokes(33)
    with pytest.raises(ValueError, match="fft: got .*, expected scipy, ducc0, pyfftw or"):
        NavierStokes(16, fft="fftw9")(np.zeros((1, 16, 16)))


class Counting:
    """scipy.fft with a count of transformed fields."""

    def __init__(self):
        self.fields = 0

    def rfftn(self, x, axes):
        self.fields += x.shape[0]
        return scipy.fft.rfftn(x, axes=axes)

    def irfftn(self, h, s, axes):
        self.fields += h.shape[0]
        return scipy.fft.irfftn(h, s=s, axes=axes)


def test_a_step_costs_sixteen_transforms_and_its_adjoint_thirty():
    """Beside the steps one transform at either end, of the cotangent too, and three for the step rule."""
    omega = n7(32)
    for steps in (10, None):
        fft = Counting()
        solve = NavierStokes(32, steps=steps, fft=fft)
        n_t, rule = int(solve.steps(omega)[0]), 3 if steps is None else 0
        fft.fields = 0
        solve(omega)
        assert fft.fields == 16 * n_t + 2 + rule
        fft.fields = 0
        solve.value_and_vjp(omega, omega)
        assert fft.fields == (16 + 30) * n_t + 4 + rule


@pytest.mark.parametrize("fft", ["ducc0", "pyfftw"])
def test_the_fast_transforms_agree_with_scipy(fft):
    pytest.importorskip(fft)
    omega = vorticity.bench16(128)[:4].astype("float32")
    fast = NavierStokes(128, steps=80, fft=fft)
    assert relative(fast(omega), NavierStokes(128, steps=80)(omega)).max() < 1e-5
    assert relative(fast(omega[:1]), fast(omega)[:1])[0] < 1e-5
    assert fast(omega).dtype == np.float32


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 1e-4)])
def test_every_array_back_end_gives_the_numpy_result_in_its_own_type(backend, dtype, tolerance):
    if dtype == "float64" and not backend.float64:
        pytest.skip("device without float64")
    # one of the back-ends is numpy with read-only arrays: nothing is written into an input
    host = np.concatenate([n7(16), 0.2 * n7(16), np.full((1, 16, 16), np.nan)]).astype(dtype)
    weight = np.random.default_rng(0).standard_normal(host.shape).astype(dtype)
    solve = NavierStokes(16, courant=3.0, rate_min=3.0)
    omega, cotangent = backend.array(host), backend.array(weight)
    before, other = backend.numpy(omega).copy(), backend.numpy(cotangent).copy()
    for out, expected in ((solve(omega), solve(host)),
                          *zip(solve.value_and_vjp(omega, cotangent), solve.value_and_vjp(host, weight)),
                          *zip(solve.value_and_jvp(omega, cotangent), solve.value_and_jvp(host, weight))):
        assert out.dtype == omega.dtype and type(out) is type(omega)
        assert getattr(out, "device", None) == getattr(omega, "device", None)
        assert relative(backend.numpy(out)[:2], expected[:2]).max() < tolerance
        assert np.all(np.isnan(backend.numpy(out)[2]))
    assert np.array_equal(backend.numpy(omega), before, equal_nan=True)
    assert np.array_equal(backend.numpy(cotangent), other)


def test_the_official_solver_runs_on_every_back_end(backend):
    dtype = "float64" if backend.float64 else "float32"
    out, steps = OfficialSolver(16).run(backend.array(n7(16), dtype))
    expected, count = OfficialSolver(16).run(n7(16).astype(dtype))
    assert steps == count
    assert relative(backend.numpy(out), expected)[0] < (1e-10 if backend.float64 else 1e-4)


def test_the_official_solver_stops_on_a_bad_row_as_the_original_does():
    with pytest.raises(ValueError, match="not finite"):
        OfficialSolver(16)(np.full((1, 16, 16), np.nan))
    with pytest.raises(ValueError, match="smaller dt"):
        OfficialSolver(64, adaptive=False)(20 * n7(64))

"""What composes around the method: the tempered step against its written formula, named denoisers, absurd rows."""

import math

import numpy as np
import pytest

from enkg_ref import Gaussian, Preset, member_normals
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.extensions import TemperedEnKG, finite, plausible

RNG = np.random.default_rng(90)
H, Y = RNG.standard_normal((3, 5)), RNG.standard_normal(3)
FACTOR = RNG.standard_normal((3, 3))
GAMMA = FACTOR @ FACTOR.T + 0.5 * np.eye(3)
PRESET = Preset(steps=6, window=(2, 4), sigma_max=5.0).but(updates=3)


def forward(x):
    return np.tanh(x @ H.T)


def tempered(seed, likelihood=None):
    return TemperedEnKG(lambda x, s: x / (1.0 + s * s), likelihood or Gaussian(Y, GAMMA), PRESET.sigmas, PRESET.window,
                        PRESET.config, seed=seed)


def written(x, g, h, xi):
    """x_j + C_xy (C_yy + Gamma/h)^-1 (y + eta_j - g_j),  eta_j = L xi_j/sqrt(h),  Gamma = L L', row by row."""
    C_xy = (x - x.mean(0)).T @ (g - g.mean(0)) / len(x)
    C_yy = (g - g.mean(0)).T @ (g - g.mean(0)) / len(x)
    L, moved = np.linalg.cholesky(GAMMA), []
    for x_j, g_j, xi_j in zip(x, g, xi):
        eta = L @ xi_j / math.sqrt(h)
        moved.append(x_j + C_xy @ np.linalg.solve(C_yy + GAMMA / h, Y + eta - g_j))
    return np.array(moved)


@pytest.mark.parametrize("J", [2, 3, 12])  # the smaller of an m x m and a J x J system is solved
def test_every_tempered_step_is_the_written_one_with_draws_of_its_own(J):
    run = tempered(seed=7)
    state, number = run.init(np.random.default_rng(91).standard_normal((J, 5))), 0
    h = 1.0 / 9.0  # three updates at three levels
    while not run.done(state):
        g = forward(run.ask(state))
        xi = member_normals(7, 1 + number, J, (3,))
        after, info = run.tell(state, g)
        np.testing.assert_allclose(info.x_new, written(state.x, g, h, xi), rtol=0.0, atol=1e-12)
        assert (info.level, info.update) == (2 + number // 3, number % 3) and info.correction.step == h
        state, number = after, number + 1
    assert number == 9


def test_the_draws_of_a_tempered_step_depend_on_the_seed_and_keep_to_their_rows():
    x = np.random.default_rng(92).standard_normal((6, 5))
    run, other = tempered(seed=1), tempered(seed=2)
    state = run.init(x)
    g = forward(run.ask(state))
    assert np.abs(run.tell(state, g)[1].x_new - other.tell(state, g)[1].x_new).max() > 0.01
    g[2, 1] = np.nan
    alive = np.arange(6) != 2
    moved = run.tell(state, g)[1].x_new
    xi = member_normals(1, 1, 6, (3,))[alive]
    expected = written(state.x[alive], g[alive], 1.0 / 9.0, xi)
    np.testing.assert_allclose(moved[alive], expected, rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(moved[2], state.x[2] + (expected - state.x[alive]).mean(0), rtol=0.0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:more than 5 %")
def test_a_tempered_step_foretells_nothing_and_its_k_is_no_number():
    run = tempered(seed=1)
    state = run.init(np.random.default_rng(93).standard_normal((6, 5)))
    _, info = run.tell(state, forward(run.ask(state)))
    memory, line = observe(Memory(), info, run.likelihood)
    assert memory.expected is None and math.isnan(line["norm_k"]) and not line["skipped"]


def test_a_denoiser_that_is_not_finite_is_named_with_its_row_and_its_noise_level():
    denoise = finite(lambda x, s: np.where(np.arange(len(x))[:, None] == 1, np.inf, x) if s > 2.0 else x / s)
    np.testing.assert_array_equal(denoise(np.ones((3, 2)), 2.0), np.full((3, 2), 0.5))
    with pytest.raises(FloatingPointError, match="denoise: row 1 is not finite at sigma = 2.5, expected finite"):
        denoise(np.ones((3, 2)), 2.5)


def test_a_row_with_ten_thousand_times_the_median_misfit_has_failed_and_one_with_less_has_not():
    likelihood = Gaussian([0.0, 0.0], 1.0)
    # misfits 2 (median and number of data), except the last row's
    for size, lost in ((1.01e4, True), (0.99e4, False)):
        g = np.array([[1.0, 1.0]] * 5 + [[math.sqrt(2.0 * size), 0.0]])
        judged = plausible(lambda x, g=g: g, likelihood)(np.zeros((6, 3)))
        assert np.isnan(judged[5]).all() == lost
        assert np.array_equal(judged[:5], g[:5]) and (lost or np.array_equal(judged, g))


def test_half_of_the_rows_always_stay_plausible_and_rows_that_failed_already_are_left_alone():
    likelihood = Gaussian([0.0], 1.0)
    g = np.array([[1e9], [2e9], [1.0], [np.nan]])
    judged = plausible(lambda x: g, likelihood)(np.zeros((4, 1)))
    assert np.array_equal(judged, g, equal_nan=True)  # the median is 1e18
    assert np.isnan(plausible(lambda x: np.full((4, 1), np.nan), likelihood)(np.zeros((4, 1)))).all()

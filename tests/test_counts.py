"""Sequential forward calls and denoiser calls per particle of the released settings: exact integers, from real runs."""

import dataclasses
import math

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref import PRESETS, Config, EnKG, Gaussian, correct, ensemble, frobenius, guided_window, iterate, solve

NOMINAL = dataclasses.replace(PRESETS["navier-stokes-official"], window=guided_window(80, 0.05, 0.05, "nominal"))
NOMINAL_BLACK_HOLE = dataclasses.replace(PRESETS["black-hole-official"], window=guided_window(80, 0.1, 0.1, "nominal"))
TABLE = [  # settings, J, guided levels, forward calls, denoiser calls, their products with J
    (PRESETS["navier-stokes-official"], 2048, 71, 142, 1588, 290_816, 3_252_224),
    (NOMINAL, 2048, 72, 144, 1628, 294_912, 3_334_144),
    (PRESETS["ffhq-official"], 1024, 71, 142, 1588, 145_408, 1_626_112),
    (PRESETS["black-hole-official"], 1024, 63, 63, 749, 64_512, 766_976),
    (NOMINAL_BLACK_HOLE, 1024, 64, 64, 768, 65_536, 786_432),
    (PRESETS["inversebench"], 2048, 79, 158, 958, 323_584, 1_961_984),
]
ROWS = pytest.mark.parametrize("config, J, levels, forward, denoiser, total_forward, total_denoiser", TABLE)


class Dummy:
    """Counts the calls of two maps so small that a run of 80 levels is cheap."""

    def __init__(self):
        self.calls = {"forward": 0, "denoiser": 0}
        self.rows = {"forward": 0, "denoiser": 0}

    def note(self, name, x):
        self.calls[name] += 1
        self.rows[name] += x.shape[0]

    def denoise(self, x, sigma):
        self.note("denoiser", x)
        return x / (1.0 + sigma * sigma)

    def forward(self, x):
        self.note("forward", x)
        return x[:, :1] + 0.1 * x[:, 1:]


def tiny_run(config, J=3):
    dummy = Dummy()
    config = dataclasses.replace(config, particles=J, guidance=0.1)
    state = solve(EnKG(dummy.denoise, Gaussian([0.5]), config), dummy.forward,
                  np.random.default_rng(0).standard_normal((J, 2)))
    return dummy, state


@ROWS
def test_a_real_run_makes_the_published_number_of_calls(config, J, levels, forward, denoiser, total_forward,
                                                        total_denoiser):
    dummy, state = tiny_run(config)
    assert dummy.calls == {"forward": forward, "denoiser": denoiser}
    assert dummy.rows == {"forward": 3 * forward, "denoiser": 3 * denoiser}
    assert (state.forward_calls, state.denoiser_calls, state.updates_done) == (forward, denoiser, forward)


@ROWS
def test_the_closed_form_and_the_walk_agree_with_the_published_counts(config, J, levels, forward, denoiser,
                                                                      total_forward, total_denoiser):
    first, last = config.window
    assert last - first + 1 == levels and config.particles == J
    assert config.counts() == {"forward": forward, "denoiser": denoiser}
    walked = paper.count_calls(config.steps, range(first, last + 1), config.updates, config.inner_factor,
                               config.inner_cap)
    assert walked == (forward, denoiser)
    assert (J * forward, J * denoiser) == (total_forward, total_denoiser)


@pytest.mark.parametrize("window, updates, cap", [((0, 3), 1, 20), ((2, 9), 3, 2), ((5, 10), 2, 20), ((1, 0), 4, 20)])
def test_a_run_makes_the_calls_that_its_settings_announce(window, updates, cap):
    config = Config(particles=3, steps=10, updates=updates, window=window, inner_cap=cap)
    dummy, state = tiny_run(config)
    assert dummy.calls == config.counts()
    assert (state.forward_calls, state.denoiser_calls) == (dummy.calls["forward"], dummy.calls["denoiser"])


def test_diagnostics_count_as_the_run_goes():
    dummy = Dummy()
    config = Config(particles=3, steps=10, updates=2, guidance=0.1)
    method = EnKG(dummy.denoise, Gaussian([0.5]), config)
    seen = []
    for _, info in iterate(method, dummy.forward, method.init(np.random.default_rng(0).standard_normal((3, 2)))):
        seen.append((info.level, info.update, info.forward_calls))
    first, last = config.window
    assert seen == [(i, u, 2 * (i - first) + u + 1) for i in range(first, last + 1) for u in range(2)]


def test_144_is_the_nominal_count_and_not_the_released_one():
    # 2 x 80 x (1 - .05 - .05) = 144; the strict inequality of the released code drops level 4
    assert 2 * 80 * (1 - 0.05 - 0.05) == pytest.approx(144)
    assert NOMINAL.counts()["forward"] == 144
    assert PRESETS["navier-stokes-official"].counts()["forward"] == 142
    assert (NOMINAL.window, PRESETS["navier-stokes-official"].window) == ((4, 75), (5, 75))


def test_the_window_that_nobody_asked_for_is_the_official_one():
    assert Config(steps=80).window == guided_window(80, 0.05, 0.05) == (5, 75)


def test_the_collapse_budget_grows_by_gamma_over_the_root_of_rank_plus_misfit():
    run = EnKG(lambda x, sigma: 0.5 * x, Gaussian([3.0], 2.0), Config(particles=4, steps=8, guidance=1.7))
    state = run.init(np.random.default_rng(0).standard_normal((4, 2)))
    g = np.array([[1.0], [2.0], [4.0], [5.0]])  # mean 3 + 0, variance 2.5
    for shift in (0.0, 1.0, -2.0):
        expected = state.collapse_budget + 1.7 / math.sqrt(1.0 + shift**2 / 2.5)  # kappa^2 = ebar^2/C_yy
        state = run.tell(state, g + shift)[0]
        assert state.collapse_budget == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("J, pairwise", [(8, True), (9, False)])
def test_beyond_twice_as_many_particles_as_observations_no_matrix_of_particle_pairs_is_formed(J, pairwise, monkeypatch):
    formed = []
    monkeypatch.setattr(ensemble, "coefficients", lambda r, b, members: formed.append(1) or r @ b.T / members)
    x = np.random.default_rng(1).standard_normal((J, 5))
    correct(x, x[:, :4], Gaussian(np.zeros(4)).residual, frobenius(1.0))
    assert bool(formed) is pairwise


def test_two_steps_are_the_fewest_and_an_update_that_is_not_made_adds_no_budget():
    settings = Config(particles=4, steps=2, window=(0, 1), stop=lambda mean, particles, m: True)
    run = EnKG(lambda x, sigma: 0.5 * x, Gaussian([3.0], 2.0), settings)
    state = run.init(np.random.default_rng(0).standard_normal((4, 2)))
    state, info = run.tell(state, np.array([[1.0], [2.0], [4.0], [5.0]]))
    assert info.stopped and info.step == 0.0 and state.collapse_budget == 0.0


@pytest.mark.parametrize("window", [(9, 9), (3, 9), (-1, 2)])
def test_a_window_beyond_the_noise_levels_is_refused_and_an_empty_one_is_not(window):
    with pytest.raises(ValueError, match=r"window: got levels .*expected levels within 0\.\.8"):
        Config(steps=8, window=window)
    assert not any(Config(steps=8, window=(9, 0)).is_guided(i) for i in range(9))

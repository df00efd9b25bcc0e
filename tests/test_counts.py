"""Sequential forward calls and denoiser calls per particle of the released settings: exact integers, from real runs."""

import math

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref import PRESETS, Gaussian, Preset, correct, ensemble, frobenius, guided_window, iterate, solve
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.extensions import StopWhenFitted, lowrank

NOMINAL = PRESETS["navier-stokes-official"].but(window=guided_window(80, 0.05, 0.05, "nominal"))
NOMINAL_BLACK_HOLE = PRESETS["black-hole-official"].but(window=guided_window(80, 0.1, 0.1, "nominal"))
TABLE = [  # settings, J, guided levels, forward calls, denoiser calls, their products with J
    (PRESETS["navier-stokes-official"], 2048, 71, 142, 1588, 290_816, 3_252_224),
    (NOMINAL, 2048, 72, 144, 1628, 294_912, 3_334_144),
    (PRESETS["ffhq-official"], 1024, 71, 142, 1588, 145_408, 1_626_112),
    (PRESETS["black-hole-official"], 1024, 63, 63, 749, 64_512, 766_976),
    (NOMINAL_BLACK_HOLE, 1024, 64, 64, 768, 65_536, 786_432),
    (PRESETS["inversebench"], 2048, 79, 158, 958, 323_584, 1_961_984),
]
ROWS = pytest.mark.parametrize("preset, J, levels, forward, denoiser, total_forward, total_denoiser", TABLE)


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


def tiny_run(preset, J=3):
    dummy = Dummy()
    solve(preset.but(guidance=0.1).method(dummy.denoise, Gaussian([0.5])), dummy.forward,
          np.random.default_rng(0).standard_normal((J, 2)))
    return dummy


@ROWS
def test_a_real_run_makes_the_published_number_of_calls(preset, J, levels, forward, denoiser, total_forward,
                                                        total_denoiser):
    dummy = tiny_run(preset)
    assert dummy.calls == {"forward": forward, "denoiser": denoiser}
    assert dummy.rows == {"forward": 3 * forward, "denoiser": 3 * denoiser}


@ROWS
def test_the_closed_form_and_the_walk_agree_with_the_published_counts(preset, J, levels, forward, denoiser,
                                                                      total_forward, total_denoiser):
    (first, last), config = preset.window, preset.config
    assert last - first + 1 == levels and preset.particles == J
    assert preset.counts() == {"forward": forward, "denoiser": denoiser}
    walked = paper.count_calls(preset.steps, range(first, last + 1), config.updates, config.inner_factor,
                               config.inner_cap)
    assert walked == (forward, denoiser)
    assert (J * forward, J * denoiser) == (total_forward, total_denoiser)


@pytest.mark.parametrize("window, updates, cap", [((0, 3), 1, 20), ((2, 9), 3, 2), ((5, 10), 2, 20), ((1, 0), 4, 20)])
def test_a_run_makes_the_calls_that_its_settings_announce(window, updates, cap):
    preset = Preset(3, 10, window).but(updates=updates, inner_cap=cap)
    assert tiny_run(preset).calls == preset.counts()


def test_diagnostics_count_as_the_run_goes():
    dummy = Dummy()
    method = Preset(3, 10).but(updates=2, guidance=0.1).method(dummy.denoise, Gaussian([0.5]))
    seen = []
    for _, info in iterate(method, dummy.forward, method.init(np.random.default_rng(0).standard_normal((3, 2)))):
        seen.append((info.level, info.update, dummy.calls["forward"]))
    first, last = method.window
    assert seen == [(i, u, 2 * (i - first) + u + 1) for i in range(first, last + 1) for u in range(2)]


def test_144_is_the_nominal_count_and_not_the_released_one():
    # 2 x 80 x (1 - .05 - .05) = 144; the strict inequality of the released code drops level 4
    assert 2 * 80 * (1 - 0.05 - 0.05) == pytest.approx(144)
    assert NOMINAL.counts()["forward"] == 144
    assert PRESETS["navier-stokes-official"].counts()["forward"] == 142
    assert (NOMINAL.window, PRESETS["navier-stokes-official"].window) == ((4, 75), (5, 75))


def test_the_window_that_nobody_asked_for_is_the_official_one():
    assert Preset(steps=80).window == guided_window(80, 0.05, 0.05) == (5, 75)


def test_the_collapse_budget_grows_by_gamma_over_the_root_of_rank_plus_misfit():
    run = Preset(4, 8).but(guidance=1.7).method(lambda x, sigma: 0.5 * x, Gaussian([3.0], 2.0))
    state, memory = run.init(np.random.default_rng(0).standard_normal((4, 2))), Memory()
    g = np.array([[1.0], [2.0], [4.0], [5.0]])  # mean 3 + 0, variance 2.5
    for shift in (0.0, 1.0, -2.0):
        expected = memory.collapse_budget + 1.7 / math.sqrt(1.0 + shift**2 / 2.5)  # kappa^2 = ebar^2/C_yy
        state, info = run.tell(state, g + shift)
        memory, line = observe(memory, info, run.likelihood)
        assert memory.collapse_budget == line["collapse_budget"] == pytest.approx(expected, rel=1e-12)


def test_the_papers_form_makes_the_matrix_of_particle_pairs_once_and_the_low_rank_form_never(monkeypatch):
    formed = []
    monkeypatch.setattr(ensemble, "coefficients", lambda r, b: formed.append(1) or r @ b.T / len(r))
    x = np.random.default_rng(1).standard_normal((9, 5))
    for form, times in ((correct, 1), (lowrank, 0)):
        formed.clear()
        form(x, x[:, :4], Gaussian(np.zeros(4)).residual, frobenius(1.0))
        assert len(formed) == times


def test_two_steps_are_the_fewest_and_an_update_that_is_not_made_adds_no_budget():
    method = Preset(4, 2, (0, 1)).method(lambda x, sigma: 0.5 * x, Gaussian([3.0], 2.0))
    run = StopWhenFitted(method, lambda mean, particles, m: True)
    state, info = run.tell(run.init(np.random.default_rng(0).standard_normal((4, 2))), np.array([[1.0], [2], [4], [5]]))
    memory, line = observe(Memory(), info, method.likelihood)
    assert line["stopped"] and not line["skipped"] and line["step"] == 0.0 and memory.collapse_budget == 0.0
    assert (state.level, state.update) == (1, 0)


@pytest.mark.parametrize("window", [(9, 9), (3, 9), (-1, 2)])
def test_a_window_beyond_the_noise_levels_is_refused_and_an_empty_one_is_not(window):
    with pytest.raises(ValueError, match=r"window: got levels .*expected levels from 0 to 8"):
        Preset(steps=8, window=window).method(None, None)
    assert not any(Preset(steps=8, window=(9, 0)).method(None, None).guided(i) for i in range(9))

"""Sequential forward calls and denoiser calls per particle of the released settings: exact integers, from real runs."""

import dataclasses

import numpy as np
import paper_equations as paper
import pytest

from enkg_ref import PRESETS, Config, EnKG, Gaussian, guided_window, iterate, solve

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

"""A run that stops anywhere goes on bit for bit; a checkpoint of another run, or a damaged one, is refused."""

import dataclasses

import numpy as np
import pytest
from conftest import make_backend

from enkg_ref import Gaussian, Preset, State, correct, iterate, member_normals
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.extensions import StopWhenFitted, TemperedEnKG, particle_discrepancy
from enkg_ref.methods import METHODS, Item
from enkg_ref.run import checkpoint, runner
from enkg_ref.run.report import plain
from problems.linear_gaussian import linear_gaussian

PROBLEM = linear_gaussian("A", seed=3)
LIKELIHOOD = Gaussian(PROBLEM.observation.y, PROBLEM.observation.noise)
PRESET = Preset(particles=12, steps=10)
ABOUT = {"problem": "linear-gaussian", **PRESET.describe()}


def enkg():
    return PRESET.method(PROBLEM.gaussian.denoise, LIKELIHOOD, correct)


def stopped():
    return StopWhenFitted(enkg(), particle_discrepancy)


def tempered():
    return TemperedEnKG(PROBLEM.gaussian.denoise, LIKELIHOOD, PRESET.sigmas, PRESET.window, PRESET.config, seed=2)


def follow(method, state, memory):
    """[(state, memory, line)] of every update from here on."""
    out = []
    for following, info in iterate(method, PROBLEM.forward, state):
        memory, line = observe(memory, info, LIKELIHOOD)
        out.append((following, memory, plain(line)))
    return out


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("made", [enkg, stopped, tempered])
@pytest.mark.parametrize("name", ["numpy", "torch", "strict"])
def test_that_a_run_resumed_after_any_update_ends_bit_identical_with_its_history(name, made, dtype, tmp_path):
    backend, method = make_backend(name), made()
    noise = backend.array(member_normals(1, 0, 12, PROBLEM.event_shape), dtype)
    whole = follow(method, method.init(noise), Memory())
    lines = [line for _, _, line in whole]
    for k, (state, memory, _) in enumerate(whole):
        checkpoint.save(tmp_path / "c.npz", state, ABOUT, {"updates": k + 1}, memory)
        back, remembered, extra = checkpoint.load(tmp_path / "c.npz", State, ABOUT, noise, Memory())
        assert extra == {"updates": k + 1} and (back.level, back.update) == (state.level, state.update)
        if k % 4 == 0:
            rest = follow(method, back, remembered)
            assert [line for _, _, line in rest] == lines[k + 1:]
            final = rest[-1][0].x if rest else back.x
            assert final.dtype == whole[-1][0].x.dtype
            assert np.array_equal(backend.numpy(final), backend.numpy(whole[-1][0].x))


def item():
    prior = PROBLEM.gaussian
    return Item(PROBLEM, LIKELIHOOD, prior.denoise, denoise_vjp=prior.denoise_vjp, std=prior.std,
                reference=Reference(*prior.principal(32)))


class Stop(Exception):
    """The machine is switched off."""


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"deft"}))
def test_that_every_method_goes_on_bit_for_bit_from_its_last_checkpoint(name, tmp_path):
    def build(k, ledger):
        method = METHODS[name]
        plan = method.plan(item(), 200, 2.0, k, {})
        noise = member_normals(k, 0, plan.rows, PROBLEM.event_shape)
        return runner.Run(plan, plan.around(PROBLEM.forward), noise, method.observe, method.memory, LIKELIHOOD,
                          dict(plan.settings))

    def report(line, updates):
        if updates == 3:
            raise Stop

    whole = runner.run_ensemble(build, 1, None)
    assert len(whole.history) > 3
    (tmp_path / "run").mkdir()
    with pytest.raises(Stop):
        runner.run_ensemble(build, 1, tmp_path / "run", report)
    cut = runner.run_ensemble(build, 1, tmp_path / "run")
    assert np.array_equal(whole.x, cut.x) and whole.history == cut.history


def test_that_a_checkpoint_of_another_configuration_is_refused_with_the_difference_named(tmp_path):
    state = enkg().init(member_normals(1, 0, 12, PROBLEM.event_shape))
    checkpoint.save(tmp_path / "c.npz", state, ABOUT)
    other = {**ABOUT, "guidance": 1.0}
    with pytest.raises(ValueError, match=r"guidance = 2\.0, expected 1\.0"):
        checkpoint.load(tmp_path / "c.npz", State, other, state.x)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a zip file" * 9])
def test_that_a_damaged_checkpoint_is_refused_in_one_sentence(damage, tmp_path):
    path = tmp_path / "c.npz"
    state = enkg().init(member_normals(1, 0, 12, PROBLEM.event_shape))
    checkpoint.save(path, state, ABOUT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged") as error:
        checkpoint.load(path, State, ABOUT, state.x)
    assert "\n" not in str(error.value)


def test_that_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    state = enkg().init(member_normals(1, 0, 12, PROBLEM.event_shape))
    checkpoint.save(path, state, ABOUT, "old")

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, dataclasses.replace(state, level=9), ABOUT, "new")
    loaded, _, extra = checkpoint.load(path, State, ABOUT, state.x)
    assert (loaded.level, extra) == (state.level, "old")


@pytest.mark.parametrize("error", [KeyboardInterrupt, FloatingPointError])
def test_that_a_wave_cut_short_is_not_counted_twice(error, tmp_path):
    """The fourth forward call is cut short after the denoiser calls of its wave."""
    calls = []

    def build(k, ledger):
        def forward(x):
            calls.append(len(x))
            if len(calls) == 4 and not (tmp_path / "again").exists():
                raise error
            return PROBLEM.forward(x)

        method, counted = METHODS["enkg"], item().counted(ledger)
        plan = method.plan(counted, None, 2.0, k, {"particles": 6, "steps": 6})
        noise = member_normals(k, 0, plan.rows, PROBLEM.event_shape)
        return runner.Run(plan, ledger.forward(forward), noise, method.observe, method.memory, LIKELIHOOD, {})

    (tmp_path / "run").mkdir()
    with pytest.raises(error):
        runner.run_ensemble(build, 0, tmp_path / "run")
    (tmp_path / "again").touch()
    cut, whole = runner.run_ensemble(build, 0, tmp_path / "run"), runner.run_ensemble(build, 0)
    assert np.array_equal(cut.x, whole.x) and cut.history == whole.history
    assert all(cut.ledger[name] == whole.ledger[name] for name in whole.ledger if name != "wall")

"""A run that stops anywhere goes on bit for bit; a checkpoint of another run, or a damaged one, is refused."""

import dataclasses

import numpy as np
import pytest
from conftest import make_backend

from enkg_ref import Config, EnKG, Gaussian, State, iterate, member_normals, step
from enkg_ref.extensions import TemperedEnKG
from enkg_ref.run import checkpoint
from problems.linear_gaussian import linear_gaussian

PROBLEM = linear_gaussian("A", seed=3)
CONFIG = Config(particles=12, steps=10, updates=2)
ABOUT = {"problem": "linear-gaussian", **CONFIG.describe()}


def method(kind=EnKG, **options):
    return kind(PROBLEM.denoise, Gaussian(PROBLEM.observation.y, PROBLEM.observation.noise), CONFIG, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", [EnKG, TemperedEnKG])
@pytest.mark.parametrize("name", ["numpy", "torch", "strict"])
def test_that_a_run_resumed_after_any_update_ends_bit_identical(name, kind, dtype, tmp_path):
    backend = make_backend(name)
    noise = backend.array(member_normals(1, 0, 12, PROBLEM.event_shape), dtype)
    run = method(kind)
    states = [run.init(noise)] + [state for state, _ in iterate(run, PROBLEM.forward, run.init(noise))]
    final = states[-1]
    for k, state in enumerate(states):
        checkpoint.save(tmp_path / "c.npz", state, ABOUT, {"updates": k})
        resumed, extra = checkpoint.load(tmp_path / "c.npz", State, ABOUT, noise)
        assert extra == {"updates": k}
        arrays = ("x", "y_pred", "expected")
        assert [(f.name, getattr(resumed, f.name)) for f in dataclasses.fields(State) if f.name not in arrays] \
            == [(f.name, getattr(state, f.name)) for f in dataclasses.fields(State) if f.name not in arrays]
        while not run.done(resumed):
            resumed, _ = step(run, resumed, PROBLEM.forward)
        assert resumed.x.dtype == final.x.dtype
        assert np.array_equal(backend.numpy(resumed.x), backend.numpy(final.x))
        assert resumed.collapse_budget == final.collapse_budget


def test_that_a_checkpoint_of_another_configuration_is_refused_with_the_difference_named(tmp_path):
    state = method().init(member_normals(1, 0, 12, PROBLEM.event_shape))
    checkpoint.save(tmp_path / "c.npz", state, ABOUT)
    other = {**ABOUT, "guidance": 1.0}
    with pytest.raises(ValueError, match=r"guidance = 2\.0, expected 1\.0"):
        checkpoint.load(tmp_path / "c.npz", State, other, state.x)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a zip file" * 9])
def test_that_a_damaged_checkpoint_is_refused_in_one_sentence(damage, tmp_path):
    path = tmp_path / "c.npz"
    state = method().init(member_normals(1, 0, 12, PROBLEM.event_shape))
    checkpoint.save(path, state, ABOUT)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged") as error:
        checkpoint.load(path, State, ABOUT, state.x)
    assert "\n" not in str(error.value)


def test_that_an_interrupted_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.npz"
    state = method().init(member_normals(1, 0, 12, PROBLEM.event_shape))
    checkpoint.save(path, state, ABOUT, "old")

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, dataclasses.replace(state, level=9), ABOUT, "new")
    loaded, extra = checkpoint.load(path, State, ABOUT, state.x)
    assert (loaded.level, extra) == (state.level, "old")

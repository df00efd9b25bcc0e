"""Ensembles on the Navier-Stokes problem: with a Gaussian prior and its exact flow EnKG is EKI; bad rows do no harm."""

import numpy as np
import pytest

from enkg_ref import EnKG, Gaussian, Preset, State, correct, guided_window, member_normals, step
from enkg_ref.baselines import EKI, eki
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.extensions import guarded, lowrank, survivors
from enkg_ref.protocol import evaluate
from problems import vorticity
from problems.navier_stokes import navier_stokes


class ExactFlow(EnKG):
    """EnKG whose inner flow and predictor are the exact probability flow of the Gaussian with the stored moments:

    every Fourier coefficient of x - mu is scaled by sqrt((l + s'^2)/(l + s^2)), l the spectrum. At s' = 0 modes
    without variance vanish.
    """

    def ask(self, state):
        return self.flow(state.x, self.sigmas[state.level], 0.0)

    def _predict(self, state):
        i = state.level
        moved = self.flow(state.x, self.sigmas[i], self.sigmas[i + 1])
        return State(moved, i + 1)

    @staticmethod
    def flow(x, sigma, sigma_next):
        scale = vorticity.preset(32).scale
        mean, spectrum = vorticity.prior_moments(32)
        factor = np.sqrt((spectrum / scale**2 + sigma_next**2) / (spectrum / scale**2 + sigma**2))
        return np.fft.irfft2(np.fft.rfft2(x - mean / scale) * factor, s=mean.shape) + mean / scale


@pytest.mark.parametrize("noise", [0.0, 0.55])
def test_enkg_with_a_gaussian_prior_and_its_exact_flow_is_eki_from_samples_of_that_prior(noise):
    problem = navier_stokes(32, noise=noise, seed=1)
    likelihood = Gaussian(problem.observation.y, problem.observation.noise)
    preset = Preset(12, 10, guided_window(10, 0.05, 0.1)).but(updates=2)
    method = ExactFlow(None, likelihood, preset.sigmas, preset.window, preset.config, guarded(correct))
    state = method.init(member_normals(0, 0, 12, (32, 32)))
    other = EKI(likelihood, eki.Config(preset.counts()["forward"]))
    kalman = other.init(method.ask(state))  # draws of the prior
    start, largest = kalman.x, 0.0
    while not method.done(state):
        state, info = step(method, state, problem.forward)
        kalman, _ = step(other, kalman, problem.forward)
        assert float(info.correction.step) > 0.0
        x0 = method.ask(state) if not method.done(state) else kalman.x
        largest = max(largest, np.abs(x0 - kalman.x).max())
    assert other.done(kalman)
    assert largest < 1e-9
    assert np.abs(kalman.x - start).max() > 0.1  # the updates did move the particles


def test_with_the_official_euler_flow_the_two_differ_so_that_the_identity_is_one_of_the_exact_flow():
    problem = navier_stokes(32, seed=1)
    likelihood = Gaussian(problem.observation.y)
    scale = vorticity.preset(32).scale
    mean, spectrum = vorticity.prior_moments(32)

    def wiener(x, sigma):
        shrink = spectrum / (spectrum + (scale * sigma) ** 2)
        return np.fft.irfft2(np.fft.rfft2(x - mean / scale) * shrink, s=mean.shape) + mean / scale

    method = Preset(12, 10).method(wiener, likelihood)
    state = method.init(member_normals(0, 0, 12, (32, 32)))
    kalman = EKI(likelihood, eki.Config(2)).init(method.ask(state))
    for _ in range(2):
        kalman, _ = step(EKI(likelihood, eki.Config(2)), kalman, problem.forward)
        state, _ = step(method, state, problem.forward)
    assert np.abs(method.ask(state) - kalman.x).max() > 1e-2


def test_rows_that_are_not_finite_or_absurdly_large_are_flagged_and_the_run_goes_on():
    problem = navier_stokes(32, seed=0)
    method = Preset(8, 6).method(lambda x, sigma: x / (1 + 4 * sigma**2), Gaussian(problem.observation.y),
                                 survivors(guarded(lowrank)))
    state = method.init(member_normals(0, 0, 8, (32, 32)))
    x0 = method.ask(state)
    x0[2], x0[5, 3, 3], x0[6] = 1e4 * x0[2], np.nan, 1e30 * x0[6]
    y_pred = evaluate(problem.forward, x0)
    good = [0, 1, 3, 4, 7]
    assert np.array_equal(y_pred[good], problem.forward(x0[good]))
    state, info = method.tell(state, y_pred)
    with pytest.warns(UserWarning, match="more than 5 %"):
        memory, line = observe(Memory(), info, method.likelihood)
    assert line["failed_rows"] == [2, 5, 6]
    while not method.done(state):
        state, info = step(method, state, problem.forward)
        memory, line = observe(memory, info, method.likelihood)
    assert line["failed_rows"] == [] and np.all(np.isfinite(state.x))


def test_an_ensemble_of_fields_of_another_size_is_refused_with_both_shapes():
    problem = navier_stokes(32, seed=0)
    with pytest.raises(ValueError, match=r"got shape \(4, 64, 64\), expected \(J, 32, 32\)"):
        problem.forward(np.zeros((4, 64, 64)))
    with pytest.raises(ValueError, match=r"truth: got shape \(64, 64\), expected \(32, 32\)"):
        navier_stokes(32, truth=np.zeros((64, 64)))


def test_a_size_without_a_shipped_prior_says_how_to_train_one():
    problem = navier_stokes(128, truth=np.ones((128, 128)), steps=20)
    assert problem.prior is None
    assert "python -m onnx_priors.training.navier_stokes --size 128" in problem.notes
    assert "--prior gaussian" in problem.notes

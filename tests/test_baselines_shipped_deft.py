"""The shipped correction network of DEFT: what it cost, that it uses the data, that the method runs with it."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from enkg_ref import cli  # noqa: E402
from enkg_ref.baselines.deft import OnnxCorrection  # noqa: E402
from onnx_priors import manifest  # noqa: E402
from onnx_priors.session import OnnxDenoiser  # noqa: E402
from problems.navier_stokes import navier_stokes  # noqa: E402

FILE = manifest.resolve("navier-stokes-32", "correction")  # verifies the sha256


def test_the_file_is_small_and_says_how_many_forward_calls_its_training_took():
    assert FILE.stat().st_size <= 3e6
    correction = OnnxCorrection(FILE, np.zeros(256), 0.5)
    assert correction.offline_forward == 20_000 and correction.sha256 == manifest.sha256(FILE)


@pytest.mark.parametrize("sigma", [2.0, 10.0])
def test_the_corrected_denoiser_is_nearer_to_the_truth_than_the_prior_alone(sigma):
    denoise, before, after = OnnxDenoiser("navier-stokes-32", threads=1), [], []
    for item in range(200, 206):  # no training field, no item of a table
        problem = navier_stokes(32, noise=0.55, seed=item)
        correction = OnnxCorrection(FILE, problem.observation.y, 0.55)
        truth = problem.truth / problem.scale
        x = truth + sigma * np.random.default_rng(item).standard_normal((4, 32, 32))
        D = denoise(x, sigma)
        before.append(np.mean((D - truth) ** 2))
        after.append(np.mean((D - sigma * correction(x, D, sigma) - truth) ** 2))
    assert np.mean(after) < 0.9 * np.mean(before)


def test_deft_makes_no_forward_call_and_reports_those_of_its_training(tmp_path):
    assert cli.main(["solve", "navier-stokes", "--size", "32", "--noise", "0.55", "--method", "deft", "--budget", "1",
                     "--out", str(tmp_path / "out"), "--quiet"]) == 0
    ledger = json.loads(Path(tmp_path, "out/summary.json").read_text())["ledger"]
    assert (ledger["fwd_total"], ledger["offline_fwd"]) == (0, 20_000)
    assert ledger["net_total"] == ledger["den_total"] > 0 and ledger["phys_net"] == 2 * ledger["net_total"]


def test_a_correction_network_is_registered_beside_its_prior_only(tmp_path):
    listing = tmp_path / "manifest.json"
    listing.write_text(json.dumps({"format_version": 1, "priors": {"some": {"metadata": {}}}}))
    network = tmp_path / "some-deft.onnx"
    network.write_bytes(b"network")
    manifest.register_companion("some", "correction", network, listing)
    assert manifest.resolve("some", "correction", listing) == network
    network.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="corrupt"):
        manifest.resolve("some", "correction", listing)
    with pytest.raises(ValueError, match="expected it registered before"):
        manifest.register_companion("other", "correction", network, listing)
    with pytest.raises(ValueError, match="must lie next to"):
        manifest.register_companion("some", "correction", FILE, listing)


def test_a_symmetry_of_the_flow_turns_a_field_and_its_data_alike():
    pytest.importorskip("torch")
    from onnx_priors.training.deft import turned

    problem = navier_stokes(32)
    fields = (np.random.default_rng(0).standard_normal((8, 32, 32)) * 0.2).astype(np.float32)
    observed = np.asarray(problem.forward(fields)).reshape(8, 16, 16)
    moved, data = turned(fields, observed, np.random.default_rng(3))
    assert not np.allclose(moved, fields)
    assert np.allclose(np.asarray(problem.forward(moved)).reshape(8, 16, 16), data, atol=1e-5 * np.abs(data).max())


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from onnx_priors.training import deft

    rng, denoise = np.random.default_rng(0), OnnxDenoiser("navier-stokes-32", threads=1)
    fields, y = (rng.standard_normal((64, n, n)).astype(np.float32) for n in (32, 16))

    class Stopping:
        """The same denoiser, which fails at its third call."""

        def __init__(self):
            self.session, self.calls = self, 0

        def run(self, *args):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return denoise.session.run(*args)

    def train(denoise, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        torch.manual_seed(0)
        model = deft.Correction(32, 0.5, 5.6, channels=(8, 8))
        return list(deft.train(model, denoise, fields, y, 4 * 8, 1, tmp_path / folder, batch=8)[0].parameters())

    whole = train(denoise, "whole")
    minutes = iter(range(0, 10_000, 61))
    monkeypatch.setattr(deft.time, "monotonic", lambda: next(minutes))  # a checkpoint after every step
    with pytest.raises(KeyboardInterrupt):
        train(Stopping(), "stopped")
    assert all(torch.equal(a, b) for a, b in zip(whole, train(denoise, "stopped")))

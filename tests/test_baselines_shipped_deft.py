"""The shipped correction network of DEFT: what it cost, that it uses the data, that the method runs with it."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from enkg_ref import cli  # noqa: E402
from enkg_ref.baselines.deft import OnnxCorrection  # noqa: E402
from onnx_priors.manifest import WEIGHTS  # noqa: E402
from onnx_priors.session import OnnxDenoiser  # noqa: E402
from problems.navier_stokes import navier_stokes  # noqa: E402

FILE = WEIGHTS / "navier-stokes-32-deft.onnx"


def test_the_file_is_small_and_says_how_many_forward_calls_its_training_took():
    assert FILE.stat().st_size <= 3e6
    assert OnnxCorrection(FILE, np.zeros(256), 0.5).offline_forward == 20_000


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

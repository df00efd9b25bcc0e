"""``enkg solve`` as a person meets it: results on disk, what they mean, what they cost."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from shell import SMALL, csv, run, simulate, strict

from enkg_ref import Preset
from enkg_ref.commands import building
from enkg_ref.commands.solve import SolveRequest
from enkg_ref.enkg_r.reference import Reference
from enkg_ref.run import report
from onnx_priors.gaussian import GaussianPrior


def test_that_solve_writes_the_four_files_and_says_what_they_cost(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("linear-gaussian", "--particles", 16, "--steps", 8, "--out", out, "--ensembles", 2, "--workers", 1) == 0
    assert sorted(path.name for path in out.iterdir()) == ["figure.png", "history.jsonl", "result.npz", "summary.json"]
    summary = json.loads((out / "summary.json").read_text())
    config = Preset(particles=16, steps=8)
    counts = config.counts()
    assert summary["ledger"]["fwd_total"] == 2 * 16 * counts["forward"]
    assert summary["ledger"]["den_total"] == 2 * 16 * counts["denoiser"]
    wall = summary["ledger"]["wall"]
    # 50 ms for the files and locks of two runs of a tenth of a second on a busy machine
    assert wall["other"] <= 0.02 * wall["total"] + 0.05
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [line["ensemble"] for line in lines] == [0] * counts["forward"] + [1] * counts["forward"]
    result = np.load(out / "result.npz")
    assert result["ensemble"].shape == (32, 32) and result["ensemble_index"].tolist() == [0] * 16 + [1] * 16
    assert np.array_equal(result["mean"], result["ensemble"].mean(axis=0))
    assert np.array_equal(result["std"], result["ensemble"].std(axis=0))
    printed = capsys.readouterr().out
    assert "error_to_posterior_mean" in printed and str(summary["ledger"]["fwd_total"]) in printed


@pytest.mark.parametrize("size", [32, 64, 128])
def test_that_navier_stokes_is_solved_with_the_gaussian_of_its_fields(size, tmp_path):
    from problems.navier_stokes import navier_stokes

    out = tmp_path / "out"
    assert run("navier-stokes", "--size", size, "--prior", "gaussian", "--noise", 0.5, "--item", 3, "--particles", 8,
               "--steps", 4, "--dtype", "float32", "--quiet", "--out", out) == 0
    summary, result = json.loads((out / "summary.json").read_text()), np.load(out / "result.npz")
    problem = navier_stokes(size, noise=0.5, seed=3)
    assert np.array_equal(result["observation"], problem.observation.y)
    assert np.array_equal(result["truth"], problem.truth) and result["ensemble"].shape == (8, size, size)
    assert summary["metrics"] == pytest.approx(problem.score(result["ensemble"]))
    assert {"relative_l2_of_particles", "relative_l2_of_mean", "relative_l2_zero_field", "relative_l2_prior_mean",
            "relative_l2_prior_sample"} == set(summary["metrics"])
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    inside = [line["trust"] for line in lines if line["update"] > 0 and line["trust"] is not None]
    across = [line["trust"] for line in lines if line["update"] == 0 and line["trust"] is not None]
    assert summary["trust"] == {"trust": [np.median(inside)], "trust_tenth": [np.quantile(inside, 0.1)],
                                "trust_across": [np.median(across)], "trust_across_tenth": [np.quantile(across, 0.1)]}


def test_that_the_data_of_the_finer_solver_are_other_data(tmp_path):
    small = ["--prior", "gaussian", "--particles", 4, "--steps", 3, "--quiet"]
    ys = []
    for name in ("same", "padded"):
        assert run("navier-stokes", "--data-solver", name, *small, "--out", tmp_path / name) == 0
        ys.append(np.load(tmp_path / name / "result.npz")["observation"])
    assert 0.01 < np.linalg.norm(ys[0] - ys[1]) / np.linalg.norm(ys[0]) < 0.3


def test_that_enkg_r_says_which_noise_it_assumed_and_how_far_to_trust_it(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "out"
    assert run("navier-stokes", "--method", "enkg-r", "--budget", 160, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ledger"]["fwd_total"] <= 160 and "assumed noise of 0.0" in summary["notes"]
    last = json.loads((out / "history.jsonl").read_text().splitlines()[-1])
    assert summary["trust"] == {"kappa": [last["kappa"]], "noise_ratio": [last["noise_ratio"]],
                                "chi2": [last["mean_misfit"]]}
    printed = capsys.readouterr().out  # numbers that need a footnote stand in the file; the text has the verdict
    assert "kappa" not in printed and f"verdict: {summary['verdict']['sentence']}" in printed


def test_that_enkg_r_has_the_exact_reference_of_the_gaussian_of_the_fields(tmp_path):
    out = tmp_path / "out"
    assert run("navier-stokes", "--method", "enkg-r", "--prior", "gaussian", "--noise", 0.5, "--budget", 496, "--quiet",
               "--out", out) == 0
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    assert metrics["relative_l2_of_mean"] < 0.75 * metrics["relative_l2_prior_mean"]
    from problems.navier_stokes import navier_stokes

    for size in (32, 128):
        problem = navier_stokes(size)
        request = SolveRequest("navier-stokes", prior="gaussian")
        own, calls = building.reference_of(request, problem, building.prior_of(request, problem))
        assert np.array_equal(own.mean, problem.gaussian.mean) and own.variances.size == 1024 and calls == 0
        assert own.std == pytest.approx(problem.gaussian.std)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (4.0, 7.0)])
def test_that_images_in_physical_units_are_the_reference_of_a_prior_of_ones_own(own, scale, shift, capsys):
    """Prior N(0, 1) in its own units, linear data of physical ones: the posterior is known."""
    pytest.importorskip("onnxruntime")
    GaussianPrior(np.zeros(5), 1.0).to_onnx("prior.onnx", {"sigma_min": 0.002, "sigma_max": 80.0, "scale": scale,
                                                           "shift": shift})
    H = np.random.default_rng(0).standard_normal((3, 5))  # that of my_simulator
    truth = shift + scale * np.random.default_rng(3).standard_normal(5)
    np.save("y.npy", H @ truth)
    own[-1] = noise = 0.3 * scale
    enkg_r = [*own, "--method", "enkg-r", "--budget", 512, "--quiet"]
    assert run(*enkg_r, "--out", "none") == 2
    message = capsys.readouterr().err
    assert "--reference images.npy" in message and "prior.reference.npz beside it, which enkg prior" in message
    np.save("images.npy", shift + scale * np.random.default_rng(4).standard_normal((1000, 5)))
    assert run(*enkg_r, "--reference", "images.npy", "--out", "out") == 0
    ledger = json.loads(Path("out/summary.json").read_text())["ledger"]
    assert ledger["diag_den"] == 12 * 250  # levels of the table, images held out
    assert "denoiser calls for the reference 3000" in report.text(json.loads(Path("out/summary.json").read_text()))
    K = scale**2 * H.T @ np.linalg.inv(scale**2 * H @ H.T + noise**2 * np.eye(3))
    mean, covariance = shift + K @ (H @ (truth - shift)), scale**2 * (np.eye(5) - K @ H)
    x = np.load("out/result.npz")["ensemble"]
    # J = 16 particles: four standard errors, and 10 % of the prior for a reference and a slope that are estimated
    assert np.all(np.abs(x.mean(axis=0) - mean) < 4 * np.sqrt(np.diag(covariance) / 16) + 0.1 * scale)
    # a reference in the wrong units would be off by this
    assert scale == 1 or np.linalg.norm(x.mean(axis=0) - mean) < 0.2 * np.linalg.norm(mean / scale - mean)
    GaussianPrior(np.ones(5), 1.0).to_onnx("prior.onnx", {"sigma_min": 0.002, "sigma_max": 80.0})
    Reference(np.zeros(5), np.eye(5), np.ones(5), prior="4567").save("other.npz")
    assert run(*enkg_r, "--reference", "other.npz", "--out", "other") == 2
    assert "made for the prior with sha256 4567..., expected one made for" in capsys.readouterr().err


def test_that_a_level_without_the_data_is_told_in_summary_text_and_figure(tmp_path, capsys, monkeypatch):
    """The particles of a linear problem are declared to have left the prior at all levels but one."""
    from enkg_ref.enkg_r import method as regressed

    asked = []
    monkeypatch.setattr(regressed.EnKGR, "_within_prior", lambda self, x: asked.append(1) or len(asked) == 1)
    out = tmp_path / "out"
    assert run("linear-gaussian", "--method", "enkg-r", "--budget", 64, "--out", out) == 0
    summary = json.loads((out / "summary.json").read_text())
    levels = summary["config"]["levels"]
    assert summary["lost_levels"] == levels - 1
    assert f"levels lost                      {levels - 1}" in capsys.readouterr().out
    assert any(words.startswith(f"{levels - 1} levels lost") for words in report.caption(summary))


def test_that_data_without_a_noise_level_are_said_to_be_inverted_with_an_assumed_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("y.npy", np.random.default_rng(0).standard_normal(256))
    few = ["--observation", "y.npy", "--prior", "gaussian", "--particles", 4, "--steps", 3, "--quiet"]
    for noise, told in (([], True), (["--noise", 0.5], False)):
        assert run("navier-stokes", *few, *noise, "--out", f"out{told}") == 0
        notes = json.loads(Path(f"out{told}/summary.json").read_text())["notes"]
        assert ("No noise was given: the data were inverted with an assumed noise of 0.0" in notes) == told


def test_that_two_processes_give_the_ensembles_of_one(tmp_path):
    for workers in (1, 2):
        out = tmp_path / str(workers)
        assert run("linear-gaussian", *SMALL, "--ensembles", 2, "--workers", workers, "--out", out) == 0
    one, two = (np.load(tmp_path / name / "result.npz") for name in "12")
    assert np.array_equal(one["ensemble"], two["ensemble"])


def test_that_a_users_own_module_is_solved_with_an_onnx_prior(own, tmp_path):
    pytest.importorskip("onnxruntime")
    assert run(*own, *SMALL, "--truth", "truth.npy", "--out", "out", "--guidance", "0.3", "--steps", "20") == 0
    summary = json.loads(Path("out/summary.json").read_text())
    H = np.array(__import__("my_simulator").H)
    y = np.load("y.npy")
    prior_misfit = np.sum(y**2) / 0.01 / 3  # of the prior mean, 0
    assert summary["metrics"]["chi2_mean_prediction"] < 0.05 * prior_misfit
    x = np.load("out/result.npz")["ensemble"]
    assert np.allclose(np.load("out/result.npz")["predictions"], x @ H.T)


def test_that_a_users_own_program_is_solved_and_survives_its_failures(own, tmp_path, capfd):
    pytest.importorskip("onnxruntime")
    (tmp_path / "simulate.py").write_text(
        "import sys, numpy as np\nfrom my_simulator import forward\nx = np.load(sys.argv[1])\n"
        "sys.exit('blew up') if x[0] > 60 else np.save(sys.argv[2], forward(x[None])[0])\n")
    own[1] = f"{sys.executable} simulate.py {{input}} {{output}}"
    few = ["--particles", 4, "--steps", 3, "--window", "0,0.5", "--updates", 1, "--quiet"]
    assert run(*own, *few, "--out", "out") == 0
    summary = json.loads(Path("out/summary.json").read_text())
    assert np.all(np.isfinite(np.load("out/result.npz")["ensemble"]))
    assert summary["failed_rows"] == summary["ledger"]["failed_fwd"]


@pytest.mark.parametrize("method", ["enkg", "enkg-r"])
@pytest.mark.parametrize("ensembles", [1, 2])
def test_that_failed_predictions_of_the_last_particles_are_left_out_and_counted(own, method, ensembles, capsys):
    """A fifth of all forward calls fails, those for the result's own sake among them."""
    pytest.importorskip("onnxruntime")
    simulate(own, "def forward(x):\n    bad = np.floor(1e6 * np.abs(x[:, :1])) % 5 == 0\n"
              "    return np.where(bad, np.nan, whole(x))\n")
    chosen = {"enkg": SMALL[:-1], "enkg-r": ["--budget", 160, "--reference", "images.npy"]}[method]
    assert run(*own, "--method", method, *chosen, "--ensembles", ensembles, "--workers", 1, "--out", "out") == 0
    summary, result = json.loads(Path("out/summary.json").read_text()), np.load("out/result.npz")
    failed = np.isnan(result["predictions"]).any(axis=1)
    assert 0 < failed.sum() < len(failed) and summary["failed_predictions"] == failed.sum()
    assert f"predictions failed               {failed.sum()} " in capsys.readouterr().out
    assert all(np.isfinite(value) for value in summary["metrics"].values())
    x, index = result["ensemble"], result["ensemble_index"]
    chi2 = np.sum((result["predictions"] - np.load("y.npy")) ** 2, axis=1) / 0.01 / 3
    best = min(np.nanmedian(chi2[index == k]) for k in range(ensembles))
    if ensembles == 1 or method == "enkg":  # every row counts once: nothing to weigh
        assert np.array_equal(result["mean"], x.mean(axis=0)) and np.array_equal(result["std"], x.std(axis=0))
    else:
        assert sum(summary["weights"]) == pytest.approx(1)
        assert np.nanmedian(chi2[index == np.argmax(summary["weights"])]) == pytest.approx(best)
        assert np.all(result["std"] > 0.1 * x[index == 0].std(axis=0))


def test_that_levels_without_a_finite_row_are_null_in_the_history_and_a_dash_in_the_text(own, capsys):
    """From the eighth of ten calls on the simulator gives nothing: no level was measured, no prediction is left."""
    pytest.importorskip("onnxruntime")
    simulate(own, "calls = []\n\n\ndef forward(x):\n    calls.append(x)\n"
              "    return whole(x) * (1.0 if len(calls) < 8 else np.nan)\n")
    assert run(*own, "--method", "enkg-r", "--budget", 160, "--reference", "images.npy", "--out", "out") == 0
    lines = [strict(line) for line in Path("out/history.jsonl").read_text().splitlines()]
    assert [line["kappa"] is None for line in lines] == 7 * [False] + 3 * [True]
    summary = strict(Path("out/summary.json").read_text())
    assert summary["trust"]["kappa"] == [None] and summary["failed_predictions"] == 16
    assert "verdict: simulator failures (30% of the forward calls and 100%" in capsys.readouterr().out
    from problems.black_hole_figure import _draw_convergence

    _draw_convergence(pytest.importorskip("matplotlib.figure").Figure().subplots(), lines)


def test_that_a_method_without_a_history_to_draw_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("linear-gaussian", "--method", "eki", "--budget", 64, "--quiet", "--out", tmp_path / "out") == 0


def test_that_three_stations_with_no_quadrangle_are_solved_and_drawn(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    pairs = [f",{a},{b}," for a in ("AA", "LM", "PV") for b in ("AA", "LM", "PV")]
    csv(lambda lines: [line for line in lines if "#" in line or any(pair in line for pair in pairs)])
    assert run("black-hole", "--observation", "data.csv", "--prior", "kerr-disc-64-gaussian", "--particles", 4,
               "--steps", 4, "--quiet", "--out", "out") == 0
    metrics = json.loads(Path("out/summary.json").read_text())["metrics"]
    assert metrics["chi2_cp"] > 0 and "chi2_lca" not in metrics and Path("out/figure.png").stat().st_size > 10_000


def test_that_a_prior_of_another_range_of_noise_levels_sets_the_levels_of_the_run(own, tmp_path):
    pytest.importorskip("onnxruntime")
    GaussianPrior(np.zeros(5), 1.0).to_onnx("narrow.onnx", {"sigma_min": 0.01, "sigma_max": 50.0})
    own[own.index("prior.onnx")] = "narrow.onnx"
    assert run(*own, *SMALL, "--out", "out") == 0
    config = json.loads(Path("out/summary.json").read_text())["config"]
    assert (config["sigma_min"], config["sigma_eps"], config["sigma_max"]) == (0.01, 0.01, 50.0)
    GaussianPrior(np.zeros(5), 1.0).to_onnx("narrow.onnx", {"sigma_min": 0.1, "sigma_max": 5.0})
    np.save("images.npy", np.random.default_rng(4).standard_normal((400, 5)))
    assert run(*own, "--method", "enkg-r", "--budget", 160, "--reference", "images.npy", "--quiet", "--out", "r") == 0

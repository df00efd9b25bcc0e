"""The command line as a person meets it: results on disk, one sentence for bad input, resume after an interruption."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import problems
from enkg_ref import cli
from enkg_ref.compare import arena
from enkg_ref.enkg_r.reference import Reference
from onnx_priors.gaussian import GaussianPrior

SMALL = ["--particles", "16", "--steps", "8", "--quiet"]


def run(*argv):
    return cli.main(["solve", *map(str, argv)])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's own problem in a folder: a module with a forward model, an ONNX prior, data."""
    rng = np.random.default_rng(0)
    H = rng.standard_normal((3, 5))
    (tmp_path / "my_simulator.py").write_text(
        f"import numpy as np\nH = np.array({H.tolist()})\n\n\ndef forward(x):\n    return x @ H.T\n")
    GaussianPrior(np.zeros(5), 1.0).to_onnx(tmp_path / "prior.onnx", {"sigma_min": 0.002, "sigma_max": 80.0})
    np.save(tmp_path / "y.npy", H @ np.arange(5.0))
    np.save(tmp_path / "truth.npy", np.arange(5.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_simulator", raising=False)
    return ["--forward", "my_simulator:forward", "--prior", "prior.onnx", "--observation", "y.npy", "--noise", "0.1"]


@pytest.fixture
def interrupted(monkeypatch):
    """interrupted(*argv): a run in the folder out that is stopped between its last update and its result."""
    def stop_before_the_result(*argv):
        from enkg_ref.run import runner

        run_ensembles = runner.run_ensembles

        def stop(*args):
            run_ensembles(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(runner, "run_ensembles", stop)
            assert run(*argv, "--out", "out") == 130
    return stop_before_the_result


def test_that_solve_writes_the_four_files_and_says_what_they_cost(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("linear-gaussian", "--particles", 16, "--steps", 8, "--out", out, "--ensembles", 2, "--workers", 1) == 0
    assert sorted(path.name for path in out.iterdir()) == ["figure.png", "history.jsonl", "result.npz", "summary.json"]
    summary = json.loads((out / "summary.json").read_text())
    config = cli.Config(particles=16, steps=8)
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
    assert "kappa" in capsys.readouterr().out


def test_that_enkg_r_has_the_exact_reference_of_the_gaussian_of_the_fields(tmp_path):
    out = tmp_path / "out"
    assert run("navier-stokes", "--method", "enkg-r", "--prior", "gaussian", "--noise", 0.5, "--budget", 496, "--quiet",
               "--out", out) == 0
    metrics = json.loads((out / "summary.json").read_text())["metrics"]
    assert metrics["relative_l2_of_mean"] < 0.75 * metrics["relative_l2_prior_mean"]
    from problems.navier_stokes import navier_stokes
    for size in (32, 128):
        problem = navier_stokes(size)
        own = cli.build_reference(cli._parser().parse_args(["solve", "navier-stokes", "--prior", "gaussian"]), problem)
        assert np.array_equal(own.mean, problem.gaussian.mean) and own.variances.size == 1024
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
    assert "--reference images.npy" in message and "make_reference.py prior.onnx --samples" in message
    np.save("images.npy", shift + scale * np.random.default_rng(4).standard_normal((1000, 5)))
    assert run(*enkg_r, "--reference", "images.npy", "--out", "out") == 0
    ledger = json.loads(Path("out/summary.json").read_text())["ledger"]
    assert ledger["diag_den"] == 12 * 250  # levels of the table, images held out
    assert "denoiser calls for the reference 3000" in cli.report.text(json.loads(Path("out/summary.json").read_text()))
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
    assert any(words.startswith(f"{levels - 1} level(s) lost") for words in cli.report.caption(summary))


@pytest.mark.parametrize("J", [2, 5, 9, 16, 33])
def test_that_a_calibrated_ensemble_of_any_size_is_shown_as_calibrated(J):
    from enkg_ref.run import report

    rng, points = np.random.default_rng(J), 60_000
    found = report.calibration(rng.standard_normal((J, points)), rng.standard_normal(points))
    nominal, covered = np.array(found["coverage"]).T
    assert np.all(np.diff(nominal) > 0) and len(nominal) >= min(J // 2, 5)
    assert np.all(np.abs(covered - nominal) < 4.5 * np.sqrt(nominal * (1 - nominal) / points))
    assert abs(found["interval"][0] - 0.9) <= 1.01 / (J + 1) or found["interval"][0] == (J - 1) / (J + 1)
    ranks = found["rank_histogram"]
    assert np.all(np.abs(ranks - 1) < 4.5 * np.sqrt(len(ranks) / points)) and len(ranks) == min(16, J + 1)
    assert found["ssr"] == pytest.approx(1.0, abs=0.03)


def test_that_ensembles_are_pooled_by_how_well_they_fit():
    from enkg_ref.run import report

    rng = np.random.default_rng(0)
    good, alike, bad = (rng.normal(mean, 2.0, 400) for mean in (20.0, 20.5, 60.0))
    weights = report.weights_by_misfit([good, alike, bad])
    middle = np.median(good)
    scatter = 1.48 * np.median(np.abs(good - middle))
    assert weights[1] / weights[0] == pytest.approx(np.exp(-0.5 * ((np.median(alike) - middle) / scatter) ** 2))
    assert weights.sum() == pytest.approx(1) and weights[2] < 1e-12
    # a non-finite misfit is left out; an ensemble without a finite one counts for nothing, unless none has one
    holes, none = np.append(good, [np.nan, np.inf]), np.full(5, np.nan)
    whole = report.weights_by_misfit([good, alike])
    assert report.weights_by_misfit([holes, alike, none]) == pytest.approx([*whole, 0])
    assert report.weights_by_misfit([none, none]).tolist() == [0.5, 0.5]
    assert report.weights_by_misfit([holes]).tolist() == [1.0]
    assert report.weights_by_misfit([np.append(good, 1e12), alike]) == pytest.approx(whole, abs=0.05)
    assert report.resampled(np.full(7, 1 / 7)).tolist() == list(range(7))
    shares = np.array([0.5, 0.25, 0.25, 0.0])
    assert report.resampled(shares).tolist() == [0, 0, 1, 2]
    # two ensembles with means 1 and 3 of norm 2 in the middle are a distance 2 apart
    ensemble = np.array([[0.0], [2.0], [2.0], [4.0]])
    assert report.disagreement(ensemble, np.array([0, 0, 1, 1])) == pytest.approx(1.0)
    # and the standard deviation of each is 1
    assert report.separation(ensemble, np.array([0, 0, 1, 1])) == pytest.approx(2.0)
    J, d = 50, 4000
    alike, index = rng.standard_normal((2 * J, d)), np.repeat([0, 1], J)
    # the mean square is (2/J)/(1 - 1/J), its relative error (2/d)^1/2
    assert report.separation(alike, index) ** 2 == pytest.approx(2 / (J - 1), rel=4 * np.sqrt(2 / d))


def test_that_a_summary_shows_the_range_over_the_ensembles_only_where_there_is_one():
    from enkg_ref.run import report

    ledger = {"wall": {"total": 1.0}, "fwd_total": 1, "fwd_seq": 1, "failed_fwd": 0, "den_total": 1, "den_seq": 1}
    summary = {"problem": "p", "method": "enkg", "ensembles": 2, "config": {}, "prior": "g", "seed": 0, "seconds": 1.0,
               "metrics": {"same": 1.0, "other": 2.0, "none": 3.0}, "ledger": ledger,
               "metrics_per_ensemble": [{"same": 1.0, "other": 1.5}, {"same": 1.0 + 1e-9, "other": 2.5}]}
    same, other, none = (line.split() for line in report.text(summary).splitlines()[1:4])
    assert same == ["same", "1"] and none == ["none", "3"]
    assert other == ["other", "2", "(1.5", "..", "2.5", "over", "the", "ensembles)"]


def test_that_errors_come_first_and_skipped_updates_are_told():
    from enkg_ref.run import report

    ledger = {"wall": {"total": 1.0}, "fwd_total": 1, "fwd_seq": 1, "failed_fwd": 0, "den_total": 1, "den_seq": 1}
    metrics = {"relative_l2_of_particles": 0.4567, "relative_l2_of_mean": 0.3, "relative_l2_prior_sample": 1.4}
    summary = {"problem": "p", "method": "enkg", "ensembles": 1, "config": {}, "prior": "g", "seed": 0, "seconds": 1.0,
               "metrics": metrics, "metrics_per_ensemble": [metrics], "ledger": ledger, "collapsed_updates": 4,
               "trust": {"trust": [0.5]}, "spread": "spread.", "notes": "notes."}
    assert report.caption(summary)[0] == ("M2: relative L2 error of the ensemble mean 0.3; M1: relative L2 error of "
                                          "the particles, averaged 0.457")
    first, second, third = report.text(summary).splitlines()[1:4]
    assert "M1" in first and "M2" in second and "root mean square" in third
    assert "updates skipped                  4 " in report.text(summary)
    assert "skipped" not in report.text({**summary, "collapsed_updates": 0})


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


def _simulate(own, program):
    """Another simulator in ``own``, made of my_simulator's ``whole``; images.npy for the reference of EnKG-R."""
    Path("failing.py").write_text(f"import numpy as np\nfrom my_simulator import forward as whole\n\n\n{program}")
    sys.modules.pop("failing", None)
    own[1] = "failing:forward"
    np.save("images.npy", np.random.default_rng(4).standard_normal((400, 5)))


@pytest.mark.parametrize("method", ["enkg", "enkg-r"])
@pytest.mark.parametrize("ensembles", [1, 2])
def test_that_failed_predictions_of_the_last_particles_are_left_out_and_counted(own, method, ensembles, capsys):
    """A fifth of all forward calls fails, those for the result's own sake among them."""
    pytest.importorskip("onnxruntime")
    _simulate(own, "def forward(x):\n    bad = np.floor(1e6 * np.abs(x[:, :1])) % 5 == 0\n"
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


def _strict(text):
    """JSON as the standard has it: NaN and Infinity are none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_that_levels_without_a_finite_row_are_null_in_the_history_and_a_dash_in_the_text(own, capsys):
    """From the eighth of ten calls on the simulator gives nothing: no level was measured, no prediction is left."""
    pytest.importorskip("onnxruntime")
    _simulate(own, "calls = []\n\n\ndef forward(x):\n    calls.append(x)\n"
              "    return whole(x) * (1.0 if len(calls) < 8 else np.nan)\n")
    assert run(*own, "--method", "enkg-r", "--budget", 160, "--reference", "images.npy", "--out", "out") == 0
    lines = [_strict(line) for line in Path("out/history.jsonl").read_text().splitlines()]
    assert [line["kappa"] is None for line in lines] == 7 * [False] + 3 * [True]
    summary = _strict(Path("out/summary.json").read_text())
    assert summary["trust"]["kappa"] == [None] and summary["failed_predictions"] == 16
    printed = next(line for line in capsys.readouterr().out.splitlines() if "kappa" in line)
    assert printed.split()[:2] == ["kappa", "-"]
    assert any("kappa -: square innovation" in words for words in cli.report.caption(summary))
    from problems.black_hole_figure import _draw_convergence

    _draw_convergence(pytest.importorskip("matplotlib.figure").Figure().subplots(), lines)


def test_that_a_method_without_a_history_to_draw_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("linear-gaussian", "--method", "eki", "--budget", 64, "--quiet", "--out", tmp_path / "out") == 0


BAD = [
    (["linear-gausian"], "did you mean linear-gaussian"),
    ([], "problem: got nothing"),
    (["linear-gaussian", "--method", "enkq"], "did you mean enkg"),
    (["linear-gaussian", "--prior", "no-such-prior"], "no-such-prior"),
    (["linear-gaussian", "--prior", "missing.onnx"], "missing.onnx"),
    (["linear-gaussian", "--preset", "black-hole"], "did you mean black-hole-official"),
    (["linear-gaussian", "--particles", "1"], "particles: got 1, expected at least 2"),
    (["linear-gaussian", "--steps", "1"], "steps: got 1, expected at least 2"),
    (["linear-gaussian", "--particles", "many"], "--particles: got 'many', expected an integer"),
    (["linear-gaussian", "--guidance", "nan"], "--guidance: got 'nan', expected a finite number"),
    (["linear-gaussian", "--noise", "-1"], "--noise: got '-1', expected a number >= 0"),
    (["linear-gaussian", "--noise", "0"], "noise: got 0.0, expected a standard deviation > 0"),
    (["linear-gaussian", "--seed", "-3"], "seed: got -3"),
    (["linear-gaussian", "--ensembles", "0"], "ensembles: got 0"),
    (["linear-gaussian", "--observation", "y.npy"], "observation: got y.npy, expected nothing"),
    (["linear-gaussian", "--device", "cuda"], "device: got cuda"),
    (["linear-gaussian", "--resume"], "resume: got"),
    (["linear-gaussian", "--window", "1"], "--window: got '1', expected START,END"),
    (["linear-gaussian", "--nonsense"], "--nonsense"),
    (["--forward", "my_simulator:forward"], "prior: got nothing"),
    (["black-hole", "--observation", "missing.csv"], "missing.csv"),
    (["black-hole", "--truth", "small.npy"], "(3, 3)"),
    (["black-hole", "--systematic", "0.1"], "systematic: got 0.1, expected nothing: problem black-hole"),
    (["m87", "--coverage", "sgra"], "coverage: got sgra, expected nothing: problem m87 does not use it"),
    (["m87", "--item", "3"], "item: got 3, expected nothing: problem m87"),
    (["linear-gaussian", "--size", "64"], "size: got 64, expected nothing: problem linear-gaussian"),
    (["linear-gaussian", "--workers", "0"], "workers: got 0, expected at least 1"),
    (["linear-gaussian", "--window", "0.9,0.9"], "--window: got '0.9,0.9', expected two fractions"),
    (["linear-gaussian", "--window=-1,2"], "--window: got '-1,2', expected two fractions"),
    (["linear-gaussian", "--steps", "4", "--window", "0.5,0.4"], "window: got 0.5,0.4, which guides none of 4 levels"),
    (["black-hole", "--preset", "black-hole-official", "--steps", "40"], "steps: got 40 with a preset"),
    (["m87", "--day", "1"], "day: got '1'"),
    (["navier-stokes", "--size", "33"], "size: got 33, expected 32, 64, 128 grid points per axis"),
    (["navier-stokes", "--size", "128"], "onnx_priors.training.navier_stokes --size 128, or --prior gaussian"),
    (["navier-stokes", "--noise", "-0.1"], "--noise: got '-0.1', expected a number >= 0"),
    (["navier-stokes", "--truth", "small.npy"], "truth: got shape (3, 3), expected (32, 32)"),
    (["navier-stokes", "--observation", "small.npy"], "observation: got shape (3, 3), expected (16, 16)"),
    (["navier-stokes", "--observation", "two.npz"], "observation: got two.npz, which is an archive of arrays"),
    (["navier-stokes", "--truth", "two.npz"], "truth: got two.npz, which is an archive of arrays, expected one array"),
    (["navier-stokes", "--observation", "complex.npy"], "got complex.npy, which is an array of complex128, expected"),
    (["navier-stokes", "--truth", "cut.npz"], "truth: got cut.npz, which is not an array of numbers"),
    (["navier-stokes", "--truth", "zero.npy"], "truth: got zeros everywhere, expected another field"),
    (["navier-stokes", "--item", "-1"], "item: got -1, expected a number >= 0"),
    (["navier-stokes", "--observation", "y.npy", "--item", "3"], "item: got 3, expected nothing: problem navier-stokes "
     "does not use it with --observation"),
    (["navier-stokes", "--observation", "y.npy", "--data-solver", "padded"], "data_solver: got padded, expected "),
    (["black-hole", "--observation", "y.csv", "--coverage", "sgra"], "coverage: got sgra, expected nothing"),
    (["navier-stokes", "--fft", "pyfftw"], "fft: got pyfftw, which is not installed, expected it from the extra fast: "
     "pip install -e '.[fast]'"),
    (["navier-stokes", "--size", "64", "--prior", "kerr-disc-64"], "got kerr-disc-64, made for 'image of peak 1"),
    (["black-hole", "--prior", "navier-stokes-64"], "prior: got navier-stokes-64, made for 'vorticity, Re = 200, "),
    (["navier-stokes", "--stop", "particle"], "stop: got particle with noise-free data, expected --noise above 0"),
    (["navier-stokes", "--step-rule", "tempered"], "step_rule: got tempered with noise-free data"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "small.npy"], "with an array of shape (3, 3), "
     "expected at least 32 images of shape (32, 32) in physical units"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "none.npy"], "got none.npy, which does not exist"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "none.npz"], "reference: none.npz does not exist"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "nan.npy"], "got nan.npy with non-finite values"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "few.npy"], "expected at least 32 images of shape"),
    (["navier-stokes", "--reference", "few.npy"], "reference: got few.npy with method enkg, which needs none"),
    (["linear-gaussian", "--prior", "gaussian"], "prior: got gaussian, which problem linear-gaussian-a does not have"),
    (["navier-stokes", "--method", "enkg-r", "--reference", "same.npy"], "reference: got images that are all alike"),
    (["navier-stokes", "--method", "enkg-r", "--prior", "gaussian", "--reference", "foreign.npz"], "made for the prior "
     "with sha256 4567..., expected one for a prior that is no file"),
    (["linear-gaussian", "--method", "enkg-r", "--budget", "9" * 23], "9', expected an integer of at most 18 digits"),
    (["m87", "--observation", "y.npy"], "observation: got y.npy, expected nothing: problem m87 does not use it"),
]


@pytest.mark.parametrize("argv, sentence", BAD, ids=[" ".join(argv) or "nothing" for argv, _ in BAD])
def test_that_bad_input_exits_2_with_one_sentence_and_writes_nothing(argv, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("small.npy", np.zeros((3, 3)))
    np.save("nan.npy", np.full((40, 32, 32), np.nan))
    np.save("few.npy", np.zeros((31, 32, 32)))
    np.save("same.npy", np.ones((40, 32, 32)))
    Reference(np.zeros((32, 32)), np.eye(1024)[:, :2], np.ones(2), prior="4567").save("foreign.npz")
    np.save("zero.npy", np.zeros((32, 32)))
    np.save("y.npy", np.ones(256))
    np.save("complex.npy", np.full(256, 1j))
    np.savez("two.npz", a=np.ones(256), b=np.ones(256))
    Path("cut.npz").write_bytes(Path("two.npz").read_bytes()[:300])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pyfftw" else find(name, *a))
    assert run(*argv, "--quiet", "--out", "out") == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert not Path("out").exists()


@pytest.mark.parametrize("change, sentence", [
    (lambda a: a.__setitem__(1, "my_simulator:nothing"), "forward: got my_simulator:nothing"),
    (lambda a: a.__setitem__(1, "no_module:f"), "forward: got no_module:f"),
    (lambda a: np.save("y.npy", np.array([1.0, np.nan, 2.0])), "observation: got y.npy with non-finite values"),
    (lambda a: Path("y.npy").write_text("not numbers"), "observation: got y.npy, which is not an array"),
    (lambda a: Path("y.npy").unlink(), "observation: got y.npy, which does not exist"),
    (lambda a: a.extend(["--truth", "y.npy"]), "truth: got shape (3,), expected (5,)"),
    (lambda a: Path("prior.onnx").write_bytes(Path("prior.onnx").read_bytes()[:200]), "prior.onnx"),
    (lambda a: a.__setitem__(1, "no-such-program {input} {output}"), "forward: got the program no-such-program"),
    (lambda a: np.save("y.npy", np.zeros(4)), "forward: got an output of shape (16, 3), expected (16, 4)"),
])
def test_that_a_bad_problem_of_ones_own_is_named(own, change, sentence, capsys):
    pytest.importorskip("onnxruntime")
    change(own)
    assert run(*own, *SMALL, "--out", "out") == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("enkg: error") == 1
    # nothing was computed: the corrected command may use the same folder
    assert not Path("out/run").exists() and "unfinished" not in err


def test_that_a_budget_to_tune_at_is_named_by_its_own_option(tmp_path, capsys):
    assert cli.main(["compare", "linear-gaussian", "--methods", "eki", "--budget", "40", "--tune", "-3", "--out",
                     str(tmp_path / "out")]) == 2
    assert "tune: got -3, expected a budget of at least 1" in capsys.readouterr().err


def test_that_a_comparison_knows_the_reference_beside_a_prior_file(own):
    """What lies beside the prior of one's own is part of what was compared."""
    pytest.importorskip("onnxruntime")
    from problems.linear_gaussian import linear_gaussian

    options = cli._parser().parse_args(["compare", "linear-gaussian", "--prior", "prior.onnx", "--methods", "enkg-r",
                                        "--budget", "64"])
    assert cli._identity(options, linear_gaussian())["reference_sha256"] is None
    Path("prior.reference.npz").write_bytes(b"a")
    assert cli._identity(options, linear_gaussian())["reference_sha256"] == cli.file_sha256("prior.reference.npz")


def test_that_a_prior_of_another_shape_is_refused(own, capsys):
    pytest.importorskip("onnxruntime")
    assert run("linear-gaussian", "--prior", "prior.onnx", *SMALL, "--out", "out") == 2
    assert "(5,)" in capsys.readouterr().err and not Path("out").exists()


def test_that_a_folder_with_a_run_is_never_overwritten(tmp_path, capsys):
    out = tmp_path / "out"
    assert run("linear-gaussian", *SMALL, "--out", out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run("linear-gaussian", *SMALL, "--out", out) == 2
    assert run("linear-gaussian", *SMALL, "--out", out, "--resume") == 2
    assert "finished run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").write_text("")
    assert run("linear-gaussian", *SMALL, "--out", tmp_path / "file") == 2


@pytest.mark.parametrize("name", ["figure.png", "result.npz", "history.jsonl", "run/data.txt"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_that_files_of_another_origin_are_never_touched(name, resume, tmp_path, capsys):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert run("linear-gaussian", *SMALL, "--out", tmp_path / "out", *resume) == 2
    assert "expected another folder" in capsys.readouterr().err and mine.read_text() == "mine"


def _csv(change):
    """The data of day 101 with its lines changed."""
    from problems import black_hole

    lines = (Path(black_hole.__file__).parent / "data" / "m87_2017_101_lo_scanavg.csv").read_text().splitlines()
    Path("data.csv").write_text("\n".join(change(lines)) + "\n")


def _sigma(value):
    return lambda lines: [*lines[:-1], ",".join([*lines[-1].split(",")[:-1], value])]


@pytest.mark.parametrize("change, sentence", [
    (lambda lines: [], "data.csv"),
    (lambda lines: ["a picture, not a table"] * 3, "data.csv"),
    (lambda lines: [line.rsplit(",", 1)[0] if "#" not in line else line for line in lines], "data.csv"),
    (lambda lines: [*lines[:9], lines[9][:20]], "data.csv"),
    (_sigma("nan"), "sigma"), (_sigma("0"), "sigma"), (_sigma("-1"), "sigma"),
    (lambda lines: [line for line in lines if "#" in line or ",AA,LM," in line], "station"),
    (lambda lines: [line for line in lines if "#" in line or ",AA,LM," in line or ",AA,PV," in line], "triangle"),
], ids=["empty", "no table", "missing column", "truncated", "nan", "zero", "negative", "two stations", "no triangle"])
def test_that_a_bad_observation_is_named_in_one_sentence(change, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _csv(change)
    assert run("black-hole", "--observation", "data.csv", "--quiet", "--out", "out") == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and not Path("out").exists()


def test_that_three_stations_with_no_quadrangle_are_solved_and_drawn(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    pairs = [f",{a},{b}," for a in ("AA", "LM", "PV") for b in ("AA", "LM", "PV")]
    _csv(lambda lines: [line for line in lines if "#" in line or any(pair in line for pair in pairs)])
    assert run("black-hole", "--observation", "data.csv", "--prior", "kerr-disc-64-gaussian", "--particles", 4,
               "--steps", 4, "--quiet", "--out", "out") == 0
    metrics = json.loads(Path("out/summary.json").read_text())["metrics"]
    assert metrics["chi2_cp"] > 0 and "chi2_lca" not in metrics and Path("out/figure.png").stat().st_size > 10_000


def test_that_a_corrupted_weight_file_is_refused(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    from onnx_priors import manifest

    broken = bytearray((manifest.WEIGHTS / "kerr-disc-64-gaussian.onnx").read_bytes())
    broken[len(broken) // 2] ^= 1
    (tmp_path / "kerr-disc-64-gaussian.onnx").write_bytes(broken)
    (tmp_path / "manifest.json").write_text(manifest.MANIFEST.read_text())
    monkeypatch.setattr(manifest.resolve, "__defaults__", ("denoiser", tmp_path / "manifest.json"))
    assert run("black-hole", "--prior", "kerr-disc-64-gaussian", "--quiet", "--out", tmp_path / "out") == 2
    assert "sha256" in capsys.readouterr().err and not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("change", [
    lambda a: Path("my_simulator.py").rename("other.py") and a.__setitem__(1, "other:forward"),
    lambda a: GaussianPrior(np.ones(5), 1.0).to_onnx("prior.onnx", {"sigma_min": 0.002, "sigma_max": 80.0}),
], ids=["another simulator", "another prior of the same name"])
def test_that_a_checkpoint_of_another_run_is_refused(own, change, capsys, interrupted):
    pytest.importorskip("onnxruntime")
    interrupted(*own, *SMALL)
    change(own)
    assert run(*own, *SMALL, "--out", "out", "--resume") == 2
    assert "checkpoint: got a run with" in capsys.readouterr().err


def test_that_another_reference_beside_the_prior_makes_another_run(own, capsys, interrupted):
    pytest.importorskip("onnxruntime")
    own += ["--method", "enkg-r", "--budget", 160, "--quiet"]
    sha = cli.file_sha256("prior.onnx")
    Reference(np.zeros(5), np.eye(5), np.ones(5), prior=sha).save("prior.reference.npz")
    interrupted(*own)
    Reference(np.zeros(5), np.eye(5), np.full(5, 0.9), prior=sha).save("prior.reference.npz")
    assert run(*own, "--out", "out", "--resume") == 2
    assert "checkpoint: got a run with reference = " in capsys.readouterr().err
    Reference(np.zeros(5), np.eye(5), np.ones(5), prior=sha).save("prior.reference.npz")
    assert run(*own, "--out", "out", "--resume") == 0


def test_that_a_run_goes_on_with_more_ensembles_but_never_with_fewer(own, capsys, interrupted):
    pytest.importorskip("onnxruntime")
    own += [*SMALL, "--workers", 1]
    interrupted(*own, "--ensembles", 2)
    before = {path.name: path.read_bytes() for path in Path("out/run").iterdir()}
    assert run(*own, "--ensembles", 1, "--out", "out", "--resume") == 2
    assert "ensembles: got 1, expected at least 2: so many are begun in out" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("out/run").iterdir()} == before
    assert run(*own, "--ensembles", 3, "--out", "out", "--resume") == 0
    assert run(*own, "--ensembles", 3, "--out", "whole") == 0
    assert np.array_equal(*(np.load(f"{name}/result.npz")["ensemble"] for name in ("out", "whole")))


def test_that_two_processes_never_work_on_one_ensemble(own, capsys):
    pytest.importorskip("onnxruntime")
    fcntl = pytest.importorskip("fcntl")
    Path("out/run").mkdir(parents=True)
    Path("out/run/enkg-run").touch()
    with open("out/run/ensemble-0.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(*own, *SMALL, "--out", "out") == 2
    assert "another process is at work" in capsys.readouterr().err


def test_that_workers_end_when_their_parent_is_killed(tmp_path):
    command = [sys.executable, "-m", "enkg_ref", "solve", "linear-gaussian", "--ensembles", "2", "--workers", "2",
               "--particles", "2000", "--steps", "300", "--updates", "20", "--out", str(tmp_path / "out"), "--quiet"]
    started = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])})
    histories = [tmp_path / "out" / "run" / f"ensemble-{k}.jsonl" for k in (0, 1)]
    deadline = time.monotonic() + 60
    while not all(path.exists() and path.stat().st_size for path in histories) and time.monotonic() < deadline:
        time.sleep(0.05)
    started.kill()
    started.wait()
    time.sleep(2.0)
    before = [path.stat().st_size for path in histories]
    time.sleep(1.0)
    assert min(before) > 0 and [path.stat().st_size for path in histories] == before


def test_that_an_interrupted_run_resumes_to_the_same_bits(own, tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "slow.py").write_text(
        "import os, time\nfrom my_simulator import forward as fast\n\n\ndef forward(x):\n"
        "    time.sleep(0.05 if os.path.exists('slow') else 0.0)\n    return fast(x)\n")
    own[1] = "slow:forward"
    # a test run in the background of a shell ignores interrupts, and its children with it
    start = ("import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
             "from enkg_ref.cli import main; sys.exit(main())")
    command = [sys.executable, "-c", start, "solve", *own, "--particles", "8", "--steps", "30"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(cli.__file__).parents[1]), str(tmp_path)])}
    subprocess.run([*command, "--out", "whole", "--quiet"], check=True, env=environment)
    Path("slow").touch()
    started = subprocess.Popen([*command, "--out", "cut"], env=environment, stderr=subprocess.PIPE, text=True)
    history = Path("cut/run/ensemble-0.jsonl")
    while started.poll() is None and not (history.exists() and history.read_text().count("\n") >= 7):
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate()
    assert started.returncode == 130 and "--resume" in err
    other = subprocess.run([*command, "--out", "cut", "--resume", "--guidance", "1"], env=environment, text=True,
                           capture_output=True)
    assert other.returncode == 2 and "guidance = 2.0, expected 1.0" in other.stderr
    Path("slow").unlink()
    subprocess.run([*command, "--out", "cut", "--quiet", "--resume"], check=True, env=environment)
    whole, cut = (np.load(Path(name, "result.npz")) for name in ("whole", "cut"))
    assert np.array_equal(whole["ensemble"], cut["ensemble"])
    assert Path("whole/history.jsonl").read_text() == Path("cut/history.jsonl").read_text()
    ledgers = [json.loads(Path(name, "summary.json").read_text())["ledger"] for name in ("whole", "cut")]
    assert {k: v for k, v in ledgers[0].items() if k != "wall"} == {k: v for k, v in ledgers[1].items() if k != "wall"}


def test_that_list_names_every_problem_method_and_prior(capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in (*problems.PROBLEMS, *arena.METHODS):
        assert name in printed


def test_a_reader_that_leaves_early_is_no_error():
    """`enkg list | head -1`: the pipe is closed before the list is written; that is all the reader wanted."""
    program = "import sys; sys.stdin.readline(); from enkg_ref.cli import main; sys.exit(main(['list']))"
    listing = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    listing.stdout.close()
    listing.stdin.write("\n")
    listing.stdin.close()
    assert listing.stderr.read() == "" and listing.wait() == 0

"""What benchmarks/enkg_r.py computes itself: the ES-MDA it compares with, and its tables."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FILES = ("enkg_r_records", "enkg_r_flows", "enkg_r_images", "enkg_r_tables")


@pytest.fixture
def benchmark_files(monkeypatch):
    """{name: module} of the files beside benchmarks/enkg_r.py, which import each other; fresh for every test."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    yield {name: importlib.import_module(name) for name in FILES}
    for name in FILES:
        sys.modules.pop(name, None)


@pytest.fixture
def tables(benchmark_files):
    return benchmark_files["enkg_r_tables"]


@pytest.mark.parametrize("assimilations", [1, 4])
def test_that_es_mda_tends_to_the_posterior_of_a_linear_gaussian_problem_as_its_ensemble_grows(
        benchmark_files, assimilations):
    rng = np.random.default_rng(1)
    d, m, noise = 5, 3, 0.5
    H, mu = rng.standard_normal((m, d)), rng.standard_normal(d)
    root = rng.standard_normal((d, d)) / d**0.5
    Sigma, y = root @ root.T, rng.standard_normal(m)
    K = Sigma @ H.T @ np.linalg.inv(H @ Sigma @ H.T + noise**2 * np.eye(m))
    mean, covariance = mu + K @ (y - H @ mu), Sigma - K @ H @ Sigma
    sizes, errors = (250, 16_000), []
    for J in sizes:
        means = []
        for seed in range(20):
            own = np.random.default_rng([seed, J])
            start = mu + own.standard_normal((J, d)) @ root.T
            x = benchmark_files["enkg_r_flows"].es_mda(start, lambda x: x @ H.T, y, noise, assimilations, own)
            means.append(x.mean(axis=0))
        errors.append(np.sqrt(np.mean((np.array(means) - mean) ** 2)))
    # rms over 100 numbers, relative error 7 %: the order of Monte Carlo is 1/8 for 64 times the members
    assert errors[1] / errors[0] == pytest.approx(np.sqrt(sizes[0] / sizes[1]), rel=0.35)
    sd = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / sizes[1])
    # every assimilation adds sampling error of its own: four times twice the standard error of one draw
    assert np.all(np.abs(np.cov(x.T) - covariance) < 8 * sd)


def test_that_rows_that_fail_leave_the_ensemble_of_es_mda(benchmark_files):
    es_mda, rng = benchmark_files["enkg_r_flows"].es_mda, np.random.default_rng(0)

    def forward(x):
        return np.where(np.arange(len(x))[:, None] == 3, np.nan, x)

    start = rng.standard_normal((50, 2))
    x = es_mda(start, forward, np.zeros(2), 1.0, 1, np.random.default_rng(1))
    without = es_mda(np.delete(start, 3, axis=0), lambda x: x, np.zeros(2), 1.0, 1, np.random.default_rng(1))
    np.testing.assert_allclose(x, without)


def test_that_a_table_averages_the_seeds_of_a_field_before_the_fields_and_pools_the_spread(tables):
    rows = [{"item": item, "seed": seed, "m2": m2, "spread": spread, "skill": 1.0}
            for item, seed, m2, spread in ((0, 0, 0.1, 1.0), (0, 1, 0.3, 3.0), (0, 2, 0.2, 2.0), (1, 0, 0.4, 6.0))]
    found = tables.summary(rows)
    assert found["fields"] == 2 and found["worst"] == 0.4
    assert found["m2"] == pytest.approx((0.2 + 0.4) / 2) and found["ssr"] == pytest.approx(((2.0 + 6.0) / 2) ** 0.5)
    assert found["words"] == "0.300"  # two fields have no interval


def test_that_a_run_made_twice_counts_once(benchmark_files, tmp_path, monkeypatch):
    records = benchmark_files["enkg_r_records"]
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    (tmp_path / "enkg_r_sparse.jsonl").write_text("".join(
        f'{{"item": {item}, "seed": 0, "psnr_aligned": {psnr}}}\n' for item, psnr in ((0, 1), (1, 2), (0, 3))))
    assert [(r["item"], r["psnr_aligned"]) for r in records.kept("sparse")] == [(0, 1), (1, 2)]


def test_that_trust_is_ranked_within_a_problem_and_not_told_from_the_problem(tables, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    names = [*tables.TRUST.values()]
    rows = {}
    for problem, scale, error_scale in (("a", 1.0, 10.0), ("b", 100.0, 0.1)):  # trusted less, and yet more accurate
        number = np.sort(rng.random(50))
        rows[problem] = [{"group": problem, "error": error_scale * v} | dict.fromkeys(names, scale * v) for v in number]
    monkeypatch.setattr(tables, "with_errors", lambda: rows)
    monkeypatch.setattr(tables, "kept", lambda table: [
        {"budget": 1504, "data": "same", "particles": None, "noise": noise, "m2": m2, "farthest": 1.0, "retries": 0,
         **dict.fromkeys(names, m2)} for noise in (0.0, 0.55, 1.1) for m2 in (0.1, 0.2, 0.3)])
    tables.trust()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| kappa"))
    a, b, ranked, raw = map(float, line.split("|")[2:6])
    assert a == b == ranked == 1.0 and raw < 0.0


def test_that_a_document_gets_the_tables_at_its_marks_and_nothing_else_changes(
        benchmark_files, load_benchmark, tmp_path, monkeypatch):
    command = load_benchmark("enkg_r")
    monkeypatch.setattr(benchmark_files["enkg_r_records"], "RESULTS", tmp_path)
    monkeypatch.setattr(command, "DOCUMENT", tmp_path / "A.md")
    (tmp_path / "enkg_r_wall.jsonl").write_text(
        '{"command": "m87", "ensembles": 3, "forward_calls": 9, "seconds": 12.34, "load": 0.5}\n')
    (tmp_path / "A.md").write_text("before\n<!-- enkg_r.py wall -->\nold\n<!-- end -->\nafter\n")
    for _ in range(2):
        command.document()
    text = (tmp_path / "A.md").read_text()
    assert text.startswith("before\n<!-- enkg_r.py wall -->\n| enkg solve")
    assert text.endswith("|\n<!-- end -->\nafter\n")
    assert "| m87 | 3 | 9 | 12.3 | 0.5 |" in text and "old" not in text

"""The tables of benchmarks/navier_stokes.py show what is stored, also where the files behind it are not kept."""

import json
import sys

import pytest

pytest.importorskip("onnxruntime")


@pytest.fixture
def script(load_benchmark, tmp_path, monkeypatch):
    """The script in a fresh clone: no trainings beside it, nothing written to the repository."""
    module = load_benchmark("navier_stokes")
    for name in ("navier_stokes_runs.jsonl", "navier_stokes_priors.json"):
        (tmp_path / name).write_bytes((module.RESULTS / name).read_bytes())
    monkeypatch.setattr(module, "WORK", tmp_path / "none")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(module, "RUNS", tmp_path / "navier_stokes_runs.jsonl")
    monkeypatch.setattr(module, "PRIORS", tmp_path / "navier_stokes_priors.json")
    return module


def test_the_table_of_priors_keeps_its_rows_without_the_shorter_trainings(script, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["navier_stokes.py", "prior", "--show"])
    script.main()
    lines = (tmp_path / "navier_stokes_prior.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| navier")]
    stored = json.loads((tmp_path / "navier_stokes_priors.json").read_text())
    assert [row[0].strip("| ") for row in rows] == script.levels()
    assert [int(row[1]) for row in rows] == [0, 8_000, 40_000, 280_000]
    assert [float(row[2]) for row in rows] == [round(facts["denoising_ratio"], 3) for facts in stored.values()]

"""``enkg verify``: every line holds, a broken update is noticed, bad input is one sentence."""

import dataclasses
import json

import numpy as np
import pytest

from enkg_ref import ensemble
from enkg_ref.statements import verify

ALL = {"T4-T6", "T6a=T6b", "T9", "T10", "T11", "T12", "T13", "T9-T13", "Cor.2", "Cor.3", "Cor.2 sharp", "Thm 4a",
       "Thm 4b", "Lemma 5", "T14", "T16", "T17b", "T17 limit", "T17 kappa", "T18", "T19", "T19b", "T19 rate", "C1",
       "C1'", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C8 guard", "C9", "Prop.1", "T21", "T22", "(18) typo",
       "Thm 7 slope", "Thm 7 J", "4.1 mean", "4.1 cov", "4.1 rate", "4.2", "4.4 error", "4.4 misfit", "I7 / 4.5",
       "4.6a identity", "4.6a error", "4.6a calls", "4.6b SSR", "4.6b error", "(E4)", "(E7)", "(E8) mean", "(E8) cov",
       "I1", "I2", "I5", "I6", "I8", "I9", "I10", "masked", "counts"}
FINDINGS = {"C1", "C1'", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "(18) typo", "Thm 7 J", "4.2", "I7 / 4.5"}


@pytest.mark.slow
def test_every_statement_holds_and_the_counterexamples_are_findings(capsys, tmp_path):
    assert verify.run(tmp_path / "verify.json") == 0
    lines = json.loads((tmp_path / "verify.json").read_text())["statements"]
    assert {line["name"] for line in lines} == ALL
    assert {line["name"] for line in lines if line["verdict"] == "finding"} == FINDINGS
    assert not [line for line in lines if line["verdict"] == "fail"]
    assert sum(line["instances"] for line in lines) >= 10_000
    # an identity is held to its rounding error: no bound is wider than thirty times what is found
    identities = [line for line in lines if line["low"] is None and line["high"] < 1e-4 and line["measured"] > 0]
    assert len(identities) > 30
    assert [line["name"] for line in identities if line["high"] > 30 * line["measured"]] == []
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(lines) + 2 and all(line["name"] in row for line, row in zip(lines, shown[1:]))


def measured(backend, names):
    library = verify.Library(backend)
    return [verify._measured(library, *entry) for entry in verify._STATEMENTS if entry[0] in names]


@pytest.mark.parametrize("backend", ["strict", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_the_update_lines_hold_on_the_other_back_ends(backend):
    pytest.importorskip({"strict": "array_api_strict"}.get(backend, backend))
    records = measured(backend, {"T4-T6", "T6a=T6b", "T13", "T17 limit", "C4", "Prop.1", "counts"})
    assert len(records) == 13 and not [r for r in records if r.verdict == "fail"]


def test_the_lines_about_enkg_r_hold():
    records = measured("numpy", {"(E4)", "(E7)", "(E8) mean", "(E8) cov"})
    assert [r.verdict for r in records] == ["pass"] * 4


@pytest.mark.parametrize("always", [True, False])
def test_that_an_update_that_is_not_a_number_passes_no_line_about_one_step(always, monkeypatch):
    calls = iter(range(10**9))

    def broken(x, *rest):
        return x * np.nan if always or next(calls) % 3 == 2 else right(x, *rest)

    right = ensemble.update_pairwise
    monkeypatch.setattr(ensemble, "update_pairwise", broken)
    monkeypatch.setattr(ensemble, "update_lowrank", lambda x, *rest: x * np.nan)
    names = {"T4-T6", "T6a=T6b", "T10", "T11", "T12", "T9-T13", "Prop.1", "T14", "T17b", "T17 limit", "T19", "T21",
             "T22", "I1", "I2", "I5", "I6", "I8", "I9", "I10", "masked"}
    records = measured("numpy", names)
    assert {r.name for r in records} == names
    assert [r.name for r in records if r.verdict != "fail"] == []


@pytest.mark.parametrize("flaw", ["sign", "half", "divisor", "no anomaly"])
def test_a_broken_update_fails_lines_and_the_exit_code_says_so(flaw, monkeypatch, capsys):
    def broken(x, z, k, w):
        z = x if flaw == "no anomaly" else z
        factor = {"sign": -1.0, "half": 0.5, "divisor": (len(x) - 1) / len(x)}.get(flaw, 1.0)
        return x - factor * w * (k + (1.0 if flaw == "no anomaly" else 0.0)) @ z

    monkeypatch.setattr(ensemble, "update_pairwise", broken)
    monkeypatch.setattr(verify, "_STATEMENTS", [e for e in verify._STATEMENTS if e[0] in ("T4-T6", "C4")])
    assert verify.run() == 1
    assert "1 fail on numpy" in capsys.readouterr().out


def test_a_measurement_that_is_not_a_number_fails():
    record = verify._measured(None, "x", "claim", -np.inf, np.inf, True, lambda library: (np.nan, 1))
    assert record.verdict == "fail"


def test_an_unknown_back_end_or_one_that_is_not_installed_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="backend: got 'matlab', expected one of numpy, torch"):
        verify.run(backend="matlab")
    monkeypatch.setitem(verify.BACKENDS, "torch", "no_such_package")
    with pytest.raises(ImportError, match="backend: torch needs the package no_such_package, which is not installed"):
        verify.statements("torch")


def test_a_report_cannot_go_to_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="json: got .*expected a file in a folder that exists"):
        verify.run(tmp_path / "missing" / "verify.json")


def test_records_are_frozen_and_say_what_was_expected():
    record = verify.Record("T9", "claim", 0.1, 0.0, 1.0, 3, "pass")
    assert verify._expected(record) == "0 .. 1"
    assert verify._expected(dataclasses.replace(record, low=-np.inf, high=1e-12)) == "<= 1e-12"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.verdict = "fail"

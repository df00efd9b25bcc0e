"""``enkg verify``: every statement holds, a broken update is noticed, bad input is one sentence."""

import dataclasses
import json

import numpy as np
import pytest

from enkg_ref import ensemble, statements
from enkg_ref.commands.verify import verify
from enkg_ref.statements import line as lines

FINDINGS = {"C1", "C1'", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "(18) typo", "Thm 7 J", "4.2", "I7 / 4.5"}
LONG = {"Cor.2", "Cor.3", "4.1 rate", "4.6b SSR", "4.6b error"}  # seconds each


def named(names):
    return [line for line in statements.STATEMENTS if line.name in names]


def measured(backend, names):
    library = statements.Library(backend)
    return [statements.measured(library, line) for line in named(names)]


@pytest.mark.parametrize("line", [pytest.param(line, marks=[pytest.mark.slow] if line.name in LONG else [])
                                  for line in statements.STATEMENTS], ids=lambda line: line.name)
def test_the_statement_holds(line):
    record = statements.measured(statements.Library(), line)
    assert record.verdict == ("finding" if line.name in FINDINGS else "pass"), record
    if record.low == -np.inf and record.high < 1e-4 and record.measured > 0:
        # an identity is held to its rounding error: no bound is wider than thirty times what is found
        assert record.high <= 30 * record.measured, record


@pytest.mark.slow
def test_the_report_lists_every_statement_and_more_than_ten_thousand_instances(capsys, tmp_path):
    assert verify(tmp_path / "verify.json") == 0
    found = json.loads((tmp_path / "verify.json").read_text())["statements"]
    assert [line["name"] for line in found] == [line.name for line in statements.STATEMENTS]
    assert {line["name"] for line in found if line["verdict"] == "finding"} == FINDINGS
    assert sum(line["instances"] for line in found) >= 10_000
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(found) + 2 and all(line["name"] in row for line, row in zip(found, shown[1:]))


@pytest.mark.parametrize("backend", ["strict", "torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_the_update_lines_hold_on_the_other_back_ends(backend):
    pytest.importorskip({"strict": "array_api_strict"}.get(backend, backend))
    names = {"T4-T6", "T6a=T6b", "T13", "T17 limit", "C4", "Prop.1", "counts", "T3c", "(E3) memory"}
    records = measured(backend, names)
    assert len(records) == 15 and [r for r in records if r.verdict == "fail"] == []


@pytest.mark.parametrize("always", [True, False])
def test_that_an_update_that_is_not_a_number_passes_no_line_about_one_step(always, monkeypatch):
    calls = iter(range(10**9))

    def broken(r, b):
        return right(r, b) * (np.nan if always or next(calls) % 3 == 2 else 1.0)

    right = ensemble.coefficients
    monkeypatch.setattr(ensemble, "coefficients", broken)
    names = {"T4-T6", "T6a=T6b", "T10", "T11", "T12", "T9-T13", "Prop.1", "T14", "T17b", "T17 limit", "T19", "T21",
             "T22", "I1", "I2", "I5", "I6", "I8", "I9", "I10", "masked", "T5", "Lemma 5"}
    library = statements.Library()
    library.thinning = 20
    records = [statements.measured(library, line) for line in named(names)]
    assert {r.name for r in records} == names
    assert [r.name for r in records if r.verdict != "fail"] == []


@pytest.mark.parametrize("flaw", ["sign", "half", "divisor", "no anomaly"])
def test_a_broken_update_fails_lines_and_the_exit_code_says_so(flaw, monkeypatch, capsys):
    def broken(r, b):
        return {"sign": -1.0, "half": 0.5, "divisor": (len(r) - 1) / len(r)}.get(flaw, 1.0) * right(r, b) + (
            flaw == "no anomaly")

    right = ensemble.coefficients
    monkeypatch.setattr(ensemble, "coefficients", broken)
    monkeypatch.setattr(statements, "STATEMENTS", named({"T4-T6", "T10"}))
    assert statements.run() == 1
    assert " fail on numpy" in (shown := capsys.readouterr().out) and "fail     T4-T6" in shown


def test_a_measurement_that_is_not_a_number_or_that_raises_fails():
    line = lines.Line("x", "claim", np.inf, -np.inf, True, lambda library: (np.nan, 1))
    assert statements.measured(None, line).verdict == "fail"
    record = statements.measured(None, dataclasses.replace(line, measure=lambda library: 1 / 0))
    assert record.verdict == "fail" and record.claim == "claim (ZeroDivisionError: division by zero)"


def test_an_unknown_back_end_or_one_that_is_not_installed_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(ValueError, match="backend: got 'matlab', expected one of numpy, torch"):
        statements.run(backend="matlab")
    monkeypatch.setitem(lines.BACKENDS, "torch", ("no_such_package", "'enkg_ref[train]'"))
    sentence = r"backend: got torch, which is not installed, .* pip install 'enkg_ref\[train\]'"
    with pytest.raises(ImportError, match=sentence):
        statements.statements("torch")


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(statements, "STATEMENTS", [lines.Line("x", "", 0.0, 0.0, False, lambda library: exit(3))])
    for path in (tmp_path / "missing" / "verify.json", tmp_path):
        with pytest.raises(ValueError, match="json: got .*expected a file in a folder that exists"):
            verify(path)


def test_records_are_frozen_and_say_what_was_expected():
    record = statements.Record("T9", "claim", 0.1, 0.0, 1.0, 3, "pass")
    assert statements._expected(record) == "0 .. 1"
    assert statements._expected(dataclasses.replace(record, low=-np.inf, high=1e-12)) == "<= 1e-12"
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.verdict = "fail"

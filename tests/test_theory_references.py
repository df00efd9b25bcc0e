"""THEORY.md keeps its word: every statement names a test and a line of ``enkg verify`` that exist, formulas render."""

import importlib
import re
from pathlib import Path

import pytest

from enkg_ref import statements

TESTS = Path(__file__).parent
THEORY = (Path(statements.__file__).parents[1] / "THEORY.md").read_text(encoding="utf-8")
REGRESSED = (Path(statements.__file__).parents[1] / "enkg_r" / "README.md").read_text(encoding="utf-8")
LINES = {line.name for line in statements.STATEMENTS}
PROSE = re.sub(r"```math.*?```", "", THEORY, flags=re.S)
LABEL = re.compile(r"(T\d+|Cor\.|Thm |Lemma |C\d|\(18\)|Prop\.|I\d|4\.\d |masked$|counts$|budget$)")


def references(text):
    """(file, beginning of the name) of every test named in the text; ``::name`` stays in the file before it."""
    file, found = None, []
    for named, name in re.findall(r"`(test_\w+\.py)?::(\w+)`", text):
        file = named or file
        found.append((file, name))
    return found


def test_every_test_that_the_theory_names_exists():
    found = references(PROSE)
    assert len(found) > 30
    for file, name in found:
        assert f"def test_{name}" in (TESTS / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_every_line_of_verify_that_the_theory_names_exists_and_none_goes_unnamed():
    named = {token for token in re.findall(r"`([^`\n]+)`", PROSE) if LABEL.match(token)}
    assert named <= LINES, named - LINES
    unnamed = {name for name in LINES if f"`{name}`" not in PROSE and not name.startswith("(E")}  # (E*): REGRESSED.md
    assert not unnamed


def test_every_proof_is_followed_by_a_line_of_verify():
    paragraphs = PROSE.split("∎")
    assert len(paragraphs) > 7
    for after in paragraphs[1:]:
        after = re.split(r"\n\*\*|\n#", after)[0]  # up to the next statement
        assert any(f"`{name}`" in after for name in LINES), after


def test_every_equation_has_its_label_once_and_its_statement_is_measured_or_tested():
    numbered = set(re.findall(r"\(T(\d+b?)\)", THEORY))
    assert {str(n) for n in range(9, 23)} <= numbered
    names = " ".join(path.read_text(encoding="utf-8") for path in TESTS.glob("test_*.py"))
    for n in range(9, 23):
        if n == 20:  # the approximation itself: (T21) is its exact error
            continue
        assert f"T{n}" in LINES or any(line.startswith(f"T{n}") for line in LINES) or f"t{n}_" in names, n


def test_formulas_use_nothing_that_a_code_host_does_not_render():
    assert "\\operatorname" not in THEORY + REGRESSED  # refused by GitHub
    for text in (PROSE, re.sub(r"```math.*?```", "", REGRESSED, flags=re.S)):
        text = re.sub(r"`[^`\n]*`", "", text)
        assert text.count("$") % 2 == 0
        for before, formula, after in re.findall(r"(^|.)\$([^$]+)\$(.?)", text, flags=re.S):
            assert not re.search(r"\\[,;!{}|#%&_*]", formula), formula  # markdown takes the backslash away
            assert not formula[0].isspace() and not formula[-1].isspace(), formula
            assert not before.isalnum() and not after.isalnum(), formula  # the dollar must stand free
    assert THEORY.count("```math") * 2 == THEORY.count("```")


def test_the_suite_makes_thousands_of_property_instances_and_a_long_profile_makes_more():
    from hypothesis import settings

    total = 0
    for path in sorted(TESTS.glob("test_*.py")):
        if "from hypothesis import" in path.read_text(encoding="utf-8") and path.stem != Path(__file__).stem:
            module = importlib.import_module(path.stem)
            total += sum(f._hypothesis_internal_use_settings.max_examples for f in vars(module).values()
                         if hasattr(f, "_hypothesis_internal_use_settings") and f.__module__ == path.stem)
    assert total >= 3_000, total  # beside the ten thousand of the statements themselves
    assert settings.get_profile("long").max_examples == 5000 and settings.get_profile("long").deadline is None


@pytest.mark.parametrize("broken", ["`test_theory_spread.py::no_such_statement`"])
def test_the_check_itself_notices_a_reference_to_nothing(broken):
    (file, name), = references(broken)
    assert f"def test_{name}" not in (TESTS / file).read_text(encoding="utf-8")

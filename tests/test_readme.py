"""The README keeps its word: its example runs, its files and functions exist, its commands are understood."""

import importlib
import re
import shlex
from functools import reduce
from pathlib import Path

import pytest

import problems
from enkg_ref import cli
from enkg_ref.compare import arena

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_that_the_embedding_example_runs_and_fits_the_data(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    scope = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert len(example.strip().splitlines()) <= 16
    assert scope["info"].misfit < 0.01 * scope["method"].likelihood.misfit(scope["forward"](0 * scope["x"][:1]))[0] / 8
    assert "misfit" in capsys.readouterr().out


def test_that_every_function_of_the_equation_table_exists():
    rows = re.findall(r"^\| \**(?:T\d|Alg\. 2)\** \|.*\| (.*) \|$", README, re.M)
    assert len(rows) == 9
    for row in rows:
        for word in re.findall(r"`([^`]+)`", row):
            if word.endswith(".py"):
                module = importlib.import_module(word[:-3].replace("/", "."))
            else:
                assert callable(reduce(getattr, word.split("."), module))


def test_that_every_command_line_of_the_readme_is_understood():
    lines = [line.split("#")[0].strip() for line in README.splitlines()
             if line.startswith("enkg ") and "--help" not in line]
    assert len(lines) >= 8
    for line in lines:
        argv = shlex.split(line)[1:]
        options = cli._parser().parse_args(argv)
        if options.command == "solve" and options.problem:
            assert options.problem in problems.PROBLEMS and options.method in arena.METHODS


@pytest.mark.parametrize("link", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_that_every_link_leads_to_a_file(link):
    assert (ROOT / link).exists()

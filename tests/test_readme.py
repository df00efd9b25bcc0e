"""The README keeps its word: its examples run, its files, functions and line counts are true, its commands known."""

import importlib
import re
import shlex
from functools import reduce
from pathlib import Path

import pytest

from enkg_ref import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "benchmarks/RESULTS.md", "enkg_ref/ADDING.md", "enkg_ref/WHEN_NOT.md",
         "enkg_ref/SYMPTOMS.md", "enkg_ref/THEORY.md",
         "enkg_ref/enkg_r/README.md", "onnx_priors/README.md", "problems/README.md"]
SIMULATOR, EMBEDDING = re.findall(r"```python\n(.*?)```", README, re.S)


def test_that_it_is_one_screen():
    assert len(README.encode()) <= 8192 and README.count("\n") <= 130


def test_that_the_simulator_has_ten_lines_and_makes_data_of_its_own(tmp_path, monkeypatch):
    assert len(SIMULATOR.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(compile(SIMULATOR, "rod.py", "exec"), scope)
    np = scope["np"]
    fields, y = np.load("fields.npy"), np.load("y.npy")
    assert fields.shape == (3999, 64) and y.shape == (12,)
    assert np.abs(y - scope["simulate"](scope["fields"][:1])[0]).max() < 0.25  # the noise has a deviation of 0.05


def test_that_the_embedding_example_runs_and_fits_the_data():
    scope = {}
    exec(compile(EMBEDDING, "README.md", "exec"), scope)
    data = scope["data"]
    at_zero = data.misfit(scope["forward"](0 * scope["x"][:1]))[0] / data.size
    assert scope["misfit"] < 0.01 * at_zero


def test_that_every_function_of_the_equation_table_exists():
    rows = re.findall(r"^\| \**(?:T\d|Alg\. 2)[^|]* \|.*\| (.*) \|$", README, re.M)
    assert len(rows) == 5
    for row in rows:
        for word in re.findall(r"`([^`]+)`", row):
            if word.endswith(".py"):
                module = importlib.import_module(word[:-3].replace("/", "."))
            else:
                assert callable(reduce(getattr, word.split("."), module))


def test_that_the_two_files_of_the_method_have_the_lines_it_says():
    for name, lines in re.findall(r"\(enkg_ref/(\w+)\.py\) \([^)]*?(\d+) lines\)", README):
        assert (ROOT / "enkg_ref" / f"{name}.py").read_text().count("\n") == int(lines)


def test_that_every_command_line_of_the_readme_is_understood():
    lines = [line.split("#")[0].strip() for line in README.splitlines() if line.startswith("enkg ")]
    assert len(lines) >= 3
    for line in lines:
        cli.parser().parse_args(shlex.split(line)[1:])


@pytest.mark.parametrize("page, link", [(page, link) for page in PAGES if (ROOT / page).exists()
                                        for link in re.findall(r"\]\(((?!http)[^)#]+)", (ROOT / page).read_text())])
def test_that_every_link_leads_to_a_file(page, link):
    assert (ROOT / page).parent.joinpath(link).exists()


@pytest.mark.parametrize("page", PAGES)
def test_that_the_pages_write_numbers_in_full(page):
    text = re.sub(r"```.*?```|`[^`]*`|\$[^$]*\$|https?://\S+", "", (ROOT / page).read_text(), flags=re.S)
    assert re.findall(r"(?<![\w.])\.\d+", text) == []


def test_that_the_page_of_results_holds_the_tables_of_the_scripts(load_benchmark):
    assert load_benchmark("results_page").main(["--check"]) == 0

"""The table of problems: options read, refused and recorded by name; a problem is one file and one line."""

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import problems
from enkg_ref import cli
from problems import black_hole, imaging
from problems.problem import Observation, Problem, assumed_noise

TOY = """
    import numpy as np

    from problems.problem import ITEM, OBSERVATION, Entry, Observation, Option, Problem, nonnegative, positive


    def build(item=0, observation=None, blur=2.0, shots=10.0, noise=0.1):
        truth = np.random.default_rng(item).standard_normal(4)
        y = truth * blur if observation is None else np.load(observation)
        return Problem("toy", (4,), lambda x: x * blur, Observation(y, noise), truth=truth)


    ENTRY = Entry(build, "a toy", (Option("blur", positive, "factor", 2.0), ITEM, OBSERVATION,
                                   Option("shots", positive, "of the simulation", 10.0, data="simulated"),
                                   Option("noise", nonnegative, "standard deviation", 0.1)))
"""


README = (Path(problems.__file__).parent / "README.md").read_text()


@pytest.fixture
def signal(tmp_path, monkeypatch):
    """The example of problems/README.md: its file and its line."""
    source, line = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "blurred_signal.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    name, place = re.fullmatch(r'\s*"(.*)": "problems\.(.*)",\s*', line).groups()
    monkeypatch.setitem(problems.PROBLEMS, name, place)
    yield
    sys.modules.pop("blurred_signal", None)


def test_that_the_problem_of_the_readme_is_listed_solved_and_compared(signal, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    problem = problems.build("blurred-signal", item="3", width=3)
    x = problem.gaussian.sample(np.random.default_rng(0), 2)
    plain = [[np.mean([row[(i + k) % 64] for k in (-1, 0, 1)]) for i in range(0, 64, 4)] for row in x]
    np.testing.assert_allclose(problem.forward(x), plain, rtol=1e-12, atol=1e-12)
    commands = re.findall(r"^enkg (.*blurred-signal.*)$", README, re.M)
    assert cli.main(["list"]) == 0 and "blurred-signal" in capsys.readouterr().out
    assert len(commands) == 2
    for command in commands:
        words = command.replace("512 --items 5", "128 --items 1 --seeds 1").split()
        assert cli.main([*words, "--quiet", "--out", f"out-{words[0]}"]) == 0
    errors = json.loads(Path("out-solve/summary.json").read_text())["metrics"]
    assert errors["relative_l2_of_mean"] < 0.5  # the prior mean has 1
    assert "enkg-r" in Path("out-compare/table.txt").read_text()


def test_that_the_readme_names_every_problem_and_every_file_it_lists_exists():
    rows = [row.split("|") for row in README.splitlines() if row.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[1])]
    assert sorted(named) == sorted(problems.PROBLEMS)
    for pattern in (name for row in rows for name in re.findall(r"`([^`]+)`", row[2])):
        assert list(Path(problems.__file__).parent.glob(pattern)), pattern


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A problem added by one file and one line in the table."""
    (tmp_path / "toy_problem.py").write_text(textwrap.dedent(TOY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(problems.PROBLEMS, "toy", "toy_problem:ENTRY")
    yield
    sys.modules.pop("toy_problem", None)


def test_that_one_file_and_one_line_make_a_problem(toy):
    problem = problems.build("toy", item=3, blur="0.5")
    x = np.ones((2, 4))
    assert np.array_equal(problem.forward(x), 0.5 * x)
    assert np.array_equal(problem.observation.y, 0.5 * np.random.default_rng(3).standard_normal(4))
    assert ("toy", "a toy") == (problem.name, problems.entry("toy").words)
    assert [name for name, _ in problems.options()["blur"]] == ["toy"]
    assert problems.arguments("toy", blur="0.5", noise=1.0) == {"blur": 0.5, "shots": 10.0}


def test_that_the_help_of_an_option_tells_apart_the_problems_that_have_it(toy):
    assert problems.help_of("blur") == "factor; default 2.0"
    words = problems.help_of("size")
    assert "navier-stokes: grid points per axis" in words and "inpainting, super-resolution, " in words


def test_that_options_hold_for_measured_or_for_simulated_data(toy, tmp_path):
    np.save(tmp_path / "y.npy", np.ones(4))
    measured = str(tmp_path / "y.npy")
    assert np.array_equal(problems.build("toy", observation=measured, blur=3).observation.y, np.ones(4))
    with pytest.raises(ValueError, match="^shots: got 7, expected nothing: .* toy does not use it with --observation$"):
        problems.build("toy", observation=measured, shots=7)
    with pytest.raises(ValueError, match="^min_snr: got 2, expected nothing: .* black-hole does not use it without"):
        problems.build("black-hole", min_snr="2")


@pytest.mark.parametrize("name, given, sentence", [
    ("linear-gausian", {}, "problem: got 'linear-gausian', expected one of .*; did you mean linear-gaussian"),
    ("linear-gaussian", {"size": 3}, "size: got 3, expected nothing: problem linear-gaussian does not use it$"),
    ("linear-gaussian", {"setup": "C"}, "setup: got 'C', expected one of A, B, LG6"),
    ("linear-gaussian", {"noise": "much"}, "noise: got 'much', expected a number"),
    ("linear-gaussian", {"item": "1.5"}, "item: got '1.5', expected an integer"),
    ("navier-stokes", {"item": "-1"}, "item: got -1, expected a number >= 0"),
    ("m87", {"systematic": "nan"}, "systematic: got 'nan', expected a finite number"),
    ("m87", {"day": "95"}, r"day: got '95', expected 101 \(2017-04-11\) or 096 \(2017-04-06\)"),
    ("m87", {"compact_flux": "0"}, "compact_flux: got '0', expected a number > 0"),
])
def test_that_a_wrong_option_is_refused_in_one_sentence(name, given, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        problems.build(name, **given)


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_that_every_option_states_the_default_of_its_problem(name):
    entry, recipe = problems.entry(name), {**inspect.signature(black_hole.from_visibilities).parameters,
                                           **inspect.signature(imaging.Picture).parameters}
    keywords = inspect.signature(entry.build).parameters
    for option in entry.options:
        known = keywords if option.name in keywords else recipe  # what a builder hands on
        assert known[option.name].default == option.default
        assert option.default is None or option.read(str(option.default)) == option.default


def test_that_a_day_is_known_by_its_number_and_by_its_date():
    names = [problems.build("m87", day=day).name for day in ("101", 101, "2017-04-11", None, "096", "96", "2017-04-06")]
    assert names == 4 * ["m87-101"] + 3 * ["m87-096"]


def test_that_noise_free_data_are_inverted_with_two_percent_of_their_deviation():
    problem = problems.build("navier-stokes")
    assert problem.observation.noise == 0.02 * np.std(problem.observation.y) and problem.observation.noise_is_assumed
    assert f"an assumed noise of {problem.observation.noise:.3g}" in problem.notes
    noisy = problems.build("navier-stokes", noise="0.5").observation
    assert noisy.noise == 0.5 and not noisy.noise_is_assumed
    with pytest.raises(ValueError, match="^noise: got nothing for data that all equal 3, expected"):
        assumed_noise(np.full(5, 3.0))


def test_that_a_truth_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"^truth: got shape \(3,\), expected \(4,\)$"):
        Problem("p", (4,), None, Observation(np.zeros(2), 1.0), truth=np.zeros(3))


def test_that_problems_know_the_answers_that_need_no_run():
    linear, flow = problems.build("linear-gaussian", item=2), problems.build("navier-stokes")
    assert np.array_equal(linear.known["posterior mean"], linear.posterior[0])
    assert np.array_equal(linear.known["prior mean"], linear.mu) and flow.posterior is None
    assert np.array_equal(flow.known["prior mean"], flow.scale * flow.gaussian.mean)

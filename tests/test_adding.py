"""The page on adding a method is right: its file and its one line are enough for list, solve and compare."""

import re
import sys
import types
from pathlib import Path

import enkg_ref
from enkg_ref import Config, EnKG, Gaussian, edm_sigmas, solve
from enkg_ref.cli import main
from enkg_ref.methods import METHODS, TABLE

PAGE = (Path(enkg_ref.__file__).parent / "ADDING.md").read_text()
RULE, METHOD = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_that_a_method_is_one_file_and_one_line(monkeypatch, tmp_path, capsys):
    module = types.ModuleType("enkg_ref.baselines.toy")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(METHOD, "toy.py", "exec"), module.__dict__)
    monkeypatch.setitem(METHODS, "toy", module.METHOD)
    assert '"toy": "baselines.toy:METHOD"' in PAGE and TABLE["eki"] == "baselines.eki:METHOD"
    monkeypatch.chdir(tmp_path)
    assert main(["list"]) == 0
    assert "a toy" in capsys.readouterr().out
    assert main(["solve", "linear-gaussian", "--method", "toy", "--budget", "60", "--no-figure", "--out", "s"]) == 0
    assert main(["compare", "linear-gaussian", "--methods", "toy,enkg", "--budget", "200", "--items", "1",
                 "--seeds", "1", "--out", "c", "--c-vjp", "1"]) == 0
    assert re.search(r"^toy +200", (tmp_path / "c" / "table.txt").read_text(), re.M)


def test_that_a_step_rule_is_one_function():
    scope = {}
    exec(compile(RULE, "rule.py", "exec"), scope)
    import numpy as np

    noise, y = np.random.default_rng(0).standard_normal((20, 2)), Gaussian([0.3, -0.1], 0.1)

    def answer(config):
        method = EnKG(lambda x, s: x / (1 + s * s), y, edm_sigmas(10), (2, 8), config)
        return solve(method, lambda x: x, noise).x

    np.testing.assert_allclose(answer(scope["config"]), answer(Config(guidance=1.0)), rtol=1e-12)

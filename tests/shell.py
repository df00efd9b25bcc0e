"""What the tests of the command line share: a user's own problem in a folder, a run, a run that is stopped."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from enkg_ref import cli
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


def simulate(own, program):
    """Another simulator in ``own``, made of my_simulator's ``whole``; images.npy for the reference of EnKG-R."""
    Path("failing.py").write_text(f"import numpy as np\nfrom my_simulator import forward as whole\n\n\n{program}")
    sys.modules.pop("failing", None)
    own[1] = "failing:forward"
    np.save("images.npy", np.random.default_rng(4).standard_normal((400, 5)))


def strict(text):
    """JSON as the standard has it: NaN and Infinity are none."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def csv(change):
    """The data of day 101 with its lines changed."""
    from problems import black_hole

    lines = (Path(black_hole.__file__).parent / "data" / "m87_2017_101_lo_scanavg.csv").read_text().splitlines()
    Path("data.csv").write_text("\n".join(change(lines)) + "\n")

"""What pip installs from a built wheel, not the checkout, solves and verifies."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the unpacked wheel and nothing else of this project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: a build writes into its folder, and several may run at a time
    for name in ("enkg_ref", "onnx_priors", "problems"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    made = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder),
                           str(source)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (wheel,) = folder.glob("enkg_ref-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, tmp_path, *words):
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    program = ("import sys, enkg_ref, problems, onnx_priors; from enkg_ref.cli import main; "
               f"assert enkg_ref.__file__.startswith({str(installed)!r}); sys.exit(main(sys.argv[1:]))")
    return subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, env=environment, capture_output=True,
                          text=True)


@pytest.mark.slow
def test_that_the_wheel_solves_with_a_shipped_prior(installed, tmp_path):
    pytest.importorskip("onnxruntime")
    done = run(installed, tmp_path, "solve", "navier-stokes", "--size", "32", "--noise", "0.5", "--method", "enkg-r",
               "--budget", "64", "--no-figure", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout and (tmp_path / "out" / "result.npz").exists()


@pytest.mark.slow
def test_that_the_wheel_verifies_and_lists(installed, tmp_path):
    done = run(installed, tmp_path, "verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "navier-stokes-32" in run(installed, tmp_path, "list").stdout

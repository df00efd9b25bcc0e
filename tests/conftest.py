"""Array back-ends for the whole suite: one fixture, every namespace of the array API that is installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402
from shell import interrupted, own  # noqa: E402, F401

# Property tests state their own number of instances, thousands in all (tests/test_theory_references.py);
# `pytest --hypothesis-profile=long` makes 5,000 new ones of each.
settings.register_profile("long", max_examples=5000, deadline=None)


@dataclass(frozen=True)
class Backend:
    """A namespace and a device; ``array`` moves host data there, ``numpy`` brings it back."""

    name: str
    xp: Any
    device: Any = None
    float64: bool = True
    read_only: bool = False

    def array(self, host, dtype=None):
        host = np.asarray(host)
        if dtype is None:
            dtype = str(host.dtype)
        if self.read_only:
            out = np.array(host, dtype=dtype)
            out.flags.writeable = False
            return out
        kwargs = {} if self.device is None else {"device": self.device}
        return self.xp.asarray(host.astype(dtype), dtype=getattr(self.xp, dtype), **kwargs)

    def numpy(self, x):
        if self.name == "jax":
            return np.asarray(x)
        return np.from_dlpack(x) if not isinstance(x, np.ndarray) else x


def _strict_devices():
    import array_api_strict

    return {str(d).removeprefix("array_api_strict.Device('").removesuffix("')"): d
            for d in array_api_strict.__array_namespace_info__().devices()}


def _names():
    names = ["numpy", "numpy_readonly", "strict", "strictest"]
    names += [f"strict:{n}" for n in _strict_devices() if n != "CPU_DEVICE"]
    return names + ["torch", "jax", pytest.param("cupy", marks=pytest.mark.gpu)]


def make_backend(name):
    """The back-end of this name; skips the test where its package is not installed."""
    if name in ("numpy", "numpy_readonly"):
        import array_api_compat.numpy as xp

        return Backend(name, xp, read_only=name == "numpy_readonly")
    if name.startswith("strict"):
        import array_api_strict as xp

        if ":" not in name:
            return Backend(name, xp)
        device = _strict_devices()[name.split(":")[1]]
        return Backend(name, xp, device, float64=name.split(":")[1] not in ("no_float64", "no_x64"))
    if name == "torch":
        torch = pytest.importorskip("torch")
        torch.set_num_threads(1)
        import array_api_compat.torch as xp

        return Backend(name, xp)
    if name == "jax":
        jax = pytest.importorskip("jax")
        jax.config.update("jax_enable_x64", True)
        import jax.numpy as xp

        return Backend(name, xp)
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no CUDA device")
    import array_api_compat.cupy as xp

    return Backend(name, xp)


@pytest.fixture
def load_benchmark(monkeypatch):
    """load_benchmark(NAME): benchmarks/NAME.py, which is no package, as a module of this test's own."""
    def load(name):
        path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture
def kill_run(monkeypatch):
    """kill_run(n): the n-th run of a comparison is interrupted.  -> the list of the calls made since"""
    def kill(n):
        from enkg_ref.compare import run as module

        calls, run = [], module.run

        def run_or_stop(*args, **kwargs):
            calls.append(args)
            if len(calls) == n:
                raise KeyboardInterrupt
            return run(*args, **kwargs)

        monkeypatch.setattr(module, "run", run_or_stop)
        return calls
    return kill


@pytest.fixture(params=_names())
def backend(request):
    """Each array back-end in turn. ``strictest`` forbids extensions, boolean indexing and data-dependent shapes."""
    chosen = make_backend(request.param)
    if request.param == "strictest":
        with array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False,
                                    enabled_extensions=getattr(request.module, "STRICTEST_EXTENSIONS", ())):
            yield chosen
    else:
        yield chosen


class array_api_strict_flags:
    """Set flags of array_api_strict for the length of a ``with`` block."""

    def __init__(self, **flags):
        self.flags = flags

    def __enter__(self):
        import array_api_strict

        array_api_strict.set_array_api_strict_flags(**self.flags)

    def __exit__(self, *exc):
        import array_api_strict

        array_api_strict.reset_array_api_strict_flags()



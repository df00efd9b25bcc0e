"""DEFT without gradients: a small network, trained beforehand on pairs (x, G(x) + noise), corrects the prior's noise.

[1] Denker et al. 2024, arXiv 2406.01781, with the gradient input replaced by the measurement (arXiv 2409.20175).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._xp import like, to_numpy
from ..diffusion import edm_sigmas, euler_step, initial_ensemble
from ..protocol import Method
from .chain import Settings, calls, expect, planned, require_finite


@dataclass(frozen=True)
class Config(Settings):
    """steps : N of the deterministic sampler (DDIM, eta = 0) on the grid (T1)"""

    steps: int = 100
    sigma_max: float = 80.0
    sigma_min: float = 0.002

    def __post_init__(self):
        expect("steps", self.steps, 1)


@dataclass(frozen=True)
class State:
    x: Any
    level: int = 0


@dataclass(frozen=True)
class DEFT:
    """eps = (x~ - D)/sigma + h,   D_c = D - sigma h(x~, D, sigma),   x~ <- x~ + (sigma' - sigma)(x~ - D_c)/sigma

    No forward call at run time: ``init`` is the whole run and ``done`` is true at once. The calls are in the training
    (``offline_fwd`` of the ledger); ``net_total`` are runs of the network. Optimal is h = -K_sigma (y - H D)/sigma with
    K_sigma = Sigma_sigma H'(H Sigma_sigma H' + Gamma)^-1 (linear-Gaussian), which gives the posterior; h = 0 the prior.

    correction : (x~, D, sigma) -> h, with the measurement inside
    """

    denoise: Callable
    correction: Callable
    config: Config = Config()

    def init(self, noise):
        c = self.config
        sigmas = edm_sigmas(c.steps, c.sigma_max, c.sigma_min)
        x = initial_ensemble(noise, c.sigma_max)
        for i, (here, following) in enumerate(zip(sigmas, sigmas[1:])):
            denoised = self.denoise(x, here)
            corrected = denoised - here * self.correction(x, denoised, here)
            x = euler_step(x, require_finite(corrected, "correction", i, here), here, following)
        return State(x, c.steps)

    def done(self, state):
        return True

    def counts(self, rows):
        n = self.config.steps
        return calls(rows, fwd=0, den=n, net=n)


class OnnxCorrection:
    """h(x~, D, sigma) for data y (m,) of standard deviation ``noise``, from a file of ``onnx_priors.training.deft``.

    offline_forward : forward calls that its training pairs cost;  sha256 : of the file
    """

    def __init__(self, path, y, noise):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        facts = self._session.get_modelmeta().custom_metadata_map
        self.offline_forward = json.loads(facts["offline_forward"])
        side = next(i.shape[-1] for i in self._session.get_inputs() if i.name == "y")
        self._y, self._noise = to_numpy(y).reshape(1, 1, side, side), float(noise)

    def __call__(self, x, denoised, sigma):
        rows = x.shape[0]
        levels = {"noise": self._noise, "sigma": sigma}
        inputs = {"x": to_numpy(x)[:, None], "denoised": to_numpy(denoised)[:, None], "y": self._y.repeat(rows, axis=0),
                  **{name: np.full(rows, level) for name, level in levels.items()}}
        inputs = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in inputs.items()}
        return like(self._session.run(None, inputs)[0][:, 0], x)


# ------------------------------------------------------------------------------------------------------------- a budget
def plan(item, budget, c_vjp, seed, settings):
    """Eight chains ("rows" among the settings) whatever the budget."""
    settings = dict(settings)
    rows = settings.pop("rows", 8)
    low, high = item.sigma_range
    config = Config(**{"sigma_max": high, "sigma_min": low, **settings})
    return planned(DEFT(item.denoise, item.correction, config), rows, State)


METHOD = Method(
    plan, access=frozenset({"denoiser", "correction"}),
    words="a correction network trained beforehand, Denker et al. 2024",
    spends="nothing online; its forward calls were spent in training",
    spread="The chains are meant as draws of the posterior, as far as the correction network has learned it.",
    default_budget=lambda item: 1)

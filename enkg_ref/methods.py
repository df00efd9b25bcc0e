"""The table of methods: the only list of their names. A method is one file with its METHOD, and one line here.

`Item` is what every method gets to work on, and `check` refuses what a method cannot do before anything is computed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .baselines.chain import operator_norm
from .enkg_r import tail
from .protocol import one_of


@dataclass(frozen=True)
class Item:
    """One problem with its prior: what every method gets, the same for all.

    problem : with ``name``, ``event_shape``, ``forward``, ``forward_vjp``, ``observation``, ``defaults``, ...
    likelihood : of its observation;  denoise : D(x, sigma)
    denoise_vjp, correction, reference : what gradient methods, DEFT and EnKG-R need beside, or None
    sigma_range : (smallest, largest) noise level of the prior;  std : its pointwise standard deviation, or None
    dtype : of the particles
    norm : item -> ||Gamma^-1/2 J_G||, from which diffpir and pnpdm take their steps
    known : {row name: field in physical units}, answers without a run, such as the prior mean
    """

    problem: Any
    likelihood: Any
    denoise: Callable
    denoise_vjp: Callable | None = None
    correction: Callable | None = None
    reference: Any = None
    sigma_range: tuple[float, float] = (0.002, 80.0)
    std: float | None = None
    dtype: str = "float64"
    norm: Callable = operator_norm
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forward(self):
        return self.problem.forward

    @property
    def forward_vjp(self):
        return self.problem.forward_vjp

    @property
    def access(self):
        """What a method may ask for."""
        have = {"forward": self.forward, "denoiser": self.denoise, "denoiser_vjp": self.denoise_vjp,
                "forward_vjp": self.forward_vjp, "correction": self.correction, "reference": self.reference}
        return frozenset(name for name, value in have.items() if value is not None)

    def counted(self, ledger):
        """The same item whose calls the ledger counts."""
        forward_vjp = None if self.forward_vjp is None else ledger.forward_vjp(self.forward_vjp)
        return dataclasses.replace(
            self, problem=With(self.problem, ledger.forward(self.forward), forward_vjp),
            denoise=ledger.denoiser(self.denoise),
            denoise_vjp=None if self.denoise_vjp is None else ledger.denoiser_vjp(self.denoise_vjp),
            correction=None if self.correction is None else ledger.network(self.correction))

    def digest(self):
        """Fingerprint of the data."""
        y = np.ascontiguousarray(np.asarray(self.problem.observation.y, dtype=np.float64))
        return hashlib.sha256(y.tobytes()).hexdigest()[:16]


class With:
    """A problem with other callables, everything else unchanged."""

    def __init__(self, problem, forward, forward_vjp):
        self._problem, self.forward, self.forward_vjp = problem, forward, forward_vjp

    def __getattr__(self, name):
        return getattr(self._problem, name)


TABLE = {  # name: "module of this package:its METHOD"; to add a method, see ADDING.md
    "enkg": "plan:METHOD",
    "enkg-r": "enkg_r.rule:METHOD",
    "eki": "baselines.eki:METHOD",
    "scg": "baselines.scg:METHOD",
    "dpg": "baselines.dpg:METHOD",
    "forward-gsg": "baselines.gsg:FORWARD",
    "central-gsg": "baselines.gsg:CENTRAL",
    "dps": "baselines.dps:METHOD",
    "diffpir": "baselines.diffpir:METHOD",
    "mmps": "baselines.mmps:METHOD",
    "pnpdm": "baselines.pnpdm:METHOD",
    "deft": "baselines.deft:METHOD",
    "blade": "baselines.blade:METHOD",
    "dw-rwmh": "baselines.dw_rwmh:METHOD",
    "dw-ekcn": "baselines.dw_ekcn:METHOD",
    "fk-steering": "baselines.fk_steering:METHOD",
}


def _method(place):
    module, _, name = place.partition(":")
    return tail.offered(getattr(importlib.import_module(f"{__package__}.{module}"), name))


METHODS = {name: _method(place) for name, place in TABLE.items()}
MISSING = {  # what a method may ask for, in words
    "denoiser_vjp": "a prior with a VJP (the *_vjp.onnx beside the denoiser, or an analytic prior)",
    "forward_vjp": "a forward model with a hand-written adjoint (forward_vjp of the problem)",
    "correction": "a trained correction network beside its prior",
    "reference": "a Gaussian reference of the prior",
    "denoiser": "a denoiser", "forward": "a forward model",
}


def choose(problem, with_reference, settings):
    """(name, why): the method for a problem where the user names none.

    with_reference : a Gaussian reference of the prior is at hand;  settings : those that the user gave, {name: value}
    """
    asked = sorted((set(settings) & set(METHODS["enkg"].options)) - {"tail"})
    if asked:
        return "enkg", f"--{asked[0].replace('_', '-')} belongs to it"
    if getattr(problem, "method", None) is not None:
        return problem.method, "the quickest good answer in a small study of this problem (benchmarks/RESULTS.md)"
    if problem.defaults:
        return "enkg", "this problem has settings that were tuned for it"
    if with_reference:
        return "enkg-r", ("on problems that nobody tuned on it was the best or close to the best at equal calls "
                          "(benchmarks/RESULTS.md)")
    return "enkg", ("EnKG-R, which did better on problems that nobody tuned on, needs a reference of the prior: "
                    "--reference images.npy, images like those that it was trained on")


def check(names, item, budgets, c_vjp, settings):
    """Raises ValueError for the first method that is unknown, named twice, lacks something or cannot pay a pass.

    names : of ``METHODS``;  budgets : forward calls;  settings : {name: {setting: value}}. Makes no forward call.
    """
    for name in names:
        one_of("methods", name, METHODS)
        if names.count(name) > 1:
            raise ValueError(f"methods: got {name} twice, expected each method once")
        lacking = sorted(METHODS[name].access - item.access)
        if lacking:
            raise ValueError(f"methods: {name} needs {MISSING[lacking[0]]}, which problem {item.problem.name} with "
                             "this prior does not have")
    dry = dataclasses.replace(item, norm=lambda item: 1.0)
    for name in names:
        for budget in budgets:
            METHODS[name].plan(dry, budget, c_vjp, 0, settings.get(name, {}))

"""Complete settings of a run of ``enkg.EnKG``: the released configurations in one table.

A ``Preset`` adds to ``enkg.Config`` what the method takes as arguments: the number of particles, the noise levels and
the guided window. ``Preset.method`` is the paper alone; ``plan.plan`` composes the safe set of ``extensions`` with it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from . import ensemble
from .diffusion import edm_sigmas
from .enkg import Config, EnKG


# ------------------------------------------------------------------------------------------------- guidance and window
def official_guidance(i, n, gamma, floor):
    """(T8) gamma_i = gamma (1 - floor) (n - i)/n + floor, the official code: its floor is not scaled by gamma."""
    return gamma * (1.0 - floor) * (n - i) / n + floor if floor else gamma


def guided_window(n, start, end, rule="official", order="correct_then_predict"):
    """(T3a) First and last guided level from fractions of the N = n steps.

    official     i > start n  (strict, in floating point)   and  i < n - int(end n)
    nominal      i >= start n                               and  i < n - int(end n)
    inversebench i > start, start read as a level index     and  i < n - int(start / 2); ``end`` is not used

    ``order="predict_then_correct"``: the rule's i counts loop passes, each of which corrects after its predictor
    step, hence at level i + 1.
    """
    if rule == "official":
        guided = [i for i in range(n) if i > start * n and i < n - int(end * n)]
    elif rule == "nominal":
        guided = [i for i in range(n) if i >= start * n and i < n - int(end * n)]
    elif rule == "inversebench":
        guided = [i for i in range(n) if i > start and i < n - int(start / 2)]
    else:
        raise ValueError(f"rule: got {rule!r}, expected 'official', 'nominal' or 'inversebench'")
    if order not in ("correct_then_predict", "predict_then_correct"):
        raise ValueError(f"order: got {order!r}, expected 'correct_then_predict' or 'predict_then_correct'")
    later = 1 if order == "predict_then_correct" else 0
    return (guided[0] + later, guided[-1] + later) if guided else (1, 0)


# ------------------------------------------------------------------------------------------------------------- settings
@dataclass(frozen=True)
class Preset:
    """Settings of a whole run.

    particles : J;  steps : N;  window : (first, last) guided level, None: ``guided_window(N, 0.05, 0.05)``
    sigma_max, sigma_min, rho, sigma_dtype : the noise levels (T1);  config : ``enkg.Config``
    """

    particles: int = 128
    steps: int = 40
    window: tuple[int, int] | None = None
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0
    sigma_dtype: str = "float64"
    config: Config = field(default_factory=Config)

    def __post_init__(self):
        for name in ("particles", "steps"):
            value = getattr(self, name)
            if not value >= 2 or int(value) != value:
                raise ValueError(f"{name}: got {value}, expected a whole number of at least 2")
        if not 0 < self.rho < math.inf:
            raise ValueError(f"rho: got {self.rho}, expected a number above 0")
        if self.window is None:
            object.__setattr__(self, "window", guided_window(self.steps, 0.05, 0.05))

    @property
    def sigmas(self):
        """(T1) The N + 1 noise levels, largest first, the last 0."""
        return edm_sigmas(self.steps, self.sigma_max, self.sigma_min, self.rho, self.sigma_dtype)

    def but(self, **settings):
        """The same with other values of its own fields and of those of ``config``, by name."""
        own = {f.name for f in dataclasses.fields(self)}
        inner = {name: value for name, value in settings.items() if name not in own}
        outer = {name: value for name, value in settings.items() if name in own}
        config = outer.pop("config", self.config)
        return dataclasses.replace(self, **outer, config=dataclasses.replace(config, **inner))

    def method(self, denoise, likelihood, correct=ensemble.correct):
        """The method of the paper with these settings."""
        return EnKG(denoise, likelihood, self.sigmas, self.window, self.config, correct)

    def describe(self):
        """The settings as plain values (functions by name): what a summary prints and a checkpoint compares."""
        flat = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "config"}
        flat |= {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
        return {name: list(value) if isinstance(value, tuple) else getattr(value, "__name__", value)
                for name, value in flat.items()}

    def counts(self):
        """Sequential calls of a whole run in closed form: forward U n_u, denoiser N + U sum n_i (per particle)."""
        method, updates = self.method(None, None), self.config.updates
        levels = range(self.window[0], self.window[1] + 1)
        return {"forward": updates * len(levels),
                "denoiser": self.steps + updates * sum(method.inner_steps(i) for i in levels)}


_OFFICIAL = Preset(particles=2048, steps=80, window=guided_window(80, 0.05, 0.05),
                   config=Config(updates=2, guidance_schedule=official_guidance))
PRESETS = {  # released configurations of the official code and of InverseBench
    "navier-stokes-official": _OFFICIAL,
    "ffhq-official": _OFFICIAL.but(particles=1024),
    "black-hole-official": _OFFICIAL.but(particles=1024, updates=1, guidance=3.5, guidance_floor=1e-3,
                                           window=guided_window(80, 0.1, 0.1)),
    "inversebench": _OFFICIAL.but(inner_factor=8, window=guided_window(80, 0.1, 0.1, rule="inversebench")),
}

"""Ensemble Kalman Diffusion Guidance (arXiv 2409.20175) that can be audited line by line.

The method of the paper is ``ensemble.py`` (the update) and ``enkg.py`` (the loop).

>>> from enkg_ref import EnKG, Gaussian, edm_sigmas, guided_window, solve
>>> method = EnKG(denoise, Gaussian(y, noise), edm_sigmas(40), guided_window(40, 0.05, 0.05))   # doctest: +SKIP
>>> state = solve(method, forward, noise)                                                       # doctest: +SKIP
"""

from ._xp import member_normals
from .diffusion import edm_sigmas
from .enkg import Config, EnKG, Info, State
from .ensemble import constant, correct, frobenius, trace
from .likelihood import Closures, Gaussian, Poisson
from .presets import PRESETS, Preset, guided_window
from .protocol import iterate, solve, step

__all__ = ["PRESETS", "Closures", "Config", "EnKG", "Gaussian", "Info", "Poisson", "Preset", "State", "constant",
           "correct", "edm_sigmas", "frobenius", "guided_window", "iterate", "member_normals", "solve", "step", "trace"]
__version__ = "0.1.0"

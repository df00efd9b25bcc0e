"""Ensemble Kalman Diffusion Guidance (arXiv 2409.20175) that can be audited line by line.

>>> from enkg_ref import Config, EnKG, Gaussian, solve
>>> state = solve(EnKG(denoise, Gaussian(y, noise), Config(particles=256)), forward, noise)   # doctest: +SKIP
"""

from ._xp import member_normals
from .enkg import PRESETS, Config, EnKG, Info, State, guided_window, iterate, solve, step
from .ensemble import constant, correct, frobenius, trace
from .likelihood import Closures, Gaussian

__all__ = ["PRESETS", "Closures", "Config", "EnKG", "Gaussian", "Info", "State", "constant", "correct", "frobenius",
           "guided_window", "iterate", "member_normals", "solve", "step", "trace"]
__version__ = "0.1.0"

"""Diffusion models that people have, as denoisers D(x, sigma) = E[x0 | x0 + sigma n = x] of this project.

A trained network answers another question than ours: it wants other inputs and predicts another quantity. Each class
here is a torch module that asks the network what it was trained for and turns the answer into D; the change of
variables stands beside the formula. n is standard normal noise, J the batch.

    family                      the network sees               and predicts             class
    EDM (Karras et al. 2022)    x, sigma                       D                        `Edm`
    EDM without its shell       c_in x, ln(sigma)/4            F, D = c_skip x + c_out F    `EdmNetwork`
    DDPM (Ho et al. 2020)       sqrt(a) x0 + sqrt(1 - a) n, t  n, v or x0               `Ddpm`
    flow matching               (1 - t) x0 + t n, t            n - x0, or x0 - n        `FlowMatching`
    diffusers                   any of DDPM and flow matching, by its scheduler         `from_diffusers`

`import_prior` writes the prior file. Needs the extra ``train`` (torch, onnx, onnxscript).
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnx_priors.export import export_prior

KINDS = ("edm", "edm-network", "epsilon", "v", "sample", "flow", "flow-from-noise", "diffusers")
SCHEDULES = ("linear", "scaled-linear", "cosine")
SIGMA_RANGE = (0.002, 80.0)


def _column(a):
    return a.reshape(-1, 1, 1, 1)


class Edm(nn.Module):
    """A network in the public EDM form, network(x, sigma) = D already: EDM's preconditioned networks and the
    checkpoints of InverseBench.

    No change of variables. Further arguments of the network (class labels) keep their defaults.
    """

    def __init__(self, network, sigma_range=SIGMA_RANGE):
        super().__init__()
        self.network, self.sigma_range = network, sigma_range

    def forward(self, x, sigma):
        return self.network(x, sigma)


class EdmNetwork(nn.Module):
    """The network F inside EDM's preconditioning, F(x c_in, c_noise) with s_d the standard deviation of the data:

        D = c_skip x + c_out F(c_in x, ln(sigma)/4)
        c_skip = s_d^2/(sigma^2 + s_d^2),   c_out = sigma s_d/sqrt(sigma^2 + s_d^2),   c_in = 1/sqrt(sigma^2 + s_d^2)
    """

    def __init__(self, network, sigma_data=0.5, sigma_range=SIGMA_RANGE):
        super().__init__()
        self.network, self.sigma_data, self.sigma_range = network, float(sigma_data), sigma_range

    def forward(self, x, sigma):
        s, s_d = _column(sigma), self.sigma_data
        total = s * s + s_d * s_d
        root = torch.sqrt(total)
        return s_d * s_d / total * x + s * s_d / root * self.network(x / root, torch.log(sigma) / 4)


class Ddpm(nn.Module):
    """A network trained at the levels t = 0 ... T - 1 of z = sqrt(a_t) x0 + sqrt(1 - a_t) n, a_t = ``alphas_cumprod``.

    Divided by sqrt(a_t) that is our x at sigma_t = sqrt((1 - a_t)/a_t), hence a = 1/(1 + sigma^2) and z = x/sqrt(1 +
    sigma^2). The network is asked at the t of sigma, linear in ln(sigma) between the levels. By what it predicts:

        epsilon = n                                      D = x - sigma epsilon(z, t)
        v = sqrt(a) n - sqrt(1 - a) x0                   D = x/(1 + sigma^2) - sigma/sqrt(1 + sigma^2) v(z, t)
        sample = x0                                      D = sample(z, t)

    A network with twice the channels (learned variances) is cut to the first half.
    """

    def __init__(self, network, alphas_cumprod, prediction="epsilon"):
        super().__init__()
        if prediction not in ("epsilon", "v", "v_prediction", "sample"):
            raise ValueError(f"prediction: got {prediction!r}, expected epsilon, v or sample")
        a = np.asarray(alphas_cumprod, dtype=np.float64)
        a = a[a > 1e-8]  # a last level of pure noise has no sigma
        if a.ndim != 1 or len(a) < 2 or not (np.all(np.diff(a) < 0) and a[0] < 1):
            raise ValueError(f"alphas_cumprod: got shape {a.shape}, expected at least two falling numbers in (0, 1)")
        levels = 0.5 * (np.log1p(-a) - np.log(a))  # ln sigma_t
        self.network, self.prediction = network, prediction[:1] if prediction[0] == "v" else prediction
        self.sigma_range = (float(np.exp(levels[0])), float(np.exp(levels[-1])))
        self.register_buffer("levels", torch.tensor(levels[:-1]))
        self.register_buffer("gaps", torch.tensor(np.diff(levels)))

    def time(self, sigma):
        """t (J,) of the noise levels sigma (J,): the number of whole gaps below, and the fraction of the next one."""
        levels, gaps = self.levels.to(sigma.dtype), self.gaps.to(sigma.dtype)
        return torch.clamp((torch.log(sigma)[:, None] - levels) / gaps, 0.0, 1.0).sum(dim=1)

    def forward(self, x, sigma):
        s = _column(sigma)
        root = torch.sqrt(1 + s * s)
        answer = self.network(x / root, self.time(sigma))[:, : x.shape[1]]
        if self.prediction == "epsilon":
            return x - s * answer
        return x / (1 + s * s) - s / root * answer if self.prediction == "v" else answer


class FlowMatching(nn.Module):
    """A velocity field of the linear interpolant between data and noise, network(z, t) with t in [0, 1].

    z = (1 - t) x0 + t n is (1 - t) times our x at sigma = t/(1 - t), hence t = sigma/(1 + sigma), z = x/(1 + sigma),

        u = dz/dt = n - x0                               D = z - t u(z, t)

    ``from_noise``: the time runs the other way, z = (1 - t) n + t x0 and u = x0 - n: asked at 1 - t, and -u is used.
    ``time_scale``: what the network's time is multiplied by, 1000 for diffusers' schedulers.
    """

    def __init__(self, network, from_noise=False, time_scale=1.0, sigma_range=SIGMA_RANGE):
        super().__init__()
        self.network, self.from_noise, self.time_scale = network, from_noise, float(time_scale)
        self.sigma_range = sigma_range

    def forward(self, x, sigma):
        t = sigma / (1 + sigma)
        z = x / (1 + _column(sigma))
        if self.from_noise:
            return z + _column(t) * self.network(z, (1 - t) * self.time_scale)
        return z - _column(t) * self.network(z, t * self.time_scale)


class _First(nn.Module):
    """A network of diffusers as a plain function of (z, t)."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z, t):
        return self.network(z, t, return_dict=False)[0]


def from_diffusers(unet, scheduler):
    """The denoiser of diffusers' unet(z, t), what it predicts and its levels read from its scheduler.

    Covered: schedulers with alphas_cumprod (DDPM, DDIM, Euler, ...; epsilon, v_prediction, sample), flow matching.

    Raises ValueError for other schedulers.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        return FlowMatching(_First(unet), time_scale=config["num_train_timesteps"])
    if not hasattr(scheduler, "alphas_cumprod") or "prediction_type" not in config:
        raise ValueError(f"scheduler: got {type(scheduler).__name__}, expected one with alphas_cumprod and a "
                         "prediction_type, or one of flow matching")
    return Ddpm(_First(unet), np.asarray(scheduler.alphas_cumprod), config["prediction_type"])


def alphas_cumprod(schedule="linear", count=1000):
    """The levels a_t of the common schedules; an array, or the path of its .npy file, is returned as it is.

    linear (DDPM): beta from 1e-4 to 0.02;  scaled-linear (latent diffusion): sqrt(beta) from sqrt(0.00085) to
    sqrt(0.012);  cosine (improved DDPM): a_t = cos^2((t/T + 0.008)/1.008 pi/2) relative to t = 0, beta at most 0.999
    """
    if not isinstance(schedule, str):
        return np.asarray(schedule, dtype=np.float64)
    if schedule.endswith(".npy"):
        return np.load(schedule, allow_pickle=False)
    if schedule == "linear":
        beta = np.linspace(1e-4, 0.02, count)
    elif schedule == "scaled-linear":
        beta = np.linspace(0.00085**0.5, 0.012**0.5, count) ** 2
    elif schedule == "cosine":
        level = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        beta = np.minimum(1 - level[1:] / level[:-1], 0.999)
    else:
        raise ValueError(f"schedule: got {schedule!r}, expected one of {', '.join(SCHEDULES)}, or the .npy file of "
                         "alphas_cumprod")
    return np.cumprod(1 - beta)


def adapt(network, kind, schedule="linear"):
    """The module D(x, sigma) of a network of this kind; ``schedule`` (see `alphas_cumprod`) matters to DDPMs only."""
    if kind in ("epsilon", "v", "sample"):
        return Ddpm(network, alphas_cumprod(schedule), kind)
    if kind in ("flow", "flow-from-noise"):
        return FlowMatching(network, from_noise=kind == "flow-from-noise")
    if kind in ("edm", "edm-network"):
        return (Edm if kind == "edm" else EdmNetwork)(network)
    raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Imported:
    """The files written; ``vjp`` is None, and ``note`` says why, where the Jacobian cannot be exported."""

    path: Path
    vjp: Path | None
    event_shape: tuple
    sigma_range: tuple
    note: str


def import_prior(source, kind, out, metadata=None, schedule="linear", jacobian=True):
    """Write a diffusion model as a prior file ``out`` and, where it can be had, its Jacobian as the _vjp.onnx beside.

    Parameters
    ----------
    source : torch module, "package.module:function" (called without arguments, returns the module), or for kind
        "diffusers" a folder saved by diffusers, or the pair (unet, scheduler)
    kind : one of `KINDS`
    metadata : facts of the prior: event_shape (d,), (H, W) or (C, H, W), which diffusers' networks know themselves;
        scale and shift, by which a simulator receives scale * x + shift (0.5 and 0.5 make [0, 1] of images in [-1, 1]);
        units, data, sigma_min, sigma_max, ...
    schedule : see `alphas_cumprod`; for epsilon, v and sample
    jacobian : whether to try its Jacobian, which takes minutes for large networks

    Returns `Imported`. Raises ValueError for a source, kind or shape that does not fit.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(KINDS)}")
    if Path(out).suffix != ".onnx":
        raise ValueError(f"out: got {out}, expected a file name that ends in .onnx")
    if kind == "diffusers":
        unet, scheduler = _saved(source) if isinstance(source, (str, os.PathLike)) else source
        denoiser = from_diffusers(unet, scheduler)
        known = {"event_shape": _shape_of(unet)}
    else:
        denoiser, known = adapt(_called(source) if isinstance(source, str) else source, kind, schedule), {}
    low, high = denoiser.sigma_range
    facts = {"sigma_min": low, "sigma_max": high, "parametrisation": f"imported network of kind {kind}", **known,
             **(metadata or {})}
    if facts.get("event_shape") is None:
        raise ValueError("event_shape: got nothing, expected the shape of an event, such as (3, 64, 64)")
    shape = tuple(facts["event_shape"])
    path, vjp, note = export_prior(denoiser, out, shape, facts, jacobian)
    return Imported(path, vjp, shape, (facts["sigma_min"], facts["sigma_max"]), note)


def _called(source):
    """The torch module that "package.module:function" returns."""
    name, colon, function = source.partition(":")
    if not (name and colon and function):
        raise ValueError(f"source: got {source!r}, expected package.module:function")
    try:
        network = getattr(importlib.import_module(name), function)()
    except Exception as error:  # whatever the user's file does wrong
        raise ValueError(f"source: got {source!r}, which fails ({type(error).__name__}: {error}), expected a function "
                         "without arguments that returns a torch module") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"source: got {type(network).__name__} from {source!r}, expected a torch module")
    return network


def _saved(folder):
    """The unet and the scheduler in a folder that diffusers saved; nothing is downloaded."""
    try:
        import diffusers
    except ImportError:
        raise ImportError("kind diffusers needs the package diffusers: pip install diffusers") from None

    folder = Path(folder)
    try:
        parts = [folder / name if (folder / name).is_dir() else folder for name in ("unet", "scheduler")]
        unet = diffusers.UNet2DModel.from_pretrained(parts[0], local_files_only=True, low_cpu_mem_usage=False)
        name = json.loads((parts[1] / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
        return unet, getattr(diffusers, name).from_pretrained(parts[1], local_files_only=True)
    except (OSError, KeyError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"source: got {folder}, which diffusers cannot read ({reason}), expected a folder with a "
                         "saved UNet2DModel and its scheduler") from error


def _shape_of(unet):
    size = unet.config["sample_size"]
    return None if size is None else (unet.config["in_channels"], *((size, size) if isinstance(size, int) else size))

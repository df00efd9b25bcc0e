"""Training a small diffusion prior on a few cores: D = Wiener denoiser + posterior deviation x network.

The network starts at the exact denoiser of the Gaussian with the data's covariance and can only gain from there; where
the Gaussian is exact (sigma far above or below the data) it has nothing to learn. Loss, noise distribution and EMA are
those of Karras et al. (2022, "EDM"); the preconditioning replaces their white Gaussian by a coloured one.

A prior is trained by a short command file that supplies the data (``draw``), a Gaussian (``gaussians.py``) and a
network (``network.py``): see ``kerr_disc.py`` beside this file, and ``images.py`` for anybody's images. Everything can
be exported to ONNX, its vector-Jacobian product included.

Shapes: x (J, C, H, W), sigma (J,), float32. Units are those of the prior.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from onnx_priors.training.gaussians import column

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
BATCH = 32
TABLE_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Denoiser(nn.Module):
    """D(x, sigma) = W + c F, F = network((W - mu)/s_d, (x - W)/sigma; ln sigma) / (1 + (sigma/taper)^4).

    W is the Wiener denoiser of ``gaussian``, c its posterior deviation per pixel, s_d its prior one; above ``taper``
    the Gaussian takes over. ``network`` has twice the image's channels as features.
    """

    def __init__(self, gaussian, network, taper=15.0):
        super().__init__()
        self.gaussian, self.network, self.taper = gaussian, network, taper

    def parts(self, x, sigma):
        """W (J, C, H, W), c (J, 1, 1, 1) and F (J, C, H, W)."""
        s = column(sigma)
        w = self.gaussian(x, sigma)
        features = torch.cat([(w - self.gaussian.mean) / self.gaussian.deviation, (x - w) / s], dim=1)
        f = self.network(features, torch.log(sigma) / 4) / (1 + (s / self.taper) ** 4)
        return w, column(torch.sqrt(self.gaussian.variance(sigma))), f

    def forward(self, x, sigma):
        w, c, f = self.parts(x, sigma)
        return w + c * f


# ------------------------------------------------------------------------------------------------------------ training


def train(denoiser, draw, *, work, images=None, minutes=None, seed=0, rate=1.5e-3, log_sigma=(-0.8, 1.4), decay=0.9995,
          evaluate=None, report=30_000):
    """Train ``denoiser`` in place on ``images`` draws or for ``minutes``; returns (EMA denoiser, CPU seconds of it).

    Loss: mean |D - x0|^2 / c^2 over batches of ``BATCH`` with ln sigma normal, in stratified quantiles. AdamW; its rate
    warms up over 500 steps, stays, and falls linearly to 0 over the last quarter: ``images`` may be changed on resuming
    before that quarter, with the same result as from the start.

    Parameters
    ----------
    draw : (count, torch.Generator) -> (count, C, H, W) float32, augmented clean images in prior units
    images : int                 number of images to be seen in total; or None:
    minutes : float              of wall time, in all the runs that went on from one another's checkpoint
    work : path                directory of checkpoint.pt, written once a minute; an existing one is resumed
    evaluate : (denoiser) -> str or None   printed every ``report`` images, for the EMA weights
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    average = {name: value.detach().clone() for name, value in denoiser.network.named_parameters()}
    optimizer = torch.optim.AdamW(denoiser.network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-2)
    step, spent, wall = 0, 0.0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        denoiser.network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent, wall = saved["average"], saved["step"], saved["spent"], saved.get("wall", 0.0)

    def save():
        torch.save({"network": denoiser.network.state_dict(), "optimizer": optimizer.state_dict(), "average": average,
                    "step": step, "spent": spent, "wall": wall}, f"{checkpoint}.new")
        os.replace(f"{checkpoint}.new", checkpoint)

    def left():  # fraction of the training
        return 1 - (step * BATCH / images if minutes is None else wall / (60 * minutes))

    batch, generator, (mean, spread) = BATCH, torch.Generator(), log_sigma
    cpu, clock, saved_at, losses = time.process_time(), time.monotonic(), time.monotonic(), []
    while left() > 0:
        generator.manual_seed((seed << 32) + step)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 500, 4 * left())
        x0 = draw(batch, generator)
        quantile = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        sigma = torch.exp(mean + spread * torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)))
        x = x0 + column(sigma) * torch.randn(x0.shape, generator=generator)
        w, c, f = denoiser.parts(x, sigma)
        loss = (f - (x0 - w) / c).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(denoiser.network.parameters(), 1.0)
        optimizer.step()
        keep = min(decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in denoiser.network.named_parameters():
                average[name].lerp_(value, 1 - keep)
        step += 1
        losses.append(loss.item())
        now, then = time.process_time(), time.monotonic()
        spent, cpu, wall, clock = spent + now - cpu, now, wall + then - clock, then
        if then - saved_at > 60 or left() <= 0:
            save()
            saved_at = then
        if step % (report // batch) == 0:
            text = evaluate(averaged(denoiser, average)) if evaluate else ""
            print(f"{step * batch:9d} images {spent / 60:6.1f} CPU min  loss {np.mean(losses):.4f}  {text}", flush=True)
            losses, cpu, clock = [], time.process_time(), time.monotonic()  # evaluation is not counted as training
    return averaged(denoiser, average), spent


def averaged(denoiser, average):
    """A copy of ``denoiser`` with the EMA weights, frozen, in eval mode."""
    import copy

    result = copy.deepcopy(denoiser).eval().requires_grad_(False)
    state = dict(result.network.state_dict())
    state.update(average)
    result.network.load_state_dict(state)
    return result


def load_average(denoiser, work):
    """The EMA denoiser of the checkpoint in ``work``, its steps and CPU seconds."""
    saved = torch.load(Path(work) / "checkpoint.pt", weights_only=True)
    return averaged(denoiser, saved["average"]), saved["step"], saved["spent"]


def denoising_errors(denoise, clean, sigmas=TABLE_SIGMAS, seed=0, chunk=64):
    """Mean squared error per pixel at each sigma over clean images (N, C, H, W), the same noise for every caller."""
    errors = []
    for k, sigma in enumerate(sigmas):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed((seed << 16) + k))
        total = 0.0
        with torch.no_grad():
            for x0, n in zip(clean.split(chunk), noise.split(chunk)):
                error = denoise(x0 + sigma * n, torch.full((len(x0),), sigma)) - x0
                total += float(error.square().mean((1, 2, 3)).double().sum())
        errors.append(total / len(clean))
    return errors

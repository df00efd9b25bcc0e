"""Training a small diffusion prior on a few cores: D = Wiener denoiser + posterior deviation x network.

The network starts at the exact denoiser of the Gaussian with the data's covariance and can only gain from there; where
the Gaussian is exact (sigma far above or below the data) it has nothing to learn. Loss, noise distribution and EMA are
those of Karras et al. (2022, "EDM"); the preconditioning replaces their white Gaussian by a coloured one.

A prior is trained by a short command file that supplies the data (``draw``), a Gaussian (:class:`PrincipalGaussian` for
pictures, :class:`FourierGaussian` for periodic fields) and a :class:`UNet`; see ``kerr_disc.py`` beside this file.
Everything here can be exported to ONNX, its vector-Jacobian product included: no interpolation, no transposed
convolution, no FFT operator.

Shapes: x (J, C, H, W), sigma (J,), float32. Units are those of the prior.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
BATCH = 32
TABLE_SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

# ------------------------------------------------------------------------------------------------------- Gaussian part


def _column(sigma):
    return sigma.reshape(-1, 1, 1, 1)


class PrincipalGaussian(nn.Module):
    """Gaussian of square images whose distribution is invariant under the eight symmetries of the square.

    Reflection symmetry makes the four parity classes (even or odd in rows and in columns) uncorrelated: an image is
    four quarter-size vectors, each with its own principal components, at a quarter of the usual storage and cost.
    D(x, sigma) = mu + sum_k l_k/(l_k + sigma^2) q_k q_k^T (x - mu), (O1), with the rest of each class isotropic.

    mean : (H, H), components : (4, (H/2)^2, n), variances : (4, n), rest : (4,) variance per discarded direction.
    """

    def __init__(self, mean, components, variances, rest):
        super().__init__()
        half = mean.shape[-1] // 2
        eye = np.eye(half)
        parity = np.block([[eye, eye[::-1]], [eye, -eye[::-1]]]) * math.sqrt(0.5)
        for name, value in (("mean", mean), ("components", components), ("variances", variances[:, None, :]),
                            ("rest", rest[:, None, None]), ("parity", parity), ("parity_t", parity.T)):
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        self.half = half
        total = float(variances.sum() + (rest * (half * half - variances.shape[1])).sum())
        self.deviation = math.sqrt(total / (4 * half * half))

    @classmethod
    def fit(cls, images, components, chunk=2000):
        """Moments of images (N, H, H), prior units, averaged over the symmetries; ``components`` per parity class."""
        size = images.shape[-1]
        half = size // 2
        total, second = np.zeros((half, half)), np.zeros((4, half * half, half * half))
        for start in range(0, len(images), chunk):
            y = _parity_classes(np.asarray(images[start:start + chunk], dtype=np.float32))
            total += y[0].sum(axis=0, dtype=np.float64).reshape(half, half)
            for k in range(4):
                second[k] += y[k].T @ y[k]
        total = 0.5 * (total + total.T) / len(images)
        turned = second.reshape(4, half, half, half, half).transpose(0, 2, 1, 4, 3).reshape(second.shape)
        second = 0.5 * (second + turned[[0, 2, 1, 3]]) / len(images)
        second[0] -= np.outer(total, total)
        variances, vectors = np.linalg.eigh(second)
        variances, vectors = np.maximum(variances[:, ::-1], 0.0), vectors[:, :, ::-1]
        left = half * half - components
        rest = variances[:, components:].sum(axis=1) / max(left, 1)
        mean = np.block([[total, total[:, ::-1]], [total[::-1], total[::-1, ::-1]]]) * 0.5
        return cls(mean, vectors[:, :, :components], variances[:, :components], rest)

    def forward(self, x, sigma):
        half, s2 = self.half, (sigma * sigma).reshape(1, -1, 1)
        y = self.parity @ (x - self.mean) @ self.parity_t
        y = y.reshape(-1, 2, half, 2, half).permute(1, 3, 0, 2, 4).reshape(4, -1, half * half)
        keep = self.rest / (self.rest + s2)
        gain = self.variances / (self.variances + s2) - keep
        y = keep * y + (gain * (y @ self.components)) @ self.components.transpose(1, 2)
        y = y.reshape(2, 2, -1, half, half).permute(2, 0, 3, 1, 4).reshape(-1, 1, 2 * half, 2 * half)
        return self.mean + self.parity_t @ y @ self.parity

    def variance(self, sigma):
        """Posterior variance per pixel, (J,): trace of C (C + sigma^2)^-1 sigma^2 over the number of pixels."""
        s2 = (sigma * sigma).reshape(1, -1, 1)
        left = self.half**2 - self.variances.shape[-1]
        kept = (self.variances * s2 / (self.variances + s2)).sum((0, 2))
        return (kept + left * (self.rest * s2 / (self.rest + s2)).sum((0, 2))) / (4 * self.half**2)


def _parity_classes(images):
    """(N, H, H) -> (4, N, (H/2)^2): even-even, even-odd, odd-even, odd-odd in (rows, columns), orthonormal."""
    half = images.shape[-1] // 2
    top, bottom = images[:, :half], images[:, :half - 1:-1]
    classes = []
    for rows in (top + bottom, top - bottom):
        left, right = rows[:, :, :half], rows[:, :, :half - 1:-1]
        classes += [(left + right) * 0.5, (left - right) * 0.5]
    return np.stack(classes).reshape(4, len(images), half * half)


class FourierGaussian(nn.Module):
    """Gaussian of periodic fields: a given mean and a covariance that is diagonal in products of cosines and sines.

    D(x, sigma) = mu + B^T [l/(l + sigma^2) * B (x - mu)], (O1), B the real orthogonal Fourier matrix of both axes: four
    small matrix products, no FFT. Exact for stationary fields with P(k, l) = P(k, -l), else the nearest such Gaussian.

    mean : (C, H, W), variances : (C, H, W) in the order of the basis (constant, cos 1, sin 1, cos 2, ..., cos n/2).
    """

    def __init__(self, mean, variances):
        super().__init__()
        rows, columns = fourier_basis(mean.shape[-2]), fourier_basis(mean.shape[-1])
        for name, value in (("mean", mean), ("variances", variances), ("rows", rows), ("rows_t", rows.T),
                            ("columns", columns), ("columns_t", columns.T)):
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32))
        self.deviation = math.sqrt(float(variances.mean()))

    @classmethod
    def fit(cls, images, mean=0.0):
        """Power spectrum of fields (N, C, H, W), prior units, around ``mean``, cosines and sines pooled."""
        mean = np.broadcast_to(np.asarray(mean, dtype=np.float64), images.shape[1:])
        rows, columns = fourier_basis(images.shape[-2]), fourier_basis(images.shape[-1])
        power = np.zeros(images.shape[1:])
        for start in range(0, len(images), 1000):
            y = rows @ (np.asarray(images[start:start + 1000], dtype=np.float64) - mean) @ columns.T
            power += (y * y).sum(axis=0)
        power /= len(images)
        for axis in (-2, -1):
            power = np.moveaxis(power, axis, 0)
            pairs = power[1:-1].reshape(-1, 2, *power.shape[1:]).mean(axis=1).repeat(2, axis=0)
            power = np.moveaxis(np.concatenate([power[:1], pairs, power[-1:]]), 0, axis)
        return cls(mean, power)

    def forward(self, x, sigma):
        y = self.rows @ (x - self.mean) @ self.columns_t
        y = y * (self.variances / (self.variances + _column(sigma) ** 2))
        return self.mean + self.rows_t @ y @ self.columns

    def variance(self, sigma):
        """Posterior variance per pixel, (J,)."""
        s2 = _column(sigma) ** 2
        return (self.variances * s2 / (self.variances + s2)).mean((1, 2, 3))


def fourier_basis(n):
    """Real orthogonal Fourier matrix (n, n), n even: rows constant, cos 1, sin 1, ..., cos n/2."""
    j = np.arange(n)
    rows = [np.full(n, 1 / math.sqrt(n))]
    for k in range(1, n // 2):
        rows += [math.sqrt(2 / n) * np.cos(2 * np.pi * k * j / n), math.sqrt(2 / n) * np.sin(2 * np.pi * k * j / n)]
    return np.stack([*rows, np.cos(np.pi * j) / math.sqrt(n)])


# ------------------------------------------------------------------------------------------------------------- network


def depth_to_space(x, factor):
    """(J, C f^2, H, W) -> (J, C, H f, W f): the channels of a position become a patch of f x f pixels."""
    _, c, h, w = x.shape
    c = c // (factor * factor)
    return x.reshape(-1, c, factor, factor, h, w).permute(0, 1, 4, 2, 5, 3).reshape(-1, c, h * factor, w * factor)


class Convolution(nn.Module):
    """3 x 3 convolution that keeps the size, with zeros or the periodic continuation outside."""

    def __init__(self, inputs, outputs, circular):
        super().__init__()
        self.circular = circular
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=0 if circular else 1)

    def forward(self, x):
        if self.circular:  # by split and cat: their pullbacks need no scatter
            for axis in (2, 3):
                first, middle, last = torch.split(x, [1, x.shape[axis] - 2, 1], dim=axis)
                x = torch.cat([last, first, middle, last, first], dim=axis)
        return self.conv(x)


class Block(nn.Module):
    """Residual block; the noise level scales and shifts the second normalisation."""

    def __init__(self, inputs, outputs, embedding, circular):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1, self.conv2 = Convolution(inputs, outputs, circular), Convolution(outputs, outputs, circular)
        self.modulate = nn.Linear(embedding, 2 * outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv2.conv.weight)
        nn.init.zeros_(self.conv2.conv.bias)

    def forward(self, x, embedding):
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(nn.functional.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions, residual."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        _, c, h, w = x.shape
        # The pullback of Linear on three axes fixes the batch, that of chunk does not export: rows, and three layers.
        tokens = self.norm(x).reshape(-1, c, h * w).transpose(1, 2).reshape(-1, c)
        q, k, v = (layer(tokens).reshape(-1, h * w, c) for layer in (self.query, self.key, self.value))
        y = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(c), dim=-1) @ v
        return x + self.out(y.reshape(-1, c)).reshape(-1, h * w, c).transpose(1, 2).reshape(-1, c, h, w)


class UNet(nn.Module):
    """F(features, log-sigma): a U-Net on patches of the picture.

    features : input channels at full resolution; outputs : output channels; size : (H, W)
    patch : side of the disjoint patches that the first layer maps to channels and the last one back to pixels
    channels, blocks : per level, each at half the resolution of the one before; as many blocks down as up
    circular : periodic continuation instead of zeros
    position : add a learned map after the first layer, for data that are not invariant under shifts by a patch
    """

    def __init__(self, features, outputs, size, patch=4, channels=(32, 64, 128), blocks=(1, 1, 1), circular=False,
                 position=True, embedding=128):
        super().__init__()
        self.patch, self.outputs = patch, outputs
        self.register_buffer("frequencies", 1e4 ** (-torch.arange(16) / 16))
        self.embed = nn.Sequential(nn.Linear(32, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.first = nn.Conv2d(features, channels[0], patch, stride=patch)
        rows, columns = size[0] // patch, size[1] // patch
        self.position = nn.Parameter(torch.zeros(1, channels[0], rows, columns)) if position else None
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        for level, (c, n) in enumerate(zip(channels, blocks)):
            self.down.append(nn.ModuleList([Block(c, c, embedding, circular) for _ in range(n)]))
            if level + 1 < len(channels):
                self.shrink.append(nn.Conv2d(c, channels[level + 1], 2, stride=2))
                self.grow.append(nn.Conv2d(channels[level + 1], 4 * c, 1))
                self.up.append(nn.ModuleList([Block(2 * c if i == 0 else c, c, embedding, circular) for i in range(n)]))
        self.attention = Attention(channels[-1])
        self.middle = Block(channels[-1], channels[-1], embedding, circular)
        self.norm = nn.GroupNorm(8, channels[0])
        self.last = Convolution(channels[0], outputs * patch * patch, circular)
        nn.init.zeros_(self.last.conv.weight)
        nn.init.zeros_(self.last.conv.bias)

    def forward(self, features, level):
        angle = 1000 * level[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angle.sin(), angle.cos()], dim=1))
        h = self.first(features)
        if self.position is not None:
            h = h + self.position
        skips = []
        for i, down in enumerate(self.down):
            for block in down:
                h = block(h, embedding)
            if i < len(self.shrink):
                skips.append(h)
                h = self.shrink[i](h)
        h = self.middle(self.attention(h), embedding)
        for i in reversed(range(len(self.grow))):
            h = torch.cat([depth_to_space(self.grow[i](h), 2), skips[i]], dim=1)
            for block in self.up[i]:
                h = block(h, embedding)
        return depth_to_space(self.last(nn.functional.silu(self.norm(h))), self.patch)


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
        s = _column(sigma)
        w = self.gaussian(x, sigma)
        features = torch.cat([(w - self.gaussian.mean) / self.gaussian.deviation, (x - w) / s], dim=1)
        f = self.network(features, torch.log(sigma) / 4) / (1 + (s / self.taper) ** 4)
        return w, _column(torch.sqrt(self.gaussian.variance(sigma))), f

    def forward(self, x, sigma):
        w, c, f = self.parts(x, sigma)
        return w + c * f


# ------------------------------------------------------------------------------------------------------------ training


def train(denoiser, draw, *, images, work, seed=0, rate=1.5e-3, log_sigma=(-0.8, 1.4), decay=0.9995, evaluate=None,
          report=30_000):
    """Train ``denoiser`` in place on ``images`` draws; returns (EMA denoiser, CPU seconds of training).

    Loss: mean |D - x0|^2 / c^2 over batches of ``BATCH`` with ln sigma normal, in stratified quantiles. AdamW; its rate
    warms up over 500 steps, stays, and falls linearly to 0 over the last quarter: ``images`` may be changed on resuming
    before that quarter, with the same result as from the start.

    Parameters
    ----------
    draw : (count, torch.Generator) -> (count, C, H, W) float32, augmented clean images in prior units
    images : int                 number of images to be seen in total
    work : path                directory of checkpoint.pt, written once a minute; an existing one is resumed
    evaluate : (denoiser) -> str or None   printed every ``report`` images, for the EMA weights
    """
    work = Path(work)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    average = {name: value.detach().clone() for name, value in denoiser.network.named_parameters()}
    optimizer = torch.optim.AdamW(denoiser.network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-2)
    step, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        denoiser.network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]

    def save():
        torch.save({"network": denoiser.network.state_dict(), "optimizer": optimizer.state_dict(), "average": average,
                    "step": step, "spent": spent}, f"{checkpoint}.new")
        os.replace(f"{checkpoint}.new", checkpoint)

    batch, steps, generator = BATCH, -(-images // BATCH), torch.Generator()
    mean, spread = log_sigma
    cpu, saved_at, losses = time.process_time(), time.monotonic(), []
    while step < steps:
        generator.manual_seed((seed << 32) + step)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 500, 4 * (steps - step) / steps)
        x0 = draw(batch, generator)
        quantile = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        sigma = torch.exp(mean + spread * torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)))
        x = x0 + _column(sigma) * torch.randn(x0.shape, generator=generator)
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
        now = time.process_time()
        spent, cpu = spent + now - cpu, now
        if time.monotonic() - saved_at > 60 or step == steps:
            save()
            saved_at = time.monotonic()
        if step % (report // batch) == 0:
            text = evaluate(averaged(denoiser, average)) if evaluate else ""
            print(f"{step * batch:9d} images {spent / 60:6.1f} CPU min  loss {np.mean(losses):.4f}  {text}", flush=True)
            losses, cpu = [], time.process_time()  # evaluation is not counted as training
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

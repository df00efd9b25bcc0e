"""Train the correction network of DEFT without gradients (arXiv 2409.20175; DEFT: Denker et al. 2024) for vorticity.

    python -m onnx_priors.training.deft --size 32 --work DIR --out onnx_priors/weights/navier-stokes-32-deft.onnx

Beside a manifest that knows the prior, the file is entered in it.

Pairs (x0, y = G(x0) + noise) of the prior's training fields, one forward call each: these are the offline forward
calls of the method, and the metadata of the file say how many. Every time a pair is seen it is turned by a random
symmetry of the flow, and the noise of y is drawn anew, its standard deviation uniform in [0, 1.2] and given to the
network, so that one file serves all noise levels. The prior is frozen.

File: x, denoised (J, 1, n, n), y (J, 1, n/2, n/2), noise (J,), sigma (J,) -> correction h (J, 1, n, n), float32;
D - sigma h is the corrected denoiser. Needs the ``train`` extra.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from onnx_priors.export import without_traces
from onnx_priors.manifest import register_companion
from onnx_priors.session import OnnxDenoiser
from onnx_priors.training import navier_stokes
from onnx_priors.training.network import UNet
from problems import navier_stokes as flow

NOISE = 1.2  # largest standard deviation of y, vorticity units


class Correction(nn.Module):
    """h = -s_d/sqrt(sigma^2 + s_d^2) F: D_c = D + c F, c the deviation of x0 given x~ for white data of deviation s_d.

    F sees x~ scaled to unit variance, D, y lifted to the grid by nearest neighbours, where it was measured, its noise.
    """

    def __init__(self, size, deviation, scale, channels=(24, 48, 64)):
        super().__init__()
        self.deviation, self.scale, self.size = deviation, scale, size
        mask = np.zeros((1, 1, size, size), dtype=np.float32)
        mask[:, :, ::2, ::2] = 1.0
        self.register_buffer("mask", torch.from_numpy(mask))
        self.network = UNet(features=5, outputs=1, size=(size, size), patch=2, channels=channels, circular=True)

    def forward(self, x, denoised, y, noise, sigma):
        s = sigma.reshape(-1, 1, 1, 1)
        half = self.size // 2
        lifted = y.reshape(-1, 1, half, 1, half, 1).expand(-1, 1, half, 2, half, 2).reshape(-1, 1, self.size, self.size)
        total = torch.sqrt(s * s + self.deviation**2)
        ones = torch.ones_like(x)
        features = torch.cat([x / total, denoised / self.deviation, lifted / (self.scale * self.deviation),
                              self.mask * ones, noise.reshape(-1, 1, 1, 1) * ones], dim=1)
        return -self.deviation / total * self.network(features, torch.log(sigma) / 4)


def simulated(problem, fields, work):
    """G of every training field (count, n/2, n/2), made once and kept in ``work``: one forward call per field."""
    path = Path(work) / f"deft-{problem.name}-y.npy"
    if not path.exists():
        half = fields.shape[-1] // 2
        parts = [np.asarray(problem.forward(part)).reshape(-1, half, half) for part in np.array_split(fields, 200)]
        np.save(path, np.concatenate(parts).astype(np.float32))
    return np.load(path)


def turned(fields, y, rng):
    """Fields (B, n, n) and their noise-free data (B, n/2, n/2), both under random symmetries of the flow.

    Another symmetry for each eighth of the batch. Shifts by two points are shifts by one datum.
    """
    pairs = []
    for x, data in zip(np.array_split(fields, 8), np.array_split(y, 8)):
        k, shift = int(rng.integers(16)), int(rng.integers(y.shape[-1]))
        pairs.append([navier_stokes.symmetry(torch.from_numpy(part), k, by).numpy()
                      for part, by in ((x, 2 * shift), (data, shift))])
    return tuple(np.concatenate(parts) for parts in zip(*pairs))


def train(model, denoise, fields, y, images, seed, work, log_sigma=(0.0, 1.4), rate=1.5e-3, batch=32, decay=0.998):
    """Minimise E |D - sigma h - x0|^2/c^2. Returns (model with averaged weights, CPU seconds).

    Adam; its rate warms up over 100 steps, stays, and falls linearly to 0 over the last quarter. ``work`` holds
    deft-SIZE-SEED.pt, written once a minute; an existing one is resumed. ``images`` may be changed before that quarter.
    """
    optimizer, checkpoint = torch.optim.Adam(model.parameters(), lr=rate), Path(work) / f"deft-{model.size}-{seed}.pt"
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    step, spent = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step, spent = saved["average"], saved["step"], saved["spent"]
    steps, cpu, saved_at, losses = images // batch, time.process_time(), time.monotonic(), []
    while step < steps:
        rng = np.random.default_rng([seed, step])
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100, 4 * (steps - step) / steps)
        rows = rng.integers(len(fields), size=batch)
        sigma = np.exp(log_sigma[0] + log_sigma[1] * rng.standard_normal(batch)).clip(0.01, 60).astype(np.float32)
        noise = rng.uniform(0, NOISE, batch).astype(np.float32)
        x0, data = turned(fields[rows], y[rows], rng)
        x0 = x0[:, None]
        x = x0 + sigma[:, None, None, None] * rng.standard_normal(x0.shape, dtype=np.float32)
        (denoised,) = denoise.session.run(["denoised"], {"x": x, "sigma": sigma})
        data = data + noise[:, None, None] * rng.standard_normal(data.shape, dtype=np.float32)
        x0, x, denoised, data, noise, s = map(torch.from_numpy, (x0, x, denoised, data[:, None], noise, sigma))
        s4 = s.reshape(-1, 1, 1, 1)
        error = denoised - s4 * model(x, denoised, data, noise, s) - x0
        loss = ((1 / s4**2 + 1 / model.deviation**2) * error**2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in model.named_parameters():
                average[name].lerp_(value, 1 - keep)
        step += 1
        prior = ((1 / s4**2 + 1 / model.deviation**2) * (denoised - x0) ** 2).mean()
        losses.append((loss.item(), prior.item()))
        spent, cpu = spent + time.process_time() - cpu, time.process_time()
        if time.monotonic() - saved_at > 60 or step == steps:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average,
                        "step": step, "spent": spent}, f"{checkpoint}.new")
            os.replace(f"{checkpoint}.new", checkpoint)
            saved_at = time.monotonic()
        if step % 250 == 0 or step == steps:
            corrected, alone = np.mean(losses, axis=0)
            print(f"{step * batch:8d} pairs {spent / 60:5.1f} CPU min  loss {corrected:.4f}, of the prior alone "
                  f"{alone:.4f}", flush=True)
            losses = []
    model.load_state_dict({**model.state_dict(), **average})
    return model.eval().requires_grad_(False), spent


def write(model, path, size, metadata):
    """Export, and check against the eager module at other batch sizes. Returns the largest deviation."""
    import onnxruntime

    def example(rows, seed):
        shapes = ((rows, 1, size, size),) * 2 + ((rows, 1, size // 2, size // 2), (rows,), (rows,))
        rng = np.random.default_rng([seed, rows])
        return tuple(torch.from_numpy(rng.random(shape, dtype=np.float32) + 0.1) for shape in shapes)

    names = ["x", "denoised", "y", "noise", "sigma"]
    batch = torch.export.Dim("n", min=1, max=4096)
    program = torch.onnx.export(model, example(13, 0), dynamo=True, input_names=names, output_names=["correction"],
                                opset_version=20, dynamic_shapes=tuple({0: batch} for _ in names), verbose=False)
    proto = without_traces(program.model_proto)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(proto)
    onnx.save_model(proto, path)
    session, worst = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]), 0.0
    for rows in (1, 2, 7):
        inputs = example(rows, 1)
        got = session.run(None, {name: value.numpy() for name, value in zip(names, inputs)})[0]
        worst = max(worst, float(np.abs(got - model(*inputs).numpy()).max()))
    if worst > 1e-5:
        raise ValueError(f"export to {path} refused: it deviates from the eager module by {worst:.1e}")
    return worst


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m onnx_priors.training.deft", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, choices=(32, 64), default=32)
    parser.add_argument("--out", required=True, help="ONNX file to write")
    parser.add_argument("--work", required=True, help="directory for fields, data and checkpoint")
    parser.add_argument("--images", type=int, default=60_000, help="pairs to be seen (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    problem = flow.navier_stokes(options.size)
    fields = navier_stokes.field_set(options.work, options.size, "train", navier_stokes.COUNTS[options.size], "scipy")
    y = simulated(problem, fields, options.work)
    model = Correction(options.size, float(fields.std()), problem.scale)
    denoise = OnnxDenoiser(problem.prior, threads=1)
    model, spent = train(model, denoise, fields, y, options.images, options.seed, options.work)
    metadata = {"problem": problem.name, "prior": problem.prior, "offline_forward": len(fields),
                "pairs_seen": options.images, "cpu_minutes": round(spent / 60, 1), "weight_licence": "MIT",
                "training_command": f"python -m onnx_priors.training.deft --size {options.size} --work DIR --out "
                                    f"{Path(options.out).name} --images {options.images} --seed {options.seed}"}
    print(f"deviation from the eager module {write(model, options.out, options.size, metadata):.1e}, "
          f"{Path(options.out).stat().st_size / 1e6:.2f} MB")
    manifest = Path(options.out).with_name("manifest.json")
    if manifest.exists():
        register_companion(problem.prior, "correction", options.out, manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())

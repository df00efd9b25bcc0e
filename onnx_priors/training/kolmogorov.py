"""Train and write the prior of the Kolmogorov flow, ``kolmogorov``.

    python -m onnx_priors.training.kolmogorov --work DIR --out onnx_priors/weights/kolmogorov.onnx

makes the snapshots (blocks already in DIR are kept), trains, exports, enters the file in the manifest and prints the
error table. It may be stopped and started again; ``--export-only`` writes what the last checkpoint holds. Needs the
``train`` extra.
"""

from __future__ import annotations

import importlib
import sys

import torch

from onnx_priors.training import command
from onnx_priors.training.navier_stokes import RELATIVE_SIGMAS, build, draws

NAME = "onnx_priors.training.kolmogorov"
HELD_OUT_COUNT = 512


def main(arguments=None):
    parser = command.parser(NAME, __doc__.split("\n")[0], 400_000)
    parser.add_argument("--data", default="problems.kolmogorov:prior_fields", metavar="MODULE:FUNCTION",
                        help="(directory, split) -> (N, 64, 64) float32 in prior units (default %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    module, function = options.data.split(":")
    fields_of = getattr(importlib.import_module(module), function)
    fields = fields_of(options.work, "train")
    held_out = fields_of(options.work, "validation")
    clean = torch.from_numpy(held_out[:: max(1, len(held_out) // HELD_OUT_COUNT)][:HELD_OUT_COUNT])[:, None]
    facts = {
        "units": "vorticity of the Kolmogorov flow, Re = 40, 64 x 64 points, y along the last axis",
        "normalisation": "x = vorticity / 4.3",
        "data": f"{len(fields)} snapshots of 90 trajectories of the project's own solver, {options.data}",
    }
    forms = ("Wiener denoiser + posterior deviation x U-Net, inside the graph",
             "Wiener denoiser: mean profile and power spectrum")
    command.train_and_write(options, NAME, build(fields, 64, options.seed), draws(fields), clean, facts, forms,
                            sigmas=RELATIVE_SIGMAS, unit=float(clean.std()), half=True, log_sigma=(-1.4, 1.2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

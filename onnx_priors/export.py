"""Any torch denoiser D(x, sigma) as an ONNX prior, its vector-Jacobian product as another, metadata for foreign files.

torch, onnx and onnxscript come with the ``train`` extra; ``attach_metadata`` needs onnx and onnxruntime only. The VJP
export uses private parts of torch (``torch._decomp``, ``_allow_non_fake_inputs``): that extra pins torch to 2.13.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

from onnx_priors.borrow import borrow_weights
from onnx_priors.metadata import encode_metadata, model_shape

OPSET = 20
CHECK_BATCHES = (1, 2, 7)  # none is the example's: a frozen batch axis cannot pass
TOLERANCE = 1e-5  # of max(1, max |reference|): float32 operators in another order


def export_denoiser(module, path, event_shape, metadata):
    """Write a torch denoiser as an ONNX prior file and prove that the file computes the same.

    Parameters
    ----------
    module : torch.nn.Module   D(x, sigma) = E[x0 | x0 + sigma N(0, I) = x] of x float32 (J, C, H, W) and sigma
                               float32 (J,), any parametrisation inside; put into eval mode, parameters frozen
    path : path                of the .onnx file, replaced only if the check passes
    event_shape : tuple        (d,), (H, W) or (C, H, W); the module sees (1, 1, d), (1, H, W), (C, H, W)
    metadata : mapping         see ``onnx_priors.metadata``; sigma_min and sigma_max are required

    Returns
    -------
    float    largest deviation between onnxruntime and the eager module, relative to max(1, max |D|)

    Raises ValueError if the deviation exceeds ``TOLERANCE`` at one of the batch sizes ``CHECK_BATCHES``, sigma spread
    over [sigma_min, sigma_max].
    """
    module = _frozen(module)
    properties = encode_metadata({**metadata, "event_shape": event_shape})
    x, sigma, _ = _samples(_example_batch(module, event_shape), event_shape, properties)
    return _write_checked(module, (x, sigma), ["denoised"], path, event_shape, properties,
                          lambda x, sigma, v: (module(x, sigma),))


def export_vjp(module, path, event_shape, metadata):
    """Write (x, sigma, v) -> (D, J_D^T v) of a torch denoiser as one ONNX file, checked against autograd.

    The pullback is traced to ATen operators with a symbolic batch; the backward operators that ONNX lacks are
    decomposed, that of the convolution by our own rule (input gradient only, a transposed convolution). Covered:
    convolutions, plain and transposed, with zero or circular padding; Linear, GroupNorm, LayerNorm, SiLU, GELU, ReLU,
    softmax attention; elementwise operators; expand + reshape, pixel (un)shuffle, nearest upsampling by whole factors.
    Not covered: average pooling, and Linear or matmul of a transposed or chunked view (call ``contiguous()`` first).
    The file has standard operators only.

    Parameters, return value and errors as :func:`export_denoiser`; the deviation is the larger one of D and J_D^T v.
    """
    import torch
    import torch.nn.attention
    from torch.fx.experimental.proxy_tensor import make_fx

    module = _frozen(module)
    properties = encode_metadata({**metadata, "event_shape": event_shape})

    def pull_back(x, sigma, v):
        plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)  # attention by products and softmax
        with _circular_padding_by_concatenation(), plain:
            denoised, pullback = torch.func.vjp(lambda z: module(z, sigma), x)
        return denoised, pullback(v)[0]

    example = _samples(_example_batch(module, event_shape), event_shape, properties)
    trace = make_fx(pull_back, tracing_mode="symbolic", decomposition_table=_backward_rules(),
                    _allow_non_fake_inputs=True)
    graph = trace(*example).eval()
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return _write_checked(graph, example, ["denoised", "vjp"], path, event_shape, properties,
                          lambda x, sigma, v: _autograd_vjp(module, x, sigma, v))


def export_prior(module, path, event_shape, metadata, jacobian=True):
    """Write the denoiser and, with ``jacobian``, its VJP to the _vjp.onnx beside ``path``, its weights read from there.

    Returns (path, path of the VJP or None, note): for a network with an operator that the VJP export does not cover the
    note says why there is none. Errors of the denoiser's export as :func:`export_denoiser`.
    """
    with warnings.catch_warnings():  # the exporter warns of itself, not of the network
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        return _export_both(module, Path(path), event_shape, metadata, jacobian)


def _export_both(module, path, event_shape, metadata, jacobian):
    vjp = path.with_name(f"{path.stem}_vjp.onnx")
    export_denoiser(module, path, event_shape, metadata)
    vjp.unlink(missing_ok=True)  # of another denoiser
    if not jacobian:
        return path, None, ""
    try:
        export_vjp(module, vjp, event_shape, metadata)
    except Exception as error:  # torch's exporters raise many kinds
        vjp.unlink(missing_ok=True)
        reason = " ".join(str(error).split())[:200]
        return path, None, f"no Jacobian ({type(error).__name__}: {reason}): methods that need one are not available"
    borrow_weights(vjp, path)
    return path, vjp, ""


def attach_metadata(path_in, path_out, **metadata):
    """Copy an ONNX denoiser of yours with the metadata that make it a prior file, and check its contract.

    ``attach_metadata("mine.onnx", "prior.onnx", event_shape=(64, 64), sigma_min=.002, sigma_max=80.)``

    The model must already have the inputs x, sigma (and v) and the outputs denoised (and vjp); the keys are listed in
    ``onnx_priors.metadata``. Properties the model already has are kept unless named.

    Raises FileNotFoundError, or ValueError with one line if the metadata or the model violate the contract.
    """
    try:
        import onnx
    except ImportError:
        raise ImportError("attach_metadata needs the package onnx: pip install onnx") from None

    if not os.path.isfile(path_in):
        raise FileNotFoundError(f"path_in: {path_in} does not exist")
    model = onnx.load(os.fspath(path_in))
    old = {p.key: p.value for p in model.metadata_props}
    onnx.helper.set_model_props(model, {**old, **encode_metadata(metadata)})
    vjp = any(i.name == "v" for i in model.graph.input)
    _replace_if(path_out, lambda temporary: onnx.save_model(model, temporary), lambda temporary: _open(temporary, vjp))


def _frozen(module):
    module = module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def _example_batch(module, event_shape):
    """Batch size of the example: symbolic tracing takes axes of equal size for one, and 1 for a constant."""
    sizes = {n for t in (*module.parameters(), *module.buffers()) for n in t.shape} | set(model_shape(event_shape))
    return next(n for n in itertools.count(13, 2) if n not in sizes)


def _samples(batch, event_shape, properties, seed=0):
    """x, sigma, v for a comparison: sigma log-spaced over the range of the prior, x0 a stand-in of white noise."""
    import torch

    rng = np.random.default_rng([seed, batch])
    shape = (batch, *model_shape(event_shape))
    low, high = (math.log(float(properties[key])) for key in ("sigma_min", "sigma_max"))
    sigma = np.exp(low + (high - low) * (np.arange(batch) + 0.5) / batch)
    x = 0.5 * rng.standard_normal(shape) + sigma[:, None, None, None] * rng.standard_normal(shape)
    return tuple(torch.from_numpy(a.astype(np.float32)) for a in (x, sigma, rng.standard_normal(shape)))


def _autograd_vjp(module, x, sigma, v):
    import torch

    x = x.clone().requires_grad_(True)
    with torch.enable_grad():
        denoised = module(x, sigma)
        (vjp,) = torch.autograd.grad(denoised, x, v)
    return denoised.detach(), vjp


def _circular_padding_by_concatenation():
    """Context in which circular padding is a concatenation: torch's own writes in place, which ONNX cannot express."""
    import torch

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            circular = getattr(function, "__name__", "") == "pad" and "circular" in (*args, *(kwargs or {}).values())
            return (wrap if circular else function)(*args, **(kwargs or {}))

    def wrap(x, pad, mode, value=None):
        for axis, (before, after) in enumerate(zip(pad[::2], pad[1::2]), start=1):  # last axis first
            n = x.shape[-axis]
            parts = [x.narrow(-axis, n - before, before), x, x.narrow(-axis, 0, after)]
            x = torch.cat([part for part in parts if part.shape[-axis]], dim=-axis)
        return x

    return Mode()


def _backward_rules():
    """Decomposition table that leaves only operators with an ONNX translation in a traced pullback."""
    import torch
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    rules = get_decompositions([aten.native_group_norm_backward, aten.silu_backward, aten._softmax_backward_data,
                                aten.native_layer_norm_backward])

    def convolution_backward(grad, x, weight, bias, stride, padding, dilation, transposed, _, groups, mask):
        assert not (mask[1] or mask[2]), "frozen weights ask for no gradient"
        extra = [0] * len(stride)
        if not transposed:
            # The forward convolution ignores up to stride - 1 trailing samples; output padding gives them back.
            covered = [(int(m) - 1) * s - 2 * p + d * (int(k) - 1) + 1
                       for m, k, s, p, d in zip(grad.shape[2:], weight.shape[2:], stride, padding, dilation)]
            extra = [int(n) - c for n, c in zip(x.shape[2:], covered)]
        grad_x = aten.convolution.default(grad, weight, None, stride, padding, dilation, not transposed, extra, groups)
        return grad_x, None, None

    def upsample_nearest2d_backward(grad, output_size, input_size, scales_h=None, scales_w=None):
        n, c, h, w = input_size
        f_h, f_w = int(output_size[0]) // int(h), int(output_size[1]) // int(w)
        if (f_h * int(h), f_w * int(w)) != (int(output_size[0]), int(output_size[1])):
            raise NotImplementedError("the VJP export covers nearest upsampling by integer factors")
        return grad.reshape(n, c, h, f_h, w, f_w).sum((3, 5))

    rules[aten.convolution_backward.default] = convolution_backward
    rules[aten.upsample_nearest2d_backward.default] = upsample_nearest2d_backward
    return rules


def _write_checked(module, example, outputs, path, event_shape, properties, reference):
    import onnx
    import torch

    batch = torch.export.Dim("n", min=1, max=4096)
    names = ["x", "sigma", "v"][: len(example)]
    program = torch.onnx.export(module, tuple(example), dynamo=True, input_names=names, output_names=outputs,
                                opset_version=OPSET, dynamic_shapes=tuple({0: batch} for _ in example), verbose=False)
    model = without_traces(program.model_proto)
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)

    def check(temporary):
        run = _open(temporary, "v" in names)
        worst = 0.0
        for rows in CHECK_BATCHES:
            x, sigma, v = _samples(rows, event_shape, properties, seed=1)
            with torch.no_grad():
                wanted = reference(x, sigma, v)
            inputs = {name: value.numpy() for name, value in zip(("x", "sigma", "v"), (x, sigma, v)) if name in names}
            for name, got, want in zip(outputs, run.session.run(outputs, inputs), wanted):
                want = want.detach().numpy()
                deviation = float(np.max(np.abs(got - want))) / max(1.0, float(np.max(np.abs(want))))
                if not deviation <= TOLERANCE:
                    raise ValueError(f"export to {path} refused: {name} deviates from the eager module by "
                                     f"{deviation:.1e} (limit {TOLERANCE:.0e}) for a batch of {rows}")
                worst = max(worst, deviation)
        return worst

    return _replace_if(path, lambda temporary: onnx.save_model(model, temporary), check)


def without_traces(model):
    """The model without what the exporter notes at every node: stack traces, which name the files of its machine."""
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer, *model.graph.input,
                 *model.graph.output, *model.functions, *(node for f in model.functions for node in f.node)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


def _open(path, vjp):
    from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP

    return (OnnxDenoiserVJP if vjp else OnnxDenoiser)(Path(path))


def _replace_if(path, write, check):
    """Write to a temporary neighbour of ``path``, check it, and only then move it there; return the check's result."""
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        temporary = os.path.join(directory, "prior.onnx")
        write(temporary)
        result = check(temporary)
        os.replace(temporary, path)
    return result

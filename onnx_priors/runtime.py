"""What is particular to onnxruntime: its two packages, starting a session, the contract of a model, binding memory."""

from __future__ import annotations

import importlib.metadata
import os
import warnings

import numpy as np

from onnx_priors.metadata import decode_metadata, model_shape


def start_session(path, device, cuda_options):
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        raise ValueError(f'device must be "cpu", "cuda" or "cuda:N", got {device!r}')
    clash = _clash()
    if clash:
        warnings.warn(clash, UserWarning, stacklevel=4)
    ort = _onnxruntime()
    wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[kind]
    if wanted not in ort.get_available_providers():
        raise ValueError(f"device: got {device!r}, but the installed onnxruntime has no {wanted}, expected the extra "
                         f"gpu (enkg_ref[gpu]) in place of the extra cpu{'; ' + clash if clash else ''}")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # the threads share chunks, not operators
    options.log_severity_level = 3
    providers = [wanted]
    if kind == "cuda":
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()
        providers = [(wanted, cuda_options(int(index or 0)))]
    try:
        session = ort.InferenceSession(os.fspath(path), sess_options=options, providers=providers)
    except Exception as error:  # onnxruntime has no public base class of its errors
        reason = " ".join(str(error).split())[:200]
        if "xternal data" in reason:
            reason = f"it reads weights of another file, which must lie in the same folder ({reason})"
        raise ValueError(f"prior file {path}: onnxruntime cannot open it on device {device!r}: {reason}") from error
    if session.get_providers()[0] != wanted:  # onnxruntime falls back to the CPU without raising
        raise ValueError(f"device: got {device!r}, but onnxruntime could not start its {wanted} and fell back to "
                         f"{session.get_providers()[0]}{'; ' + clash if clash else ''}")
    return session


def checked_metadata(session, path, inputs, outputs):
    """Metadata of a model that fulfils the contract; ValueError with one line for a model that does not."""

    def refuse(what, got, expected):
        raise ValueError(f"prior file {path}: {what} {got}, expected {expected}")

    for what, nodes, names in (("inputs", session.get_inputs(), inputs), ("outputs", session.get_outputs(), outputs)):
        if sorted(n.name for n in nodes) != sorted(names):
            refuse(what, [n.name for n in nodes], list(names))
        for node in nodes:
            if node.type != "tensor(float)":
                refuse(node.name, f"has type {node.type}", "tensor(float)")
            rank = 1 if node.name == "sigma" else 4
            if len(node.shape) != rank:
                refuse(node.name, f"has rank {len(node.shape)}", rank)
            if not isinstance(node.shape[0], (str, type(None))):
                refuse(node.name, f"has a fixed batch of {node.shape[0]}", "a symbolic batch axis")
    try:
        metadata = decode_metadata(session.get_modelmeta().custom_metadata_map)
    except ValueError as error:
        raise ValueError(f"prior file {path}: {error}") from error
    shape = model_shape(metadata["event_shape"])
    for node in (*session.get_inputs(), *session.get_outputs()):
        sizes = node.shape[1:]
        if node.name != "sigma" and any(isinstance(n, int) and n != m for n, m in zip(sizes, shape)):
            refuse(node.name, f"has event axes {tuple(sizes)}",
                   f"{shape} for the event_shape {metadata['event_shape']} of its metadata")
    return metadata


def bind(slot, name, a, shape, cuda_device=None):
    """Bind memory by pointer. onnxruntime trusts the shape and reads garbage from any other layout, hence the check."""
    if a.dtype != np.float32 or not a.flags.c_contiguous:
        raise AssertionError(f"{name}: only C-contiguous float32 memory may be bound by pointer")
    if cuda_device is None:
        slot(name, "cpu", 0, np.float32, shape, a.ctypes.data)
    else:
        slot(name, "cuda", cuda_device, np.float32, shape, a.data.ptr)


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX priors need onnxruntime: install the extra cpu or the extra gpu (enkg_ref[cpu] or "
                          "enkg_ref[gpu], never both)") from error
    return onnxruntime


def _clash():
    """One sentence if both onnxruntime packages are installed (they own the same folder), else ''."""
    try:
        for package in ("onnxruntime", "onnxruntime-gpu"):
            importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
    return "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, install one"

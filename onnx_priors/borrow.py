"""A model that repeats the weights of another one reads them inside that file: external data of the ONNX standard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from onnx_priors.manifest import sha256


def borrow_weights(path, source, least=1024):
    """Rewrite the model ``path`` so that the weights it shares with the model ``source`` beside it are read from there.

    The VJP of a denoiser, or its Gaussian part, repeats the denoiser's weights byte for byte, some of them transposed.
    They become external data of ONNX: file, offset and length inside ``source``, which itself stays as it is. The model
    computes the same bits at the same speed. Its metadata hold the name and sha256 of ``source`` as ``weights_of``,
    which the session checks; both files must stay in one folder. Weights below ``least`` bytes are not moved.

    Returns the number of bytes saved. Raises ValueError for files in different folders.
    """
    import onnx

    path, source = Path(path), Path(source)
    if path.resolve().parent != source.resolve().parent or path.name == source.name:
        raise ValueError(f"source: got {source}, expected another file beside {path}")
    raw, model, old = source.read_bytes(), onnx.load(path), path.stat().st_size
    places = {(t.data_type, tuple(t.dims), t.raw_data): raw.index(t.raw_data)
              for t in onnx.load(source).graph.initializer if len(t.raw_data) >= least}
    borrowed, transposes = 0, []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        for held in (values, values.T) if values.ndim == 2 else (values,):
            place = places.get((tensor.data_type, held.shape, held.tobytes()))
            if place is None:
                continue
            if held is not values:
                transposes.append(onnx.helper.make_node("Transpose", [f"{tensor.name}.T"], [tensor.name], perm=[1, 0]))
                tensor.name = f"{tensor.name}.T"
            _point(tensor, held.shape, source.name, place)
            borrowed += 1
            break
    if not borrowed:
        return 0
    nodes = [*transposes, *model.graph.node]  # in the order of evaluation
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    facts = {p.key: p.value for p in model.metadata_props}
    facts["weights_of"] = json.dumps({"file": source.name, "sha256": sha256(source)})
    onnx.helper.set_model_props(model, facts)
    path.write_bytes(model.SerializeToString())
    return old - path.stat().st_size


def halve_weights(path, least=32_768):
    """Rewrite the model ``path`` so that its float32 weights of ``least`` bytes or more are stored as float16.

    They are cast back when the model is loaded: the arithmetic stays float32, at the same speed. Rounding changes a
    weight by at most 0.05 %; smaller tables, such as a Fourier basis, keep their precision. A VJP must be halved like
    its denoiser, before `borrow_weights`.

    Returns the number of bytes saved. Raises ValueError for a weight beyond the range of float16.
    """
    import onnx

    path = Path(path)
    model, old, casts = onnx.load(path), path.stat().st_size, []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.raw_data) < least:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if not np.max(np.abs(values)) < 65_504:
            raise ValueError(f"path: got {path} with a weight of {np.max(np.abs(values)):g}, expected magnitudes below "
                             "65504, the largest of float16")
        name, half = tensor.name, f"{tensor.name}.half"
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    return old - path.stat().st_size


def _point(tensor, shape, file, offset):
    """Make an initializer external data of this shape in ``file``."""
    length = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.dims[:] = shape
    tensor.data_location = tensor.EXTERNAL
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))

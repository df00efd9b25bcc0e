"""An ONNX prior written operator by operator, without torch: the arithmetic is float64, inputs and outputs float32.

The file follows the contract of ``onnx_priors.session``: inputs x (J, C, H, W), sigma (J,) and, for a vector-Jacobian
product, v; outputs denoised and vjp; a symbolic batch axis J. Needs the package ``onnx``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from onnx_priors.metadata import encode_metadata, model_shape

OPSET, IR_VERSION = 20, 10


class Graph:
    """A graph under construction. Its values are names of float64 tensors; x and v are (J, d), sigma2 is (J, 1).

    d : size of an event;  vjp : whether the graph has the input v
    storage : "float64", "float32" or "float16", the type in which matrices are stored; they are cast when used
    """

    def __init__(self, d, vjp=False, storage="float64"):
        if storage not in ("float64", "float32", "float16"):
            raise ValueError(f'storage: got {storage!r}, expected "float64", "float32" or "float16"')
        try:
            import onnx
        except ImportError:
            raise ImportError("writing a prior needs the package onnx: pip install onnx") from None

        self._onnx, self._storage = onnx, np.dtype(storage)
        self._nodes, self._tables = [], []
        self.x = self._rows("x", (-1, d))
        self.v = self._rows("v", (-1, d)) if vjp else None
        sigma = self._rows("sigma", (-1, 1))
        self.sigma2 = self.mul(sigma, sigma)

    def _rows(self, name, shape):
        return self.reshape(self._op("Cast", name, to=self._onnx.TensorProto.DOUBLE), shape)

    def _constant(self, values):
        name = f"t{len(self._tables)}"
        self._tables.append(self._onnx.numpy_helper.from_array(values, name))
        return name

    def _integers(self, values):
        return self._constant(np.array(values, dtype=np.int64))

    def _op(self, kind, *inputs, output=None, **attributes):
        output = output or f"n{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def as_stored(self, values):
        """Float64 values as the graph will see them; only matrices are worth rounding to a smaller type."""
        values = np.asarray(values, dtype=np.float64)
        return values.astype(self._storage).astype(np.float64) if values.ndim > 1 else values

    def table(self, values):
        """A constant."""
        values = np.asarray(values, dtype=np.float64)
        if values.ndim < 2 or self._storage == np.float64:
            return self._constant(values)
        return self._op("Cast", self._constant(values.astype(self._storage)), to=self._onnx.TensorProto.DOUBLE)

    def add(self, a, b):
        return self._op("Add", a, b)

    def sub(self, a, b):
        return self._op("Sub", a, b)

    def mul(self, a, b):
        return self._op("Mul", a, b)

    def div(self, a, b):
        return self._op("Div", a, b)

    def matmul(self, a, b):
        return self._op("MatMul", a, b)

    def matmul_T(self, a, b):
        """a b^T of two matrices."""
        return self._op("Gemm", a, b, transB=1)

    def log(self, a):
        return self._op("Log", a)

    def sum(self, a, axis=1, keep=1):
        return self._op("ReduceSum", a, self._integers([axis]), keepdims=keep)

    def softmax(self, a, axis):
        return self._op("Softmax", a, axis=axis)

    def reshape(self, a, shape):
        return self._op("Reshape", a, self._integers(shape))

    def concat(self, a, b, axis):
        return self._op("Concat", a, b, axis=axis)

    def slice(self, a, start, stop, axis):
        return self._op("Slice", a, self._integers([start]), self._integers([stop]), self._integers([axis]))

    def save(self, path, outputs, event_shape, metadata):
        """Write the prior file. ``outputs``: the values of denoised (and vjp); ``metadata``: see onnx_priors.metadata.

        Without its own sigma_min and sigma_max the metadata say 1e-3 and 1e3.
        """
        onnx, shape = self._onnx, model_shape(event_shape)
        facts = {"sigma_min": 1e-3, "sigma_max": 1e3, **metadata, "event_shape": event_shape}
        names = ("denoised", "vjp")[: len(outputs)]
        for name, out in zip(names, outputs):
            self._op("Cast", self.reshape(out, (-1, *shape)), output=name, to=onnx.TensorProto.FLOAT)

        def port(name):
            axes = ["n"] if name == "sigma" else ["n", *shape]
            return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)

        ports = ["x", "sigma"] if self.v is None else ["x", "sigma", "v"]
        inputs, outputs = [port(n) for n in ports], [port(n) for n in names]
        graph = onnx.helper.make_graph(self._nodes, "prior", inputs, outputs, self._tables)
        opset = onnx.helper.make_opsetid("", OPSET)
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="onnx_priors")
        onnx.helper.set_model_props(model, encode_metadata(facts))
        onnx.checker.check_model(model)
        Path(os.fspath(path)).write_bytes(model.SerializeToString())

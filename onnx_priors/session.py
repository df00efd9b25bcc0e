"""An ONNX prior as a plain callable: numpy, cupy, torch, jax or array-api-strict arrays in, the same kind out.

``OnnxDenoiser(prior)(x, sigma)`` is E[x0 | x], ``OnnxDenoiserVJP(prior)(x, sigma, v)`` is (E[x0 | x], J_D^T v). The
model has float32 inputs ``x`` (J, C, H, W), ``sigma`` (J,) [and ``v``], outputs ``denoised`` [and ``vjp``] like x, a
symbolic batch axis, and metadata (``onnx_priors.metadata``). onnxruntime runs on bound memory: a C-contiguous float32
numpy or torch array on the host is never copied, chunks are views of it, each writes into its slice of the result. On
the host every core runs chunks of its own: for networks of this size that is faster than sharing each operator.

The CUDA path (cupy arrays bound by pointer on one stream) follows the documentation of onnxruntime and was never run on
hardware. Arrays of another kind on a GPU pass through the host.
"""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from onnx_priors._xp import array_namespace, is_cupy_array, like, require_real, to_numpy
from onnx_priors.manifest import check_borrowed_weights, resolve
from onnx_priors.metadata import model_shape
from onnx_priors.runtime import bind, checked_metadata, start_session

SIGMA_RTOL = 1e-6  # some ulp of float32: a schedule that meets sigma_max up to rounding is inside the range
CHUNK = {"cpu": 16, "cuda": 64}  # rows; on the host what the caches hold, however many threads there are


def load_prior(name_or_path, vjp=False, **options):
    """Denoiser of a shipped prior (by name) or an .onnx file (by path); with ``vjp`` its :class:`OnnxDenoiserVJP`."""
    return (OnnxDenoiserVJP if vjp else OnnxDenoiser)(name_or_path, **options)


class _OnnxPrior:
    """One onnxruntime session and the way of arrays into and out of it."""

    INPUTS: tuple[str, ...]
    OUTPUTS: tuple[str, ...]
    KIND: str

    def __init__(self, name_or_path, device="cpu", chunk=None, threads=None):
        for name, value in (("chunk", chunk), ("threads", threads)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.path = resolve(name_or_path, self.KIND).absolute()
        self.device, self.threads = str(device), int(threads or os.cpu_count() or 1)
        self.chunk = int(chunk or CHUNK["cuda" if self.device.startswith("cuda") else "cpu"])
        self._start()

    def _start(self):
        self._stream = None
        self.session = start_session(self.path, self.device, self._cuda_options)
        self._map = map if self.threads == 1 else ThreadPoolExecutor(self.threads).map
        self.metadata = checked_metadata(self.session, self.path, self.INPUTS, self.OUTPUTS)
        check_borrowed_weights(self.path, self.metadata)
        self.event_shape = self.metadata["event_shape"]
        self.sigma_min, self.sigma_max = self.metadata["sigma_min"], self.metadata["sigma_max"]
        self.phys_net = 0
        self.nonfinite_rows = ()

    def __repr__(self):
        return (f"{type(self).__name__}({self.path.name}, event_shape={self.event_shape}, "
                f"sigma=[{self.sigma_min:g}, {self.sigma_max:g}], device={self.device})")

    # A session cannot be pickled; a worker process opens the file anew and counts from zero.
    def __getstate__(self):
        return {"path": self.path, "device": self.device, "chunk": self.chunk, "threads": self.threads}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._start()

    def _cuda_options(self, device_id):
        options = {"device_id": device_id, "cudnn_conv_algo_search": "HEURISTIC"}
        if importlib.util.find_spec("cupy") is not None:
            import cupy

            if cupy.is_available():  # cupy imports without a GPU
                with cupy.cuda.Device(device_id):
                    self._stream = cupy.cuda.Stream()
                options["user_compute_stream"] = str(self._stream.ptr)
        return options

    def _call(self, sigma, *arrays):
        """The model on ``arrays`` (x, or x and v), each (J, *event); None at sigma = 0, where no model is evaluated."""
        sigma = self._checked_sigma(sigma)
        x = arrays[0]
        xp = array_namespace(*arrays)
        for name, a in zip(("x", "v"), arrays):
            require_real(a, name)
            if a.ndim == 0 or tuple(a.shape[1:]) != self.event_shape or a.shape[0] != x.shape[0]:
                raise ValueError(f"{name} must have shape (J, {', '.join(map(str, self.event_shape))}) for prior "
                                 f"{self.path.name}, got {tuple(a.shape)}")
        if sigma == 0.0:
            return None
        singles = [a if a.dtype == xp.float32 else xp.astype(a, xp.float32) for a in arrays]
        on_gpu = self._stream is not None and is_cupy_array(x) and x.device.id == self._stream.device_id
        outputs = self._run_cupy(sigma, singles) if on_gpu else self._run_host(sigma, [to_numpy(a) for a in singles])
        self.phys_net += x.shape[0]
        if not on_gpu:
            outputs = [like(out, singles[0]) for out in outputs]
        return [out if out.dtype == x.dtype else xp.astype(out, x.dtype) for out in outputs]

    def _checked_sigma(self, sigma):
        try:
            sigma = float(sigma)
        except (TypeError, ValueError) as error:
            raise ValueError(f"sigma must be one float, got {type(sigma).__name__}") from error
        low, high = self.sigma_min * (1.0 - SIGMA_RTOL), self.sigma_max * (1.0 + SIGMA_RTOL)
        if sigma != 0.0 and not low <= sigma <= high:
            raise ValueError(f"sigma must be 0 or within [{self.sigma_min:g}, {self.sigma_max:g}] for prior "
                             f"{self.path.name}, got {sigma:g}")
        return sigma

    def _run_host(self, sigma, arrays):
        J, shape = arrays[0].shape[0], model_shape(self.event_shape)
        step = min(self.chunk, J) or 1
        outputs = [np.empty((J, *self.event_shape), dtype=np.float32) for _ in self.OUTPUTS]
        levels = np.full(step, sigma, dtype=np.float32)

        def run(start):
            rows = slice(start, min(start + step, J))
            n = rows.stop - rows.start
            # ``held`` keeps every bound array alive until the run has returned.
            held = [np.ascontiguousarray(a[rows]) for a in arrays]
            io = self.session.io_binding()
            for name, a in zip(self.INPUTS, (held[0], levels[:n], *held[1:])):
                bind(io.bind_input, name, a, (n,) if name == "sigma" else (n, *shape))
            for name, out in zip(self.OUTPUTS, outputs):
                bind(io.bind_output, name, out[rows], (n, *shape))
            self.session.run_with_iobinding(io)

        for _ in self._map(run, range(0, J, step)):
            pass
        self._mark_nonfinite(np, sigma, arrays, outputs)
        return outputs

    def _run_cupy(self, sigma, arrays):
        import cupy

        J, shape = arrays[0].shape[0], model_shape(self.event_shape)
        step = min(self.chunk, J) or 1
        device_id, stream = self._stream.device_id, self._stream
        caller = cupy.cuda.get_current_stream(device_id)
        with cupy.cuda.Device(device_id), stream:
            stream.wait_event(caller.record())  # the caller's writes to x come first
            outputs = [cupy.empty((J, *self.event_shape), dtype=cupy.float32) for _ in self.OUTPUTS]
            levels = cupy.full(step, sigma, dtype=cupy.float32)
            arrays = [cupy.ascontiguousarray(a) for a in arrays]
            for start in range(0, J, step):
                rows = slice(start, min(start + step, J))
                n = rows.stop - rows.start
                io = self.session.io_binding()
                for name, a in zip(self.INPUTS, (arrays[0][rows], levels[:n], *(a[rows] for a in arrays[1:]))):
                    bind(io.bind_input, name, a, (n,) if name == "sigma" else (n, *shape), device_id)
                for name, out in zip(self.OUTPUTS, outputs):
                    bind(io.bind_output, name, out[rows], (n, *shape), device_id)
                self.session.run_with_iobinding(io)
            self._mark_nonfinite(cupy, sigma, arrays, outputs)
            stream.synchronize()
        return outputs

    def _mark_nonfinite(self, xp, sigma, inputs, outputs):
        """Make a row with any non-finite entry NaN throughout, remember it, warn of it if its inputs were finite."""

        def finite(arrays):
            J = arrays[0].shape[0]
            rows = np.ones(J, dtype=bool)
            for a in arrays:
                good = xp.isfinite(a.reshape(J, math.prod(self.event_shape))).all(axis=1)
                rows &= to_numpy(good)
            return rows

        good = finite(outputs)
        self.nonfinite_rows = tuple(np.flatnonzero(~good).tolist())
        if not self.nonfinite_rows:
            return
        for row in self.nonfinite_rows:
            for out in outputs:
                out[row] = math.nan
        broken = np.flatnonzero(finite(inputs) & ~good).tolist()
        if broken:
            warnings.warn(f"prior {self.path.name} at sigma = {sigma:g}: non-finite output for finite input in rows "
                          f"{broken}", RuntimeWarning, stacklevel=5)


class OnnxDenoiser(_OnnxPrior):
    """Denoiser D(x, sigma) = E[x0 | x0 + sigma N(0, I) = x] of an ONNX prior file; contract ``Denoise``.

    Parameters
    ----------
    name_or_path : str or path   shipped prior (``manifest.read_manifest``; its sha256 is verified), or an .onnx file
    device : str                 "cpu", "cuda" or "cuda:N"; one that is asked for and absent is an error, never replaced
    chunk : int or None          most rows per run of the model; bounds the memory, changes results by rounding at most;
                                 None: 16 on the host, 64 on CUDA
    threads : int or None        chunks that run side by side on the host, which changes nothing in the result; None:
                                 one per core

    Attributes
    ----------
    metadata, event_shape, sigma_min, sigma_max : from the file
    phys_net : int               rows the network was run on so far (physical network executions)
    nonfinite_rows : tuple       rows of the latest call that came out non-finite

    Instances can be pickled: a worker process opens the file again.
    """

    INPUTS, OUTPUTS, KIND = ("x", "sigma"), ("denoised",), "denoiser"

    def __call__(self, x, sigma):
        """E[x0 | x] for every row of x.

        Parameters
        ----------
        x : array (J, *event)    prior units, any real floating dtype (computed in float32), never modified
        sigma : float            noise level; 0 returns x itself

        Returns
        -------
        array (J, *event) of the namespace, dtype and device of x. A row with a non-finite entry is NaN throughout, so
        that members fail one by one: see ``nonfinite_rows``. If its input was finite, a RuntimeWarning names it.

        Raises ValueError for another event shape, a dtype that is not real floating, or sigma outside
        [sigma_min, sigma_max] (up to ``SIGMA_RTOL``).
        """
        outputs = self._call(sigma, x)
        return x if outputs is None else outputs[0]


class OnnxDenoiserVJP(_OnnxPrior):
    """(D(x, sigma), J_D(x)^T v) of an ONNX VJP file; contract ``DenoiseVJP``.

    Parameters and attributes as :class:`OnnxDenoiser`. The file runs the network forward again: after the D that formed
    v, a call costs a second physical forward.
    """

    INPUTS, OUTPUTS, KIND = ("x", "sigma", "v"), ("denoised", "vjp"), "vjp"

    def __call__(self, x, sigma, v):
        """(E[x0 | x], J_D(x)^T v), both like x; v (J, *event) of the namespace of x. sigma = 0 returns (x, v)."""
        outputs = self._call(sigma, x, v)
        return (x, v) if outputs is None else tuple(outputs)

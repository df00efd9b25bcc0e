"""What OnnxDenoiser adds to onnxruntime: both sides run the same batches in one test, alternating."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from onnx_priors.session import OnnxDenoiser  # noqa: E402

LIMIT = 1.03  # of the median time of a bare onnxruntime loop
PRIOR, ROWS, CHUNK, ROUNDS = "kerr-disc-64", 64, 16, 30


def test_the_denoiser_costs_no_more_than_a_bare_onnxruntime_loop(benchmark):
    denoise = OnnxDenoiser(PRIOR, chunk=CHUNK, threads=1)
    x = np.random.default_rng(0).standard_normal((ROWS, *denoise.event_shape)).astype(np.float32)
    levels = np.ones(CHUNK, dtype=np.float32)

    def bare():
        parts = [denoise.session.run(None, {"x": x[start:start + CHUNK, None], "sigma": levels})[0]
                 for start in range(0, ROWS, CHUNK)]
        return np.concatenate(parts)[:, 0]

    def seconds(call):
        start = time.process_time()  # one thread: CPU time is not disturbed by other processes
        call()
        return time.process_time() - start

    np.testing.assert_allclose(denoise(x, 1.0), bare(), rtol=0, atol=1e-6)
    times = {"denoise": [], "bare": []}
    calls = {"denoise": lambda: denoise(x, 1.0), "bare": bare}
    for i in range(ROUNDS):
        for name in sorted(calls, reverse=bool(i % 2)):  # whoever goes second finds warmer caches
            times[name].append(seconds(calls[name]))
    ratio = statistics.median(times["denoise"]) / statistics.median(times["bare"])
    benchmark.extra_info["ratio_to_bare_onnxruntime"] = ratio
    benchmark.pedantic(denoise, args=(x, 1.0), rounds=3)
    print(f"\nOnnxDenoiser / bare onnxruntime, CPU time of {ROWS} rows: {ratio:.3f}")
    assert ratio <= LIMIT

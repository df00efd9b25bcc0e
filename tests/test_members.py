"""Forward models in chunks, in processes, as programs, and failing."""

import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest

from enkg_ref import Config, EnKG, Gaussian, member_normals, solve
from enkg_ref.enkg import evaluate
from enkg_ref.run.members import Program, chunked, guarded, mapped


def square(x):
    return np.asarray(x) ** 2


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_that_chunks_give_the_rows_of_the_whole_batch_with_the_remainder(size, backend):
    x = np.arange(21.0).reshape(7, 3)
    got = chunked(lambda rows: rows * rows, size)(backend.array(x, "float32"))
    assert np.array_equal(backend.numpy(got), x**2)


def test_that_a_member_that_raises_is_a_row_of_nan_and_the_others_keep_their_values():
    seen = []

    def forward(x):
        if np.any(x < 0):
            raise RuntimeError("the solver blew up")
        return x * 2.0

    x = np.array([[1.0], [-1.0], [3.0]])
    y = guarded(forward, 1, retries=2, log=lambda row, error: seen.append((row, str(error))))(x)
    assert y[[0, 2], 0].tolist() == [2.0, 6.0] and np.isnan(y[1, 0])
    assert seen == [(1, "the solver blew up")]


def test_that_a_retry_rescues_a_member_that_fails_once():
    calls = []

    def forward(x):
        calls.append(len(x))
        if len(calls) <= 2:
            raise OSError("node lost")
        return x

    assert guarded(forward, 1, retries=1)(np.ones((1, 1))).tolist() == [[1.0]]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=get_context("spawn"))])
def test_that_rows_split_over_an_executor_come_back_in_order(pool):
    x = np.arange(10.0).reshape(5, 2)
    with pool(2) as executor:
        assert np.array_equal(mapped(square, executor, 3)(x), x**2)
        assert np.array_equal(mapped(square, executor, 9)(x), x**2)


def test_that_a_program_is_a_forward_model_and_its_failures_are_nan_rows(tmp_path):
    script = tmp_path / "simulate.py"
    script.write_text("import sys, numpy as np\nx = np.load(sys.argv[1])\n"
                      "sys.exit(3) if x[0] < 0 else np.save(sys.argv[2], 2 * x[:2])\n")
    seen = []
    forward = Program(f"{sys.executable} {script} {{input}} {{output}}", 2, log=lambda row, error: seen.append(row))
    y = forward(np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.0]]))
    assert y[0].tolist() == [2.0, 4.0] and np.all(np.isnan(y[1])) and seen == [1]
    with pytest.raises(ValueError, match="input"):
        Program("simulate", 2)


def test_that_a_program_that_runs_out_of_time_is_a_failed_member():
    forward = Program(f"{sys.executable} -c 'import time; time.sleep(9)' {{input}} {{output}}", 1, timeout=0.2)
    assert np.isnan(forward(np.ones((1, 1)))).all()


def test_that_points_that_are_not_finite_are_never_sent_to_the_forward_model(backend):
    x = np.ones((4, 2))
    x[2, 1] = np.inf

    def forward(rows):
        assert bool(backend.xp.all(backend.xp.isfinite(rows)))
        return rows * 3.0

    y = backend.numpy(evaluate(forward, backend.array(x, "float32")))
    assert np.isnan(y[2]).all() and np.array_equal(y[[0, 1, 3]], np.full((3, 2), 3.0))


def test_that_a_run_survives_a_simulator_that_fails_for_a_fifth_of_its_members():
    rng = np.random.default_rng(5)
    H = rng.standard_normal((3, 6))

    def forward(x):
        y = x @ H.T
        y[rng.random(len(y)) < 0.2] = np.nan
        return y

    run = EnKG(lambda x, sigma: x / (1.0 + sigma**2), Gaussian(H @ np.ones(6), 0.1),
               Config(particles=40, steps=20, updates=1, guidance=0.5))
    with pytest.warns(UserWarning, match="5 %"):
        state = solve(run, forward, member_normals(0, 0, 40, (6,)))
    assert np.all(np.isfinite(state.x))
    misfit = np.linalg.norm(state.x.mean(axis=0) @ H.T - H @ np.ones(6))
    assert misfit < 0.2 * np.linalg.norm(H @ np.ones(6))  # an unguided run stays at 1

"""Forward models in chunks, in processes, as programs, and failing."""

import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from enkg_ref import Gaussian, Preset, correct, member_normals, solve
from enkg_ref.extensions import survivors
from enkg_ref.protocol import evaluate
from enkg_ref.run.members import Program, chunked, guarded


def picky(x):
    if np.any(np.all(x == -1.0, axis=1)):
        raise RuntimeError("no negative fields")
    return np.tanh(x @ np.arange(9.0).reshape(3, 3))


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
    y = guarded(forward, 1, retries=2, log=lambda failures, J: seen.extend((f.row, f.error, J) for f in failures))(x)
    assert y[[0, 2], 0].tolist() == [2.0, 6.0] and np.isnan(y[1, 0])
    assert seen == [(1, "RuntimeError: the solver blew up", 3)]


def test_that_every_try_of_a_member_gets_a_fresh_copy():
    """The whole batch fails after its rows were spoiled, and the first try of every row as well."""
    calls = []

    def forward(x):
        calls.append(len(x))
        value = 2.0 * x
        x[:] = -99.0
        if len(x) > 1 or calls.count(1) % 2:
            raise OSError("node lost")
        return value

    x = np.arange(4.0)[:, None]
    assert guarded(forward, 1, retries=1)(x).tolist() == [[0.0], [2.0], [4.0], [6.0]]
    assert x.tolist() == [[0.0], [1.0], [2.0], [3.0]]


@pytest.mark.parametrize("name, answer", [
    ("whole numbers", lambda x: np.rint(x).astype(np.int64)), ("bytes", lambda x: np.rint(x).astype(np.uint8)),
    ("truth values", lambda x: x > 1), ("lists", lambda x: x.tolist()), ("half precision", lambda x: x.astype("f2")),
    ("more axes", lambda x: x[:, :, None]), ("tuples of arrays", tuple)])
def test_that_anything_that_holds_real_numbers_is_taken(name, answer):
    x = np.array([[1.0, 2.0], [3.0, 0.0]])
    y = guarded(answer, 2)(x)
    assert y.dtype == x.dtype and np.array_equal(y, (x > 1) if name == "truth values" else x)


def test_that_a_tensor_with_a_gradient_and_a_data_frame_are_taken():
    torch = pytest.importorskip("torch")
    x = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert np.array_equal(guarded(lambda x: torch.tensor(x, requires_grad=True) * 2, 2)(x), 2 * x)

    class Frame:
        """As a data frame: no array, but it can be made one."""

        def __array__(self, dtype=None, copy=None):
            return 3 * x

    assert np.array_equal(guarded(lambda _: Frame(), 2)(x), 3 * x)


@pytest.mark.parametrize("answer, words", [
    (lambda x: x * 1j, "an array of complex128"), (lambda x: None, "a NoneType"), (lambda x: "text", "a str"),
    (lambda x: [object()] * len(x), "a list"), (lambda x: (row for row in x), "a generator"),
    (lambda x: x.astype(str), "an array of <U32")])
def test_that_what_is_no_number_is_refused_in_one_sentence(answer, words):
    with pytest.raises(ValueError, match=rf"forward: got {words}, expected an array of real numbers, \(2, 2\)$"):
        guarded(answer, 2)(np.ones((2, 2)))


def test_that_an_overflow_in_half_precision_is_a_failed_member():
    with np.errstate(over="ignore"):
        y = guarded(lambda x: (x * 6e4).astype(np.float16), 1)(np.array([[1.0], [2.0]]))
    assert np.isfinite(y[0, 0]) and not np.isfinite(y[1, 0])


def test_that_a_simulator_that_leaves_the_program_is_a_failed_member():
    def forward(x):
        if np.any(x < 0):
            sys.exit("enough")
        return x

    y = guarded(forward, 1)(np.array([[1.0], [-1.0]]))
    assert y[0, 0] == 1.0 and np.isnan(y[1, 0])


def test_that_a_retry_rescues_a_member_that_fails_once():
    calls = []

    def forward(x):
        calls.append(len(x))
        if len(calls) <= 2:
            raise OSError("node lost")
        return x

    assert guarded(forward, 1, retries=1)(np.ones((1, 1))).tolist() == [[1.0]]


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, partial(ProcessPoolExecutor, mp_context=get_context("spawn"))])
@pytest.mark.parametrize("rows", [1, 2])
def test_that_members_on_an_executor_have_the_bits_of_the_same_blocks_in_turn(pool, rows):
    x, seen = np.random.default_rng(1).standard_normal((5, 3)), []
    x[3] = -1.0
    with pool(2) as executor:
        y = guarded(picky, 3, log=lambda failures, J: seen.extend(failures), executor=executor, rows=rows)(x)
    with np.errstate(invalid="ignore"):
        assert np.array_equal(y, chunked(guarded(picky, 3), rows)(x), equal_nan=True)
    assert [f.row for f in seen] == [3] and "no negative" in seen[0].error


def test_that_a_program_is_a_forward_model_and_its_failures_are_nan_rows(tmp_path):
    script = tmp_path / "simulate.py"
    script.write_text("import sys, numpy as np\nx = np.load(sys.argv[1])\n"
                      "sys.exit(3) if x[0] < 0 else np.save(sys.argv[2], 2 * x[:2])\n")
    seen = []
    forward = Program(f"{sys.executable} {script} {{input}} {{output}}", 2,
                      log=lambda failures, J: seen.extend(f.row for f in failures))
    y = forward(np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.0]]))
    assert y[0].tolist() == [2.0, 4.0] and np.all(np.isnan(y[1])) and seen == [1]
    with pytest.raises(ValueError, match="input"):
        Program("simulate", 2)


@pytest.mark.parametrize("command, sentence", [
    ('simulate "{input} {output}', "forward: got 'simulate \"{input} {output}', which is no command (No closing"),
    ("./plain.sh {input} {output}", "forward: got the program ./plain.sh, which is not executable"),
    ("no-such-program {input} {output}", "forward: got the program no-such-program, which is not found")])
def test_that_a_command_that_cannot_run_is_named(command, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.sh").write_text("exit 0")
    with pytest.raises(ValueError) as error:
        Program(command, 2)
    assert str(error.value).startswith(sentence)


def test_that_a_program_that_writes_no_real_numbers_of_the_right_size_is_a_failed_member(tmp_path):
    script = tmp_path / "simulate.py"
    script.write_text("import sys, numpy as np\nx = np.load(sys.argv[1])\n"
                      "np.save(sys.argv[2], x * 1j if x[0] > 1 else x[:1] if x[0] < 0 else x)\n")
    seen = []
    forward = Program(f"{sys.executable} {script} {{input}} {{output}}", 2,
                      log=lambda failures, J: seen.extend(failures))
    y = forward(np.array([[1.0, 2.0], [2.0, 2.0], [-1.0, 0.0]]))
    assert y[0].tolist() == [1.0, 2.0] and np.isnan(y[1:]).all()
    assert "2 numbers of type complex128" in seen[0].error and "1 numbers of type float64" in seen[1].error


def test_that_programs_side_by_side_give_the_rows_of_one_after_the_other(tmp_path):
    script = tmp_path / "simulate.py"
    script.write_text("import sys, numpy as np\nnp.save(sys.argv[2], np.sin(np.load(sys.argv[1])))\n")
    command, x = f"{sys.executable} {script} {{input}} {{output}}", np.random.default_rng(0).standard_normal((5, 3))
    with ThreadPoolExecutor(2) as executor:
        assert np.array_equal(Program(command, 3, executor=executor)(x), Program(command, 3)(x))


def test_that_a_hanging_program_dies_with_its_children(tmp_path):
    script = tmp_path / "hang.py"
    script.write_text("import subprocess, sys, time\nchild = subprocess.Popen(['sleep', '60'])\n"
                      "open(sys.argv[1] + '.pid', 'w').write(str(child.pid))\ntime.sleep(60)\n")
    seen = []
    forward = Program(f"{sys.executable} {script} {tmp_path}/x {{input}} {{output}}", 1, timeout=2.0,
                      log=lambda failures, J: seen.extend(failures))
    assert np.isnan(forward(np.ones((1, 1)))).all() and "took longer than 2 seconds" in seen[0].error
    pid = int((tmp_path / "x.pid").read_text())
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


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

    run = Preset(particles=40, steps=20).but(updates=1, guidance=0.5).method(
        lambda x, sigma: x / (1.0 + sigma**2), Gaussian(H @ np.ones(6), 0.1), survivors(correct))
    state = solve(run, forward, member_normals(0, 0, 40, (6,)))
    assert np.all(np.isfinite(state.x))
    misfit = np.linalg.norm(state.x.mean(axis=0) @ H.T - H @ np.ones(6))
    assert misfit < 0.2 * np.linalg.norm(H @ np.ones(6))  # an unguided run stays at 1

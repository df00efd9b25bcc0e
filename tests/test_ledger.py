"""The counts of a run equal their closed forms, however the calls are chunked; the parts of the wall add up."""

import time

import numpy as np
import pytest

from enkg_ref import PRESETS, Gaussian, correct, member_normals, solve
from enkg_ref.extensions import guarded
from enkg_ref.run.ledger import PARTS, Ledger, add
from enkg_ref.run.members import chunked


def dummy_denoiser(x, sigma):
    return x / (1.0 + sigma**2)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
@pytest.mark.parametrize("preset, forward, denoiser", [
    ("navier-stokes-official", 142, 1588), ("ffhq-official", 142, 1588),
    ("black-hole-official", 63, 749), ("inversebench", 158, 958)])
def test_that_the_counts_of_a_preset_run_equal_the_published_closed_forms(preset, forward, denoiser, chunk):
    J, book = 5, Ledger()
    settings = PRESETS[preset].but(particles=J)
    run = settings.method(book.denoiser(chunked(dummy_denoiser, chunk)), Gaussian(np.zeros(3), 1.0), guarded(correct))
    answer = book.forward(chunked(lambda x: np.sin(x[:, :3]) + x[:, 1:4], chunk))
    solve(run, answer, member_normals(0, 0, J, (4,)))
    counts = book.as_dict()
    assert (counts["fwd_seq"], counts["den_seq"]) == (forward, denoiser)
    assert (counts["fwd_total"], counts["den_total"], counts["phys_net"]) == (J * forward, J * denoiser, J * denoiser)
    assert settings.counts() == {"forward": forward, "denoiser": denoiser}
    assert counts["den_vjp_total"] == counts["fwd_vjp_total"] == counts["diag_fwd"] == counts["failed_fwd"] == 0


def test_that_a_failed_row_is_counted_once_and_stays_in_the_total():
    book = Ledger()

    def forward(x):
        y = x.copy()
        y[1, 0] = np.nan
        return y

    book.forward(forward)(np.ones((4, 2)))
    assert (book.counts["fwd_total"], book.counts["failed_fwd"]) == (4, 1)


def test_that_a_gradient_is_one_forward_call_and_one_forward_vjp_and_a_denoiser_vjp_its_network_run():
    book = Ledger()
    v = book.forward(lambda x: x)(np.ones((3, 2)))  # the value that gives v is the one inside the gradient
    book.forward_vjp(lambda x, v: v)(np.ones((3, 2)), v)
    book.denoiser_vjp(lambda x, sigma, v: (x, v))(np.ones((3, 2)), 1.0, np.ones((3, 2)))
    counts = book.as_dict()
    assert (counts["fwd_vjp_total"], counts["fwd_total"], counts["den_vjp_total"], counts["phys_net"]) == (3, 3, 3, 3)


def test_that_nested_clocks_are_exclusive_and_the_named_parts_explain_the_wall():
    book = Ledger()

    def updates():
        denoise = book.denoiser(lambda x: time.sleep(0.02))
        forward = book.forward(lambda x: (time.sleep(0.03), x)[1])
        for _ in range(3):
            denoise(np.ones((1, 1)))
            forward(np.ones((1, 1)))
            time.sleep(0.01)
            yield

    start = time.perf_counter()
    for _ in book.timed(updates()):
        with book.clock("record"):
            time.sleep(0.005)
    elapsed = time.perf_counter() - start
    wall = book.as_dict()["wall"]
    assert 0.98 * elapsed <= sum(wall[part] for part in PARTS) <= wall["total"]
    time.sleep(0.03)  # what no clock has seen is other: the total has a clock of its own
    assert book.as_dict()["wall"]["other"] >= 0.03
    assert wall["denoiser"] >= 0.06 and wall["forward"] >= 0.09 and wall["record"] >= 0.015
    assert wall["update"] < 0.06  # its own 0.03 s, not the 0.15 s of the calls inside
    assert abs(wall["total"] - sum(wall[part] for part in PARTS) - wall["other"]) < 1e-12


def test_that_restored_and_added_ledgers_sum_their_counts():
    one = Ledger()
    one.denoiser(dummy_denoiser)(np.ones((2, 1)), 1.0)
    two = Ledger()
    two.denoiser(dummy_denoiser)(np.ones((3, 1)), 1.0)  # to set the method up: it was counted the first time
    two.restore(one.as_dict())
    two.denoiser(dummy_denoiser)(np.ones((5, 1)), 1.0)
    assert (two.counts["den_total"], two.counts["den_seq"]) == (7, 2)
    assert add([one.as_dict(), two.as_dict()])["den_total"] == 9

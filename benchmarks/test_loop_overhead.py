"""What the loop costs beside denoiser and forward model: pytest -s benchmarks/test_loop_overhead.py"""

import dataclasses

from enkg_ref import Closures, Config, EnKG, guided_window, iterate, member_normals
from enkg_ref.run.ledger import Ledger
from onnx_priors.session import OnnxDenoiser
from problems.black_hole import m87


def test_that_the_loop_takes_at_most_two_per_cent_of_the_wall_at_128_particles():
    problem, book = m87(), Ledger()
    data = problem.observation
    config = Config(particles=128, steps=40, updates=1, window=guided_window(40, 0.1, 0.1))
    config = dataclasses.replace(config, window=(14, 19))  # six levels of the middle: the share is that of a whole run
    denoise = book.denoiser(OnnxDenoiser("kerr-disc-64", threads=1))
    run = EnKG(denoise, Closures(data.y, data.noise, data.angular), config)
    state = run.init(member_normals(0, 0, 128, problem.event_shape))
    book.__init__()  # count from the first guided level on
    list(book.timed(iterate(run, book.forward(problem.forward), state)))
    wall = book.as_dict()["wall"]
    share = 1.0 - (wall["denoiser"] + wall["forward"]) / wall["total"]
    print(f"\nloop overhead: {100 * share:.2f} % of the wall ({wall})")
    assert share <= 0.02

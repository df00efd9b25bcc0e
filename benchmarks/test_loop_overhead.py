"""What the loop costs beside denoiser and forward model: pytest -s benchmarks/test_loop_overhead.py"""

from enkg_ref import Closures, Preset, correct, iterate, member_normals
from enkg_ref.diagnostics import Memory, observe
from enkg_ref.extensions import finite, guarded, lowrank, plausible, survivors
from enkg_ref.run.ledger import Ledger
from onnx_priors.session import OnnxDenoiser
from problems.black_hole import m87


def test_that_the_loop_takes_at_most_two_per_cent_of_the_wall_at_128_particles():
    problem, book = m87(), Ledger()
    data = problem.observation
    likelihood = Closures(data.y, data.noise, data.angular)
    denoise = finite(book.denoiser(OnnxDenoiser("kerr-disc-64", threads=1)))
    form = lowrank if 128 > 2 * likelihood.size else correct
    # six levels of the middle: the share is that of a whole run; the safe set and the history, as `solve` composes them
    run = Preset(128, 40, (14, 19)).but(updates=1).method(denoise, likelihood, survivors(guarded(form)))
    state, memory = run.init(member_normals(0, 0, 128, problem.event_shape)), Memory()
    book.__init__()  # count from the first guided level on
    for _, info in book.timed(iterate(run, plausible(book.forward(problem.forward), likelihood), state)):
        memory, _ = observe(memory, info, likelihood)
    wall = book.as_dict()["wall"]
    share = 1.0 - (wall["denoiser"] + wall["forward"]) / wall["total"]
    print(f"\nloop overhead: {100 * share:.2f} % of the wall ({wall})")
    assert share <= 0.02

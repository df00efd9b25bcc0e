"""The paper's configuration at 256 x 256 with a network of random weights in the place of the FFHQ prior: shapes only.

What a user does who has the network and pictures: problems/IMAGING.md.
"""

import numpy as np
import pytest

import problems
from enkg_ref.likelihood import Gaussian
from enkg_ref.methods import METHODS, Item
from enkg_ref.presets import PRESETS

pytestmark = pytest.mark.slow  # the export takes its time

SIZES = {"inpainting": (3, 256, 256), "super-resolution": (3, 64, 64), "deblurring": (3, 256, 256),
         "phase-retrieval": (3, 384, 384)}


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A DDPM network of the outer form of DPS's for FFHQ: (z, t) -> noise and learned variance, 6 channels."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from onnx_priors.importers import import_prior
    from onnx_priors.session import load_prior

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.Conv2d(8, 6 * 64, 1)
            self.time = torch.nn.Linear(1, 8)

        def forward(self, z, t):
            h = torch.nn.functional.silu(self.first(z) + self.time(t[:, None] / 1000)[:, :, None, None])
            return torch.nn.functional.pixel_shuffle(self.last(h), 8)

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("prior") / "ffhq.onnx"
    import_prior(Network(), "epsilon", path, {"event_shape": (3, 256, 256), "sigma_min": 0.002}, jacobian=False)
    return load_prior(path, threads=1)


@pytest.mark.parametrize("name", SIZES)
def test_that_the_papers_configuration_runs_at_its_size(name, prior, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image.fromarray(pixels).save(tmp_path / "face.png")
    problem = problems.build(name, size=256, image=str(tmp_path / "face.png"))
    assert problem.event_shape == prior.event_shape == (3, 256, 256)
    assert problem.observation.y.shape == (np.prod(SIZES[name]),) and problem.prior is None
    item = Item(problem, Gaussian(problem.observation.y, problem.observation.noise), prior, dtype="float32",
                sigma_range=(prior.sigma_min, prior.sigma_max))
    plan = METHODS["enkg"].plan(item, None, 0.0, 0, {"preset": "ffhq-official"})
    official = PRESETS["ffhq-official"]
    assert (plan.rows, plan.settings["steps"], plan.settings["updates"]) == (1024, 80, 2)
    assert plan.settings["guidance"] == 2.0 and plan.settings["window"] == list(official.window)
    few = METHODS["enkg"].plan(item, None, 0.0, 0, {"preset": "ffhq-official", "particles": 2})
    state = few.method.init(np.random.default_rng(0).standard_normal((2, 3, 256, 256)).astype("float32"))
    moved, _ = few.method.tell(state, problem.forward(few.method.ask(state)))
    assert moved.x.shape == state.x.shape and not np.array_equal(moved.x, state.x)

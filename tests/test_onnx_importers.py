"""Other people's diffusion models as denoisers: networks built from the closed form of a Gaussian give the exact D."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from onnx_priors import importers  # noqa: E402
from onnx_priors.gaussian import GaussianPrior  # noqa: E402
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP  # noqa: E402

SHAPE = (2, 3, 4)
SIGMAS = (0.02, 0.1, 0.7, 3.0, 40.0)


def gaussian():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    return GaussianPrior(rng.standard_normal(SHAPE), np.geomspace(4.0, 1e-3, 24), basis.reshape(24, *SHAPE))


PRIOR = gaussian()


def exact(x, sigma):
    """D of the Gaussian for x (J, *SHAPE) and sigma (J,), torch float64."""
    return torch.stack([PRIOR.denoise(row[None], float(s))[0] for row, s in zip(x, sigma)])


class Network(torch.nn.Module):
    """A function of two tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z, t):
        return self.function(z, t)


def column(a):
    return a.reshape(-1, 1, 1, 1)


def ddpm_network(a, predicts):
    """What a perfectly trained DDPM says at (z, t), for levels a_t; between them ln sigma is linear in t."""
    log_sigma = 0.5 * np.log((1 - a) / a)

    def function(z, t):
        sigma = torch.tensor(np.exp(np.interp(t.numpy(), np.arange(len(a)), log_sigma)))
        level = column(1 / (1 + sigma**2))  # a at sigma
        x0 = exact(z / torch.sqrt(level), sigma)
        n = (z - torch.sqrt(level) * x0) / torch.sqrt(1 - level)
        return {"epsilon": n, "sample": x0, "v": torch.sqrt(level) * n - torch.sqrt(1 - level) * x0}[predicts]

    return Network(function)


def flow_network(from_noise):
    def function(z, t):
        level = 1 - t if from_noise else t  # of noise in z
        x0 = exact(z / column(1 - level), level / (1 - level))
        n = (z - column(1 - level) * x0) / column(level)
        return x0 - n if from_noise else n - x0

    return Network(function)


def edm_network(s_d=0.5):
    def function(z, c_noise):
        sigma = torch.exp(4 * c_noise)
        s = column(sigma)
        x = z * torch.sqrt(s**2 + s_d**2)
        return (exact(x, sigma) - s_d**2 / (s**2 + s_d**2) * x) * torch.sqrt(s**2 + s_d**2) / (s * s_d)

    return Network(function)


def adapters():
    linear, cosine = importers.alphas_cumprod("linear"), importers.alphas_cumprod("cosine")
    yield "edm", importers.adapt(Network(exact), "edm")
    yield "edm network", importers.adapt(edm_network(), "edm-network")
    for kind in ("epsilon", "v", "sample"):
        yield kind, importers.adapt(ddpm_network(linear, kind), kind)
    yield "v cosine", importers.adapt(ddpm_network(cosine, "v"), "v", "cosine")
    yield "flow", importers.adapt(flow_network(False), "flow")
    yield "flow from noise", importers.adapt(flow_network(True), "flow-from-noise")


@pytest.mark.parametrize("name, module", list(adapters()))
def test_a_network_built_from_the_closed_form_gives_the_exact_denoiser(name, module):
    rng = np.random.default_rng(1)
    low, high = module.sigma_range
    sigma = torch.tensor([min(max(s, low), high) for s in SIGMAS])
    x = torch.tensor(PRIOR.sample(rng, len(SIGMAS)) + sigma.numpy()[:, None, None, None] * rng.standard_normal(
        (len(SIGMAS), *SHAPE)))
    np.testing.assert_allclose(module(x, sigma), exact(x, sigma), atol=1e-5)


def test_the_time_of_a_noise_level_is_the_index_of_that_level_and_linear_in_its_logarithm_between():
    a = importers.alphas_cumprod("linear")
    module = importers.Ddpm(Network(None), a)
    t = torch.tensor([0.0, 1.0, 250.25, 998.5, 999.0])
    sigma = torch.exp(torch.tensor(np.interp(t, np.arange(1000), 0.5 * np.log((1 - a) / a))))
    np.testing.assert_allclose(module.time(sigma), t, atol=1e-6)
    np.testing.assert_allclose(module.sigma_range, [sigma[0], sigma[-1]])


def test_the_common_schedules_have_their_published_ends():
    linear, latent, cosine = map(importers.alphas_cumprod, importers.SCHEDULES)
    assert linear[0] == pytest.approx(1 - 1e-4) and linear[-1] == pytest.approx(4.04e-5, rel=1e-2)
    assert latent[0] == pytest.approx(1 - 0.00085) and latent[-1] == pytest.approx(0.0047, rel=1e-2)
    middle = (np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    assert cosine[499] == pytest.approx(middle)


class Small(torch.nn.Module):
    """A convolution that knows its level: enough to go through the export."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, z, t):
        return self.last(torch.nn.functional.silu(self.first(z) * (1 + 0.01 * t.reshape(-1, 1, 1, 1))))


def small_network():
    torch.manual_seed(0)
    return Small()


@pytest.mark.slow
def test_an_imported_file_computes_what_the_adapter_computes_its_jacobian_too(tmp_path):
    pytest.importorskip("onnxscript")
    made = importers.import_prior(f"{__name__}:small_network", "epsilon", tmp_path / "p.onnx",
                                  {"event_shape": (2, 6, 8), "scale": 0.5, "shift": 0.5, "sigma_max": 30.0})
    denoise, pull = OnnxDenoiser(made.path, threads=1), OnnxDenoiserVJP(made.vjp, threads=1)
    assert (denoise.metadata["scale"], denoise.sigma_max) == (0.5, 30.0) and made.note == ""
    module = importers.adapt(small_network(), "epsilon")
    x, v = np.random.default_rng(2).standard_normal((2, 3, 2, 6, 8)).astype("float32")
    for sigma in (0.05, 2.0):
        at = torch.tensor(x, requires_grad=True)
        want = module(at, torch.full((3,), sigma))
        (pulled,) = torch.autograd.grad(want, at, torch.tensor(v))
        got = denoise(x, sigma), *pull(x, sigma, v)
        for out, expected in zip(got, (want.detach(), want.detach(), pulled)):
            np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("change, message", [
    ({"kind": "rectified"}, "kind: got 'rectified', expected one of edm"),
    ({"source": "nowhere"}, "source: got 'nowhere', expected package.module:function"),
    ({"source": "no_such_package:f"}, "source: got 'no_such_package:f', which fails"),
    ({"source": "math:pi"}, "source: got 'math:pi', which fails"),
    ({"source": "builtins:dict"}, "source: got dict from 'builtins:dict', expected a torch module"),
    ({"out": "p.npz"}, "out: got p.npz, expected a file name that ends in .onnx"),
    ({"metadata": {}}, "event_shape: got nothing, expected the shape"),
    ({"schedule": "sigmoid"}, "schedule: got 'sigmoid', expected one of linear"),
])
def test_what_cannot_be_imported_is_refused_in_one_line(change, message):
    given = {"source": Small(), "kind": "epsilon", "out": "p.onnx",
             "metadata": {"event_shape": (2, 6, 8)}} | change
    with pytest.raises(ValueError, match=message) as error:
        importers.import_prior(**given)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize("scheduler, settings", [
    ("DDPMScheduler", {}), ("DDIMScheduler", {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}),
    ("EulerDiscreteScheduler", {"prediction_type": "sample"}), ("FlowMatchEulerDiscreteScheduler", {})])
def test_schedulers_of_diffusers_say_what_the_network_predicts(scheduler, settings):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, scheduler)(**settings)

    flow = "Flow" in type(scheduler).__name__
    predicts = {"v_prediction": "v"}.get(settings.get("prediction_type"), settings.get("prediction_type", "epsilon"))
    network = flow_network(False) if flow else ddpm_network(scheduler.alphas_cumprod.double().numpy(), predicts)
    unet = Network(None)
    unet.forward = lambda z, t, return_dict: (network(z, t / 1000 if flow else t), return_dict)
    module = importers.from_diffusers(unet, scheduler)
    sigma = torch.tensor(SIGMAS)
    x = torch.tensor(PRIOR.sample(np.random.default_rng(3), 5)) + column(sigma) * torch.randn(5, *SHAPE).double()
    np.testing.assert_allclose(module(x, sigma.double()), exact(x, sigma.double()), atol=1e-5)


@pytest.mark.slow
def test_a_saved_unet_of_diffusers_with_random_weights_becomes_a_prior(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8,
                                 block_out_channels=(16, 24), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                                 up_block_types=("AttnUpBlock2D", "UpBlock2D")).eval()
    scheduler = diffusers.DDPMScheduler()
    unet.save_pretrained(tmp_path / "model")
    scheduler.save_pretrained(tmp_path / "model")
    made = importers.import_prior(tmp_path / "model", "diffusers", tmp_path / "p.onnx", jacobian=False)
    assert made.event_shape == (1, 16, 16)
    denoise = OnnxDenoiser(made.path, threads=1)
    x = np.random.default_rng(4).standard_normal((3, 1, 16, 16)).astype("float32")
    for t in (10, 600):  # at the levels of the scheduler its own prediction of x0 is D
        a = float(scheduler.alphas_cumprod[t])
        sigma = np.sqrt((1 - a) / a)
        z = torch.tensor(x * np.sqrt(a), dtype=torch.float32)
        with torch.no_grad():
            n = unet(z, torch.full((3,), t)).sample
        np.testing.assert_allclose(denoise(x, sigma), (z - np.sqrt(1 - a) * n) / np.sqrt(a), atol=1e-4 * max(1, sigma))

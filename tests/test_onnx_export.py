"""Torch denoisers and their pullbacks as ONNX: equality with torch and with closed forms, refusal of what deviates."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx_priors.export import attach_metadata, export_denoiser, export_vjp  # noqa: E402
from onnx_priors.gaussian import GaussianPrior  # noqa: E402
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP  # noqa: E402

SIZE = 16
FACTS = {"sigma_min": 0.002, "sigma_max": 80.0, "units": "none", "data": "none, random weights"}
BATCHES = (1, 2, 5, 16)  # none is the example's


def network():
    """A small convolutional denoiser: stride 2, expand + reshape, GroupNorm, circular padding."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    nn, F = torch.nn, torch.nn.functional

    class Network(nn.Module):
        def __init__(self, width=8):
            super().__init__()
            self.first = nn.Conv2d(2, width, 3, padding=1)
            self.norm = nn.GroupNorm(4, width)
            self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.middle = nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")
            self.last = nn.Conv2d(width, 1, 3, padding=1)
            self.dropout = nn.Dropout(0.5)  # a network left in training mode would be noticed

        def forward(self, x, sigma):
            s = sigma[:, None, None, None]
            r = torch.sqrt(s * s + 0.25)
            h = self.first(torch.cat([x / r, (torch.log(s) / 4.0).expand(x.shape)], 1))
            h = F.silu(self.down(self.dropout(F.silu(self.norm(h)))))
            n, c, height, width = h.shape
            h = h[:, :, :, None, :, None].expand(n, c, height, 2, width, 2).reshape(n, c, 2 * height, 2 * width)
            return 0.25 / (r * r) * x + 0.5 * s / r * self.last(F.silu(self.middle(h)))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Network().train()


def linear_module(event_shape, C, mean):
    """(O1) as a torch module with matrix products, in the (J, C, H, W) of the contract."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    values, vectors = np.linalg.eigh(C)

    class Wiener(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (("values", values), ("vectors", vectors), ("mean", np.reshape(mean, -1))):
                self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

        def forward(self, x, sigma):
            z = (x.reshape(-1, self.mean.shape[0]) - self.mean) @ self.vectors
            gain = self.values / (self.values + sigma[:, None] ** 2)
            return (self.mean + (gain * z) @ self.vectors.T).reshape(-1, *((1,) * (3 - len(event_shape)) + event_shape))

    return Wiener()


def inputs(J, seed=0):
    rng = np.random.default_rng(seed)
    shape = (J, SIZE, SIZE)
    return rng.standard_normal(shape).astype(np.float32), rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(module, denoiser file, VJP file, reported deviations)."""
    folder, module = tmp_path_factory.mktemp("export"), network()
    deviations = (export_denoiser(module, folder / "d.onnx", (SIZE, SIZE), FACTS),
                  export_vjp(module, folder / "v.onnx", (SIZE, SIZE), FACTS))
    return module, folder / "d.onnx", folder / "v.onnx", deviations


@pytest.mark.parametrize("sigma", [0.002, 0.3, 5.0, 80.0])
@pytest.mark.parametrize("J", BATCHES)
def test_exported_files_compute_what_torch_and_autograd_compute(exported, J, sigma):
    import torch

    module, d_file, v_file, _ = exported
    x, v = inputs(J)
    x = x * (1.0 + sigma)
    z = torch.from_numpy(x)[:, None].requires_grad_(True)
    denoised = module(z, torch.full((J,), sigma))
    (vjp,) = torch.autograd.grad(denoised, z, torch.from_numpy(v)[:, None])
    got = OnnxDenoiserVJP(v_file)(x, sigma, v)
    # Both sides are float32 networks of O(10) layers; the scale is that of D, x and v.
    np.testing.assert_allclose(OnnxDenoiser(d_file)(x, sigma), denoised.detach()[:, 0], rtol=0, atol=5e-6)
    np.testing.assert_allclose(got[0], denoised.detach()[:, 0], rtol=0, atol=5e-6)
    np.testing.assert_allclose(got[1], vjp[:, 0], rtol=0, atol=5e-6)


def test_the_vjp_file_holds_the_transpose_and_not_the_jacobian(exported):
    # A convolutional network has no symmetric Jacobian: u.(J^T v) = v.(J u) fails if J and J^T are confused.
    _, d_file, v_file, _ = exported
    denoise, denoise_vjp = OnnxDenoiser(d_file), OnnxDenoiserVJP(v_file)
    (x, v), (u, _) = inputs(6), inputs(6, seed=1)
    h = 1e-2
    J_u = (denoise(x + h * u, 0.5).astype(np.float64) - denoise(x - h * u, 0.5)) / (2 * h)
    right = np.sum(u * denoise_vjp(x, 0.5, v)[1], axis=(1, 2))
    confused = np.sum(v * denoise_vjp(x, 0.5, u)[1], axis=(1, 2))
    left = np.sum(v * J_u, axis=(1, 2))
    scale = np.max(np.abs(right))
    np.testing.assert_allclose(left, right, rtol=0, atol=2e-3 * scale)
    assert np.max(np.abs(left - confused)) > 2e-2 * scale


def test_export_reports_the_deviation_it_measured(exported):
    assert all(0.0 < deviation < 5e-6 for deviation in exported[3])


def test_files_are_self_contained_with_standard_operators_of_opset_20(exported):
    for path in exported[1:3]:
        model = onnx.load(path)
        assert [(i.domain, i.version) for i in model.opset_import if i.domain == ""] == [("", 20)]
        assert {node.domain for node in model.graph.node} == {""} and not model.functions
        assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert [p.name for p in path.parent.iterdir() if p.name.startswith(path.stem)] == [path.name]


def test_metadata_of_an_export_come_back(exported):
    for prior in (OnnxDenoiser(exported[1]), OnnxDenoiserVJP(exported[2])):
        assert prior.event_shape == (SIZE, SIZE)
        assert {key: prior.metadata[key] for key in FACTS} == FACTS


@pytest.mark.parametrize("event", [(6,), (2, 3, 4)])
def test_an_exact_denoiser_through_the_export_gives_the_closed_form_and_its_jacobian(event, tmp_path):
    rng = np.random.default_rng(2)
    d = math.prod(event)
    A = rng.standard_normal((d, d))
    C, mean = A @ A.T / d, rng.standard_normal(event)
    module, prior = linear_module(event, C, mean), GaussianPrior.from_covariance(mean, C)
    export_vjp(module, tmp_path / "v.onnx", event, FACTS)
    denoise_vjp = OnnxDenoiserVJP(tmp_path / "v.onnx")
    for sigma in (0.05, 1.0, 20.0):
        x, v = (rng.standard_normal((5, *event)) for _ in range(2))
        for out, want in zip(denoise_vjp(x, sigma, v), prior.denoise_vjp(x, sigma, v)):
            np.testing.assert_allclose(out, want, rtol=0, atol=5e-6)


def test_a_module_that_does_not_compute_the_same_afterwards_is_refused_and_nothing_is_written(tmp_path):
    torch = pytest.importorskip("torch")

    class Moody(torch.nn.Module):
        calls = 0

        def forward(self, x, sigma):
            self.calls += 1  # becomes a constant of the graph
            return x * float(self.calls) / (1.0 + sigma[:, None, None, None])

    (tmp_path / "d.onnx").write_bytes(b"an older file")
    with pytest.raises(ValueError, match=r"d.onnx refused: denoised deviates from the eager module") as error:
        export_denoiser(Moody(), tmp_path / "d.onnx", (SIZE, SIZE), FACTS)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["d.onnx"]
    assert (tmp_path / "d.onnx").read_bytes() == b"an older file"


def test_export_without_a_noise_range_is_refused_before_anything_is_traced(tmp_path):
    torch = pytest.importorskip("torch")
    with pytest.raises(ValueError, match="lacks sigma_min, sigma_max"):
        export_denoiser(torch.nn.Identity(), tmp_path / "d.onnx", (SIZE, SIZE), {"units": "none"})


# --- metadata for a foreign file: no torch -------------------------------------------------------------------------


def foreign(path, output="denoised"):
    """Somebody's model denoised = x/2 without any metadata but a note of its own."""
    half = onnx.numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half")
    port = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["x", "half"], [output])], "theirs",
        [port("x", 1, ["batch", 1, 8, 8]), port("sigma", 1, ["batch"])], [port(output, 1, ["batch", 1, 8, 8])], [half])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.helper.set_model_props(model, {"author": "somebody"})
    onnx.save_model(model, path)
    return path


def test_metadata_make_a_foreign_file_a_prior(tmp_path):
    attach_metadata(foreign(tmp_path / "theirs.onnx"), tmp_path / "prior.onnx", event_shape=(8, 8), sigma_min=0.01,
                    sigma_max=50.0, units="Jy")
    prior = OnnxDenoiser(tmp_path / "prior.onnx")
    x = np.random.default_rng(0).standard_normal((3, 8, 8))
    np.testing.assert_allclose(prior(x, 1.0), x / 2, atol=1e-7)
    assert (prior.sigma_min, prior.sigma_max, prior.metadata["units"]) == (0.01, 50.0, "Jy")
    assert prior.metadata["author"] == "somebody"


def test_a_foreign_file_that_breaks_the_contract_is_refused_and_nothing_is_written(tmp_path):
    path, facts = foreign(tmp_path / "theirs.onnx", output="noise"), {**FACTS, "event_shape": (8, 8)}
    with pytest.raises(ValueError, match=r"outputs \['noise'\], expected \['denoised'\]"):
        attach_metadata(path, tmp_path / "prior.onnx", **facts)
    with pytest.raises(FileNotFoundError, match="path_in"):
        attach_metadata(tmp_path / "none.onnx", tmp_path / "prior.onnx", **facts)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.onnx"]

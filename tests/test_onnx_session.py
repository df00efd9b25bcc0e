"""ONNX priors behind a plain callable: contract, memory, chunks, back-ends, failing rows, worker processes."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx_priors import manifest, metadata, runtime, session, shipping  # noqa: E402
from onnx_priors.gaussian import GaussianPrior  # noqa: E402
from onnx_priors.metadata import encode_metadata  # noqa: E402
from onnx_priors.mixture import MixturePrior  # noqa: E402
from onnx_priors.session import OnnxDenoiser, OnnxDenoiserVJP, load_prior  # noqa: E402

EVENT = (4, 6)
RANGE = {"event_shape": EVENT, "sigma_min": 0.002, "sigma_max": 80.0}
FACTS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "units": "K", "normalisation": "0: 280 K, 1: 300 K",
         "data": "drawn from N(0, 1), 12 images", "data_licence": "CC0", "weight_licence": "MIT",
         "training_command": "none", "versions": {"onnx": onnx.__version__}}


def mixture():
    rng = np.random.default_rng(0)
    return MixturePrior(np.ones(5), rng.standard_normal((5, *EVENT)), np.array([0.3, 0.1, 0.2, 0.4, 0.1]) ** 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("priors")
    mixture().to_onnx(folder / "mixture.onnx", FACTS)
    mixture().to_onnx(folder / "mixture-vjp.onnx", FACTS, vjp=True)
    return folder


@pytest.fixture
def denoise(files):
    return OnnxDenoiser(files / "mixture.onnx")


@pytest.fixture
def denoise_vjp(files):
    return OnnxDenoiserVJP(files / "mixture-vjp.onnx")


def ensemble(J, sigma=1.0, seed=0):
    rng = np.random.default_rng(seed)
    x0 = mixture().sample(rng, J)
    return (x0 + sigma * rng.standard_normal(x0.shape)).astype(np.float32)


def write_model(path, operator="Identity", *, metadata=RANGE, drop=(), element=onnx.TensorProto.FLOAT, batch="n",
                **change):
    """A model denoised = operator(x), parts of whose contract may be broken."""
    names = {"x": "x", "sigma": "sigma", "denoised": "denoised", **change.get("names", {})}
    shapes = {"x": [batch, 1, *EVENT], "sigma": [batch], "denoised": [batch, 1, *EVENT], **change.get("shapes", {})}
    nodes = [onnx.helper.make_node(operator, [names["x"]], [names["denoised"]])]
    ports = {key: onnx.helper.make_tensor_value_info(names[key], element, shapes[key]) for key in names}
    inputs = [ports[key] for key in ("x", "sigma") if key not in drop]
    graph = onnx.helper.make_graph(nodes, "model", inputs, [ports["denoised"]])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    if metadata is not None:
        onnx.helper.set_model_props(model, encode_metadata(metadata))
    path.write_bytes(model.SerializeToString())
    return path


# --- results and chunks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("J", [1, 2, 7, 64])
def test_the_size_of_chunks_and_of_the_ensemble_does_not_change_a_row(files, J):
    x, v = ensemble(64), ensemble(64, seed=1)
    wanted = mixture().denoise_vjp(x.astype(np.float64), 1.0, v.astype(np.float64))
    for chunk in (1, 3, J, 1000):
        D = OnnxDenoiser(files / "mixture.onnx", chunk=chunk)(x[:J], 1.0)
        pair = OnnxDenoiserVJP(files / "mixture-vjp.onnx", chunk=chunk)(x[:J], 1.0, v[:J])
        for out, want in zip((D, *pair), (wanted[0], *wanted)):
            np.testing.assert_allclose(out, want[:J], rtol=0, atol=1e-6)


def test_an_empty_ensemble_gives_an_empty_ensemble(denoise):
    assert denoise(np.zeros((0, *EVENT), dtype=np.float32), 1.0).shape == (0, *EVENT)
    assert denoise.phys_net == 0


@pytest.mark.parametrize("event", [(5,), (4, 6), (2, 4, 6)])
def test_events_of_one_two_and_three_axes_travel_as_channels_height_width(event, tmp_path):
    prior = GaussianPrior(np.random.default_rng(0).standard_normal(event), 0.3)
    prior.to_onnx(tmp_path / "p.onnx")
    denoise = OnnxDenoiser(tmp_path / "p.onnx")
    stored = denoise.session.get_inputs()[0].shape[1:]
    assert tuple(stored) == {1: (1, 1, 5), 2: (1, 4, 6), 3: (2, 4, 6)}[len(event)]
    x = np.random.default_rng(1).standard_normal((3, *event))
    np.testing.assert_allclose(denoise(x, 0.5), prior.denoise(x, 0.5), atol=1e-6)


def test_vjp_is_the_adjoint_of_the_directional_derivative(denoise, denoise_vjp):
    x, v, u = ensemble(8), ensemble(8, seed=1), ensemble(8, seed=2)
    h = 5e-3
    directional = (denoise(x + h * u, 1.0).astype(np.float64) - denoise(x - h * u, 1.0)) / (2 * h)
    vjp = denoise_vjp(x, 1.0, v)[1]
    left, right = (np.sum(a * b, axis=(1, 2)) for a, b in ((v, directional), (u, vjp)))
    np.testing.assert_allclose(left, right, rtol=2e-3, atol=2e-3 * np.max(np.abs(right)))


def test_noise_level_zero_returns_x_without_running_the_model(denoise, denoise_vjp):
    x = ensemble(3)
    assert denoise(x, 0.0) is x
    assert denoise_vjp(x, 0, x) == (x, x)
    assert denoise.phys_net == denoise_vjp.phys_net == 0


def test_physical_network_executions_are_counted_in_rows_whatever_the_chunks(files):
    for chunk in (3, 64):
        denoise = OnnxDenoiser(files / "mixture.onnx", chunk=chunk)
        denoise(ensemble(7), 1.0)
        denoise(ensemble(2), 2.0)
        assert denoise.phys_net == 9


# --- arrays of every kind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_backend_gets_its_own_kind_of_array_back(backend, dtype, denoise, denoise_vjp):
    from array_api_compat import array_namespace, device

    if dtype == "float64" and not backend.float64:
        pytest.skip("no float64 on this device")
    x_host, v_host = ensemble(5).astype(dtype), ensemble(5, seed=1).astype(dtype)
    wanted = denoise_vjp(x_host.astype(np.float32), 0.7, v_host.astype(np.float32))
    x, v = backend.array(x_host, dtype), backend.array(v_host, dtype)
    for out, want in zip((denoise(x, np.float64(0.7)), *denoise_vjp(x, 0.7, v)), (wanted[0], *wanted)):
        assert array_namespace(out) is array_namespace(x)
        assert out.dtype == x.dtype and device(out) == device(x)
        np.testing.assert_allclose(backend.numpy(out), want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(backend.numpy(x), x_host)
    np.testing.assert_array_equal(backend.numpy(v), v_host)


def test_layouts_and_dtypes_that_cannot_be_bound_give_the_same_result(denoise):
    x = ensemble(6)
    wanted = denoise(x, 0.7)
    strided = np.repeat(x, 2, axis=0)[::2]
    fortran = np.asfortranarray(x)
    transposed = np.ascontiguousarray(np.swapaxes(x, 1, 2)).swapaxes(1, 2)
    broadcast = np.broadcast_to(x[:1], x.shape)
    swapped = x.astype(">f4")
    for y in (strided, fortran, transposed, swapped, x.astype(np.float64), x[::-1]):
        want = wanted[::-1] if np.array_equal(y, x[::-1]) else wanted
        before = y.copy()
        np.testing.assert_allclose(denoise(y, 0.7), want, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(y, before)
    np.testing.assert_allclose(denoise(broadcast, 0.7), np.repeat(wanted[:1], 6, axis=0), rtol=0, atol=1e-6)
    half = denoise(x.astype(np.float16), 0.7)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, wanted, atol=3e-2)  # ten bits, and x/(t^2 + sigma^2) of rounded x


def test_torch_tensors_of_any_layout_and_with_gradients_are_accepted(denoise):
    torch = pytest.importorskip("torch")
    x = ensemble(6)
    wanted = denoise(x, 0.7)
    y = torch.from_numpy(np.ascontiguousarray(np.swapaxes(x, 1, 2))).swapaxes(1, 2).requires_grad_(True)
    out = denoise(y, 0.7)
    assert not out.requires_grad
    np.testing.assert_allclose(out.numpy(), wanted, rtol=0, atol=1e-6)
    assert denoise(torch.from_numpy(x).to(torch.bfloat16), 0.7).dtype == torch.bfloat16


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.fixture
def spy(monkeypatch):
    """Every array whose memory is bound, with the name of its port."""
    bound, bind = [], session.bind

    def record(method, name, a, *rest):
        bound.append((name, a))
        return bind(method, name, a, *rest)

    monkeypatch.setattr(session, "bind", record)
    return bound


def test_contiguous_float32_arrays_are_bound_in_place_chunk_by_chunk(files, spy):
    denoise_vjp = OnnxDenoiserVJP(files / "mixture-vjp.onnx", chunk=3)
    whole = ensemble(9)
    x, v = whole[1:8], ensemble(7, seed=1)
    out = dict(zip(("denoised", "vjp"), denoise_vjp(x, 1.0, v)))
    sources = {"x": x, "v": v, **out}
    for name, source in sources.items():
        pointers = [a.ctypes.data for port, a in spy if port == name]
        assert pointers == [source[start:].ctypes.data for start in (0, 3, 6)], name
        assert [len(a) for port, a in spy if port == name] == [3, 3, 1]
    assert all(a.base is None for a in out.values()), "the result owns its memory"


def test_torch_tensors_share_memory_on_the_way_in_and_out(denoise, spy):
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(ensemble(4))
    out = denoise(x, 1.0)
    assert [a.ctypes.data for name, a in spy if name != "sigma"] == [x.data_ptr(), out.data_ptr()]


def test_read_only_arrays_are_bound_in_place_and_stay_as_they_are(denoise, spy):
    x = ensemble(4)
    x.flags.writeable = False
    before = x.copy()
    denoise(x, 1.0)
    assert dict(spy)["x"].ctypes.data == x.ctypes.data
    np.testing.assert_array_equal(x, before)


def test_no_pointer_of_a_non_contiguous_or_double_array_is_ever_bound(denoise, spy):
    x = ensemble(6)
    for y in (x[::2], np.asfortranarray(x), x[:, ::-1], x.astype(np.float64), x[:, :, None, ::1][:, :, 0]):
        denoise(y, 1.0)
    assert spy and all(a.flags.c_contiguous and a.dtype == np.float32 for _, a in spy)


def test_binding_itself_refuses_what_it_would_read_wrongly(denoise):
    io = denoise.session.io_binding()
    for a in (ensemble(6)[::2], ensemble(6).astype(np.float64)):
        with pytest.raises(AssertionError, match="C-contiguous float32"):
            session.bind(io.bind_input, "x", a, (3, 1, *EVENT))


def test_neighbours_of_a_slice_are_neither_read_nor_written(files):
    denoise = OnnxDenoiser(files / "mixture.onnx", chunk=2)
    whole = ensemble(8)
    wanted = denoise(whole[2:5].copy(), 1.0)
    whole[[0, 1, 5, 6, 7]] = np.nan
    before = whole.copy()
    np.testing.assert_array_equal(denoise(whole[2:5], 1.0), wanted)
    np.testing.assert_array_equal(whole, before)


def test_results_of_two_calls_do_not_share_memory(denoise):
    x = ensemble(4)
    first = denoise(x, 1.0)
    kept = first.copy()
    second = denoise(x, 5.0)
    assert not np.shares_memory(first, second)
    np.testing.assert_array_equal(first, kept)


# --- rows that fail ------------------------------------------------------------------------------------------------


def test_a_row_with_a_non_finite_entry_is_nan_throughout_and_named(tmp_path):
    denoise = OnnxDenoiser(write_model(tmp_path / "sqrt.onnx", "Sqrt"), chunk=2)
    x = np.full((5, *EVENT), 4.0)
    x[3, 1, 1] = -1.0
    with pytest.warns(RuntimeWarning, match=r"sqrt.onnx at sigma = 0.5: non-finite output .* rows \[3\]"):
        out = denoise(x, 0.5)
    assert denoise.nonfinite_rows == (3,)
    assert np.all(np.isnan(out[3]))
    np.testing.assert_array_equal(out[[0, 1, 2, 4]], np.full((4, *EVENT), 2.0))
    denoise(x[:3], 0.5)
    assert denoise.nonfinite_rows == ()


def test_a_failed_member_stays_failed_without_a_warning_and_without_touching_others(denoise, recwarn):
    x = ensemble(5)
    wanted = denoise(x, 1.0)
    x[2] = np.nan
    out = denoise(x, 1.0)
    assert denoise.nonfinite_rows == (2,) and np.all(np.isnan(out[2]))
    np.testing.assert_allclose(out[[0, 1, 3, 4]], wanted[[0, 1, 3, 4]], rtol=0, atol=1e-6)
    assert not [w for w in recwarn if w.category is RuntimeWarning]


# --- contract violations -------------------------------------------------------------------------------------------


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(("broken", "words"), [
    ({"names": {"x": "image"}}, ["inputs ['image', 'sigma']", "expected ['x', 'sigma']"]),
    ({"names": {"denoised": "eps"}}, ["outputs ['eps']", "expected ['denoised']"]),
    ({"drop": ("sigma",)}, ["inputs ['x']"]),
    ({"element": onnx.TensorProto.DOUBLE}, ["tensor(double)", "expected tensor(float)"]),
    ({"element": onnx.TensorProto.FLOAT16}, ["tensor(float16)"]),
    ({"shapes": {"sigma": ["n", 1]}}, ["sigma has rank 2", "expected 1"]),
    ({"shapes": {"x": ["n", *EVENT], "denoised": ["n", *EVENT]}}, ["x has rank 3", "expected 4"]),
    ({"batch": 4}, ["fixed batch of 4", "symbolic"]),
    ({"metadata": {**RANGE, "event_shape": (6, 4)}}, ["event axes (1, 4, 6)", "(1, 6, 4)"]),
    ({"metadata": None}, ["format_version None", "attach_metadata"]),
])
def test_a_file_that_breaks_the_contract_is_refused_in_one_line(tmp_path, broken, words):
    path = write_model(tmp_path / "model.onnx", **broken)
    with pytest.raises(ValueError) as error:
        OnnxDenoiser(path)
    one_line(error, "model.onnx", *words)


def test_a_denoiser_file_is_no_vjp_file_and_a_text_is_no_model(files, tmp_path):
    with pytest.raises(ValueError) as error:
        OnnxDenoiserVJP(files / "mixture.onnx")
    one_line(error, "inputs ['x', 'sigma']", "expected ['x', 'sigma', 'v']")
    (tmp_path / "text.onnx").write_text("no model\nat all")
    with pytest.raises(ValueError) as error:
        OnnxDenoiser(tmp_path / "text.onnx")
    one_line(error, "text.onnx", "cannot open")
    with pytest.raises(FileNotFoundError) as error:
        OnnxDenoiser(tmp_path / "nothing.onnx")
    one_line(error, "nothing.onnx does not exist")


@pytest.mark.parametrize("sigma", [0.0019, 80.1, -1.0, float("nan"), float("inf"), np.ones(3), "one"])
def test_a_noise_level_outside_the_range_of_the_prior_is_refused(denoise, sigma):
    with pytest.raises(ValueError) as error:
        denoise(ensemble(3), sigma)
    one_line(error, "sigma must be")


def test_a_noise_level_on_the_edge_of_the_range_up_to_rounding_is_accepted(denoise):
    for sigma in (80.0 * (1 + 1e-7), 0.002 * (1 - 1e-7), np.float32(0.002), np.float32(80.0)):
        denoise(ensemble(1), sigma)
    assert denoise.phys_net == 4


@pytest.mark.parametrize(("x", "words"), [
    (np.zeros((3, 6, 4), dtype=np.float32), ["x must have shape (J, 4, 6)", "got (3, 6, 4)"]),
    (np.zeros(EVENT, dtype=np.float32), ["x must have shape (J, 4, 6)", "got (4, 6)"]),
    (np.zeros((3, *EVENT), dtype=int), ["real floating", "int64"]),
    (np.zeros((3, *EVENT), dtype=complex), ["real floating", "complex128"]),
])
def test_an_ensemble_of_another_shape_or_dtype_is_refused(denoise, x, words):
    with pytest.raises(ValueError) as error:
        denoise(x, 1.0)
    one_line(error, *words)


def test_a_covector_of_another_shape_is_refused(denoise_vjp):
    with pytest.raises(ValueError, match="v must have shape"):
        denoise_vjp(ensemble(3), 1.0, ensemble(2))


# --- devices and packages ------------------------------------------------------------------------------------------


def test_an_absent_cuda_provider_is_an_error_and_never_the_cpu(files, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError) as error:
        OnnxDenoiser(files / "mixture.onnx", device="cuda")
    one_line(error, "'cuda'", "CUDAExecutionProvider", "extra gpu")


def test_a_silent_fall_back_to_the_cpu_is_an_error(files, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    fallen = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", lambda *args, **kwargs: fallen)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(ValueError) as error:
        OnnxDenoiser(files / "mixture.onnx", device="cuda:1")
    one_line(error, "'cuda:1'", "fell back to CPUExecutionProvider")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu,cuda"])
def test_an_unknown_device_is_refused(files, device):
    with pytest.raises(ValueError, match='device must be "cpu", "cuda" or "cuda:N"'):
        OnnxDenoiser(files / "mixture.onnx", device=device)


def test_two_onnxruntime_packages_are_noticed(files, monkeypatch):
    monkeypatch.setattr(runtime.importlib.metadata, "distribution", lambda name: name)
    with pytest.warns(UserWarning, match="onnxruntime and onnxruntime-gpu are both installed"):
        OnnxDenoiser(files / "mixture.onnx")
    monkeypatch.setattr(pytest.importorskip("onnxruntime"), "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match="both installed"), pytest.warns(UserWarning):
        OnnxDenoiser(files / "mixture.onnx", device="cuda")


def test_without_onnxruntime_the_error_names_both_extras(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError) as error:
        OnnxDenoiser(files / "mixture.onnx")
    one_line(error, "extra cpu", "extra gpu")


def test_threads_share_the_chunks_and_do_not_change_a_bit_of_the_result(files):
    x = ensemble(5)
    one, three = (OnnxDenoiser(files / "mixture.onnx", chunk=2, threads=threads) for threads in (1, 3))
    options = three.session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    np.testing.assert_array_equal(three(x, 1.0), one(x, 1.0))
    assert three.phys_net == 5


def test_a_failing_chunk_fails_the_call_whatever_the_threads(files, monkeypatch):
    denoise = OnnxDenoiser(files / "mixture.onnx", chunk=2, threads=3)

    def broken(io):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(denoise, "session", SimpleNamespace(io_binding=denoise.session.io_binding,
                                                            run_with_iobinding=broken))
    with pytest.raises(RuntimeError, match="out of memory"):
        denoise(ensemble(5), 1.0)


def test_importing_the_session_loads_no_array_framework_and_no_runtime():
    code = ("import sys, onnx_priors.session, onnx_priors.gaussian, onnx_priors.mixture, onnx_priors.export; "
            "names = 'torch jax cupy onnx onnxruntime scipy enkg_ref'; "
            "print([name for name in names.split() if name in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- other processes -----------------------------------------------------------------------------------------------


def test_a_pickled_denoiser_opens_its_file_again_in_a_worker_process(files):
    denoise = OnnxDenoiser(files / "mixture.onnx", chunk=2, threads=1)
    x = ensemble(5)
    wanted = denoise(x, 1.0)
    copy = pickle.loads(pickle.dumps(denoise))
    assert (copy.chunk, copy.threads, copy.phys_net) == (2, 1, 0)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        np.testing.assert_allclose(pool.submit(denoise, x, 1.0).result(), wanted, rtol=0, atol=1e-6)


# --- metadata and manifest -----------------------------------------------------------------------------------------


def test_metadata_come_back_as_they_were_written(denoise):
    facts = denoise.metadata
    for key, value in FACTS.items():
        assert facts[key] == value and type(facts[key]) is type(value), key
    assert facts["event_shape"] == denoise.event_shape == EVENT
    assert (denoise.sigma_min, denoise.sigma_max) == (0.002, 80.0)
    assert facts["format_version"] == metadata.FORMAT_VERSION


@pytest.mark.parametrize(("facts", "words"), [
    ({"event_shape": EVENT}, ["lacks sigma_min, sigma_max"]),
    ({**RANGE, "sigma_min": 90.0}, ["0 < sigma_min < sigma_max"]),
    ({**RANGE, "event_shape": (1, 2, 3, 4)}, ["1, 2 or 3 axes"]),
    ({**RANGE, "units": 3}, ["units must be text"]),
])
def test_senseless_metadata_are_refused(facts, words):
    with pytest.raises(ValueError) as error:
        metadata.encode_metadata(facts)
    one_line(error, *words)


@pytest.fixture
def shipped(files, tmp_path, monkeypatch):
    """A manifest of one prior with its VJP and one without, to which names resolve."""
    for name in ("mixture.onnx", "mixture-vjp.onnx"):
        (tmp_path / name).write_bytes((files / name).read_bytes())
    (tmp_path / "alone.onnx").write_bytes((files / "mixture.onnx").read_bytes())
    listing = tmp_path / "manifest.json"
    shipping.register_prior("five-blobs-6", tmp_path / "mixture.onnx", tmp_path / "mixture-vjp.onnx", manifest=listing)
    shipping.register_prior("alone-6", tmp_path / "alone.onnx", manifest=listing)
    monkeypatch.setattr(session, "resolve", partial(manifest.resolve, manifest=listing))
    return tmp_path


def test_a_registered_prior_is_loaded_by_its_name_with_its_metadata(shipped):
    x = ensemble(3)
    D, vjp = load_prior("five-blobs-6", vjp=True, chunk=2)(x, 1.0, x)
    np.testing.assert_allclose(load_prior("five-blobs-6")(x, 1.0), D, rtol=0, atol=1e-6)
    entry = manifest.read_manifest(shipped / "manifest.json")["five-blobs-6"]
    assert entry["metadata"]["normalisation"] == FACTS["normalisation"]
    assert entry["vjp"]["sha256"] == manifest.sha256(shipped / "mixture-vjp.onnx")
    assert json.loads((shipped / "manifest.json").read_text())["format_version"] == 1


def test_an_unknown_name_is_refused_with_the_nearest_known_one(shipped):
    with pytest.raises(ValueError) as error:
        load_prior("five-blob-6")
    one_line(error, "'five-blob-6'", "did you mean 'five-blobs-6'")


def test_a_prior_without_a_vjp_file_says_so(shipped):
    with pytest.raises(ValueError) as error:
        load_prior("alone-6", vjp=True)
    one_line(error, "'alone-6' has no vjp file")


def test_a_shipped_file_that_was_changed_or_lost_is_refused(shipped):
    path = shipped / "mixture.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError) as error:
        load_prior("five-blobs-6")
    one_line(error, "sha256", "mixture.onnx", "corrupt")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="mixture.onnx does not exist"):
        load_prior("five-blobs-6")


def test_a_prior_without_licence_and_origin_cannot_be_registered(tmp_path):
    path = write_model(tmp_path / "bare.onnx")
    with pytest.raises(ValueError) as error:
        shipping.register_prior("bare", path, manifest=tmp_path / "manifest.json")
    one_line(error, "data_licence", "training_command")
    assert not (tmp_path / "manifest.json").exists()


# --- GPU (never run where this was written) ------------------------------------------------------------------------


@pytest.mark.gpu
def test_cupy_arrays_stay_on_the_device_and_give_what_the_cpu_gives(files, spy):
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("no CUDA device")
    x, v = ensemble(7), ensemble(7, seed=1)
    wanted = OnnxDenoiserVJP(files / "mixture-vjp.onnx")(x, 1.0, v)
    del spy[:]
    outputs = OnnxDenoiserVJP(files / "mixture-vjp.onnx", device="cuda", chunk=3)(cupy.asarray(x), 1.0, cupy.asarray(v))
    for out, want in zip(outputs, wanted):
        assert isinstance(out, cupy.ndarray)
        np.testing.assert_allclose(out.get(), want, rtol=0, atol=1e-4)
    assert spy and all(isinstance(a, cupy.ndarray) for _, a in spy), "no array passed through the host"

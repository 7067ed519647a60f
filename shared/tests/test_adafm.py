"""AdaFM as a matrix product equals AdaFM as Fourier transforms: values, gradients, layouts, dtypes.

The recorded values come from the fact sheet's golden file, which ran the authors' code.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from papers_shared.kernels import adafm, adafm_matrix, group_norm_adafm
from papers_shared.name_seeded import seeded_input
from papers_shared.parity import fingerprint_error

PLAIN = ["reference", "matrix"]
FORMATS = [torch.contiguous_format, torch.channels_last]
PATCH_SIZES = [1, 2, 3, 4, 8]


def case(seed=0, p=4, *, dtype=torch.float32, layout=torch.contiguous_format, channels=6, batch=3):
    """(x, gains) with gains that differ from sample to sample."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    height, width = p * pick.randint(1, 4), p * pick.randint(1, 4)
    x = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)
    gains = torch.randn(batch, p * (p // 2 + 1), generator=generator, dtype=dtype)
    return x.contiguous(memory_format=layout), gains


def affine(channels=6, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, channels, generator=generator, dtype=dtype))


def difference(y, expected):
    return (y.double() - expected.double()).abs().max().item()


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
@pytest.mark.parametrize("backend", PLAIN)
def test_both_forms_give_the_recorded_values(backend):
    file = Path(os.environ["PAPERS_MIRROR"].split(os.pathsep)[0]) / "golden/dit_sr.json"
    recorded = json.loads(file.read_text())["adafm"]
    assert len(recorded) == 2
    for entry in recorded:
        x, gains = (
            seeded_input(entry["inputs"][name]["name"], tuple(entry["inputs"][name]["shape"]))
            for name in ("x", "scale")
        )
        y = adafm(x, gains, patch_size=entry["p"], backend=backend)
        assert fingerprint_error(y, entry["output"]) < 1e-5


@pytest.mark.parametrize("backend", PLAIN)
def test_gains_multiply_the_frequencies_of_each_patch(backend):
    x, gains = case(p=4)
    gains = gains.unflatten(1, (4, 3)).clone()
    for k2 in (0, 2):  # only even gains act in the columns of frequencies 0 and p / 2
        gains[:, 3, k2] = gains[:, 1, k2]
    y = adafm(x, gains.flatten(1), patch_size=4, backend=backend)
    for image in range(3):
        patch, result = x[image, 5, :4, -4:], y[image, 5, :4, -4:]
        expected = gains[image] * torch.fft.rfft2(patch)
        torch.testing.assert_close(torch.fft.rfft2(result), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("p", PATCH_SIZES)
def test_the_matrix_product_equals_the_fourier_transforms_with_gradients(p, layout):
    for seed in range(5):
        x, gains = case(seed, p, layout=layout)
        upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        results = []
        for backend in PLAIN:
            leaves = [x.clone().requires_grad_(), gains.clone().requires_grad_()]
            y = adafm(*leaves, patch_size=p, backend=backend)
            results.append((y, *torch.autograd.grad(y, leaves, upstream)))
        for ours, expected in zip(results[1], results[0], strict=True):
            assert difference(ours, expected) < 1e-4 * max(1, expected.abs().max().item())
            assert ours.is_contiguous(memory_format=layout) or ours.shape == gains.shape


def test_the_matrix_form_has_right_first_and_second_derivatives():
    x, gains = case(p=2, dtype=torch.float64, batch=2, channels=2)
    leaves = (x.requires_grad_(), gains.requires_grad_())
    function = lambda x, gains: adafm(x, gains, patch_size=2)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("p", PATCH_SIZES)
def test_the_matrix_is_a_symmetric_circular_convolution_with_row_sums_of_the_first_gain(p):
    _, gains = case(p=p, dtype=torch.float64)
    matrix = adafm_matrix(gains, p)
    assert matrix.shape == (3, p * p, p * p)
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(matrix.sum(2), gains[:, :1].expand(-1, p * p))
    kernel = torch.fft.irfft2(gains.unflatten(1, (p, p // 2 + 1)), s=(p, p))
    torch.testing.assert_close(matrix[:, :, 0], kernel.flatten(1))


def test_8x8_patches_have_34_free_gains_of_40():
    maps = adafm_matrix(torch.eye(40, dtype=torch.float64), 8).flatten(1)
    assert torch.linalg.matrix_rank(maps) == 34


@pytest.mark.parametrize("backend", PLAIN)
def test_all_ones_change_nothing_and_the_samples_keep_to_themselves(backend):
    x, gains = case()
    ones = torch.ones_like(gains)
    assert difference(adafm(x, ones, patch_size=4, backend=backend), x) < 1e-5
    y = adafm(x, gains, patch_size=4, backend=backend)
    for i in range(3):
        alone = adafm(x[i : i + 1], gains[i : i + 1], patch_size=4, backend=backend)
        assert difference(y[i], alone[0]) < 1e-5


@pytest.mark.parametrize("backend", PLAIN)
def test_an_empty_batch_gives_an_empty_result(backend):
    x, gains = case()
    assert adafm(x[:0], gains[:0], patch_size=4, backend=backend).shape == (0, *x.shape[1:])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32_and_rounded_once(dtype, layout):
    x, gains = case(p=8, layout=layout)
    x = x.to(dtype)
    for backend in PLAIN:
        y = adafm(x, gains, patch_size=8, backend=backend)
        assert (y.dtype, y.stride()) == (dtype, x.stride())
        exact = adafm(x.double(), gains.double(), patch_size=8, backend="reference")
        rounding = torch.finfo(dtype).eps * exact.abs().max().item()
        assert difference(y, exact) < 0.51 * rounding + 1e-5


@pytest.mark.parametrize("backend", PLAIN)
def test_autocast_does_not_touch_it(backend):
    x, gains = case(p=8)
    weight, bias = affine()
    expected = adafm(x, gains, patch_size=8, backend=backend)
    settings = {"num_groups": 2, "patch_size": 8, "backend": backend}
    fused = group_norm_adafm(x, gains, weight, bias, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(adafm(x, gains, patch_size=8, backend=backend), expected)
        assert torch.equal(group_norm_adafm(x, gains, weight, bias, **settings), fused)
        assert adafm_matrix(gains, 8).dtype == torch.float32


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("p", PATCH_SIZES)
def test_group_norm_adafm_is_adafm_after_a_group_norm(p, layout, backend):
    x, gains = case(p, p, layout=layout)
    for weight, bias in (affine(), (None, None), (affine()[0], None)):
        expected = adafm(
            F.group_norm(3 * x + 5, 3, weight, bias, 1e-3), gains, patch_size=p, backend="reference"
        )
        y = group_norm_adafm(
            3 * x + 5, gains, weight, bias, num_groups=3, eps=1e-3, patch_size=p, backend=backend
        )
        assert difference(y, expected) < 1e-4
        assert y.is_contiguous(memory_format=layout)


def test_group_norm_adafm_has_the_gradients_of_its_two_steps():
    x, gains = case(p=8, dtype=torch.float64)
    results = []
    for backend in ("reference", "auto"):
        leaves = [t.clone().requires_grad_() for t in (x, gains, *affine(dtype=torch.float64))]
        y = group_norm_adafm(*leaves, num_groups=2, patch_size=8, backend=backend)
        results.append(torch.autograd.grad(y.square().sum(), leaves))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_group_norm_adafm_of_half_inputs_rounds_only_the_result(dtype):
    x, gains = case(p=8)
    x, (weight, bias) = x.to(dtype), affine()
    y = group_norm_adafm(x, gains, weight, bias, num_groups=2, patch_size=8)
    exact = adafm(F.group_norm(x.float(), 2, weight, bias), gains, patch_size=8)
    assert y.dtype == dtype
    assert difference(y, exact) < 0.51 * torch.finfo(dtype).eps * exact.abs().max() + 1e-5


@pytest.mark.parametrize("backend", PLAIN)
def test_any_strides_are_read_right(backend):
    x, gains = case()
    y = adafm(x, gains, patch_size=4, backend=backend)
    views = [
        torch.cat([x, x], 3)[..., : x.shape[3]],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.repeat_interleave(2, 0)[::2],
    ]
    for view in views:
        assert difference(adafm(view, gains, patch_size=4, backend=backend), y) < 1e-5


def test_a_matrix_made_in_inference_mode_does_not_spoil_training():
    x, gains = case(p=5)  # no other test has p = 5: nothing is kept yet
    with torch.inference_mode():
        adafm(x, gains, patch_size=5)
    gains.requires_grad_()
    adafm(x, gains, patch_size=5).sum().backward()
    assert gains.grad.abs().max() > 0


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        x, gains, (weight, bias) = torch.empty(2, 6, 8, 16), torch.empty(2, 40), torch.empty(2, 6)
        assert adafm(x, gains, patch_size=8).shape == x.shape
        y = group_norm_adafm(x, gains, weight, bias, num_groups=2, patch_size=8)
    assert (y.shape, y.device.type) == (x.shape, "meta")
    test_all_ones_change_nothing_and_the_samples_keep_to_themselves("matrix")


def test_wrong_arguments_are_refused_by_name():
    x, gains = case(p=4)
    weight, bias = affine()
    norm = {"num_groups": 2, "patch_size": 4}
    for odd in (x[:, :, :3], x[..., :-1]):
        with pytest.raises(ValueError, match=r"must be multiples of patch_size=4"):
            adafm(odd, gains, patch_size=4)
    with pytest.raises(ValueError, match=r"gains of shape \(3, 12\).*\(batch, 40\)"):
        adafm(x, gains, patch_size=8)
    with pytest.raises(ValueError, match=r"gains of shape \(3, 12\)"):
        adafm_matrix(gains, 2)
    with pytest.raises(ValueError, match="patch_size=0"):
        adafm_matrix(gains, 0)
    with pytest.raises(ValueError, match="2 rows of gains for a batch of 3"):
        adafm(x, gains[:2], patch_size=4)
    with pytest.raises(ValueError, match=r"input of shape .* torch.int64"):
        adafm(x.long(), gains, patch_size=4)
    with pytest.raises(ValueError, match="expected auto, reference, matrix or triton"):
        adafm(x, gains, patch_size=4, backend="fft")
    with pytest.raises(ValueError, match="num_groups=4: expected a divisor of the 6 channels"):
        group_norm_adafm(x, gains, weight, bias, **{**norm, "num_groups": 4})
    with pytest.raises(ValueError, match=r"bias of shape \(5,\): expected \(6,\)"):
        group_norm_adafm(x, gains, weight, bias[:5], **norm)


TRITON_SCRIPT = """
import importlib.util, itertools, sys, torch
import torch.nn.functional as F
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
kinds = (torch.float32, torch.float16)  # the interpreter cuts bfloat16 off, unrounded
for p, layout, dtype in itertools.product((2, 3, 8), cases.FORMATS, kinds):
    x, gains = cases.case(p, p, layout=layout, channels=10)
    x, (weight, bias) = (3 * x + 5).to(dtype), cases.affine(10)
    limit = 1e-5 if dtype == torch.float32 else 6e-4
    for view in (x, torch.cat([x, x], 3)[..., : x.shape[3]]):
        y = cases.adafm(view, gains, patch_size=p, backend="triton")
        exact = cases.adafm(x.float(), gains, patch_size=p, backend="reference")
        assert (y.dtype, y.shape) == (dtype, x.shape)
        assert cases.difference(y, exact) < limit * max(1, exact.abs().max().item()), (p, layout)
        assert y.is_contiguous(memory_format=layout) or view is not x
    settings = {"num_groups": 5, "patch_size": p}
    for w, b in ((weight, bias), (None, None)):
        y = cases.group_norm_adafm(x, gains, w, b, **settings, backend="triton")
        exact = cases.group_norm_adafm(x.float(), gains, w, b, **settings, backend="reference")
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        assert cases.difference(y, exact) < limit * max(1, exact.abs().max().item()), (p, layout)

x, gains = cases.case(p=4)
for needs in ((True, True), (True, False), (False, True)):
    results = []
    for backend in ("triton", "reference"):
        leaves = [t.clone().requires_grad_(n) for t, n in zip((x, gains), needs)]
        wanted = [t for t in leaves if t.requires_grad]
        y = cases.adafm(*leaves, patch_size=4, backend=backend)
        assert y.grad_fn.name().startswith("TritonAdaFM") == (backend == "triton")
        results.append(torch.autograd.grad(y.square().sum(), wanted))
    for ours, expected in zip(*results):
        assert cases.difference(ours, expected) < 1e-3 * expected.abs().max()
weight = cases.affine()[0].requires_grad_()
y = cases.group_norm_adafm(x, gains, weight, None, num_groups=2, patch_size=4, backend="triton")
y.sum().backward()
assert weight.grad.abs().max() > 0
assert cases.adafm(x[:0], gains[:0], patch_size=4, backend="triton").shape == (0, *x.shape[1:])
for bad, p in ((x.double(), 4), (torch.zeros(3, 1, 16, 16), 16)):
    try:
        cases.adafm(bad, torch.zeros(3, p * (p // 2 + 1)), patch_size=p, backend="triton")
    except RuntimeError as error:
        assert "cannot run" in str(error)
    else:
        raise AssertionError((bad.dtype, p))
print("equal")
"""


def test_the_triton_kernel_equals_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-c", TRITON_SCRIPT, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == "equal\n", ran.stderr


def test_triton_refuses_cpu_tensors_and_says_why():
    x, gains = case()
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 lets it run on a CPU")
    with pytest.raises(RuntimeError, match=r"triton' cannot run: .*(not installed|CUDA device)"):
        adafm(x, gains, patch_size=4, backend="triton")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_the_triton_kernel_compiles_for_a_gpu_without_tf32(monkeypatch, tmp_path, last, kind):
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    from triton.backends.compiler import GPUTarget

    from papers_shared.kernels import adafm_triton

    constants = {"P": 8, "PIXELS": 64, "LAST": last, "NORM": True, "BLOCK": 64}
    pointers = {"x": f"*{kind}", "y": f"*{kind}"} | dict.fromkeys(
        ("matrix", "scale", "shift"), "*fp32"
    )
    kernel = adafm_triton._multiply
    signature = {
        argument: "constexpr" if argument in constants else pointers.get(argument, "i32")
        for argument in kernel.arg_names
    }
    source = triton.compiler.ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "cubin" in compiled.asm
    assert "tf32" not in compiled.asm["ptx"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("p", PATCH_SIZES)
def test_every_backend_equals_the_cpu_reference_on_a_gpu(p, layout):
    x, gains = case(p, p, layout=layout)
    weight, bias = affine()
    settings = {"num_groups": 2, "patch_size": p}
    expected = adafm(x, gains, patch_size=p, backend="reference")
    fused = group_norm_adafm(x, gains, weight, bias, **settings, backend="reference")
    on_gpu = [t.cuda() for t in (x, gains, weight, bias)]
    for backend in ("reference", "matrix", "triton", "auto"):
        y = adafm(*on_gpu[:2], patch_size=p, backend=backend)
        assert difference(y.cpu(), expected) < 1e-4
        y = group_norm_adafm(*on_gpu, **settings, backend=backend)
        assert difference(y.cpu(), fused) < 1e-4

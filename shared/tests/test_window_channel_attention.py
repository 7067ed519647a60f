"""All forms of the windowed channel attention are the definition: values, gradients, layouts."""

import os
import subprocess
import sys

import pytest
import torch

from papers_shared.kernels import window_channel_attention as attention
from papers_shared.kernels.window_channel_attention import any_size

FORMATS = [torch.contiguous_format, torch.channels_last]
SHAPES = [  # batch, channels, heads, window, height, width
    (2, 12, 3, 4, 8, 12),
    (1, 16, 1, 8, 24, 16),
    (3, 10, 2, 2, 4, 6),
    (1, 8, 2, 4, 4, 12),  # one window high: the shifted branch is left out
]


def case(shape, seed=0, *, dtype=torch.float32, layout=torch.contiguous_format):
    """(qkv, base, shifted) with parameters that differ from each other."""
    batch, channels, heads, window, height, width = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=dtype)

    def branch():
        mask = 1 + 0.3 * draw(1, heads, window, window).abs()
        return 1 + draw(heads, 1, 1).abs(), 1 + 0.3 * draw(heads, 1, window**2), mask

    qkv = draw(batch, 3 * channels, height, width).contiguous(memory_format=layout)
    return qkv, branch(), branch()


def difference(y, expected):
    return (y.double() - expected.double()).abs().max().item()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_shifted", [True, False])
def test_the_fused_form_equals_the_definition_with_gradients(shape, layout, with_shifted):
    qkv, base, shifted = case(shape, dtype=torch.float64, layout=layout)
    leaves = [t.requires_grad_() for t in (qkv, *base, *(shifted if with_shifted else ()))]
    results = []
    for backend in ("fused", "reference"):
        y = attention(qkv, base, shifted if with_shifted else None, backend=backend)
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
        grads = torch.autograd.grad(y, leaves, upstream, allow_unused=True)
        results.append((y, *grads))
    for ours, expected in zip(*results, strict=True):
        if expected is None:
            assert ours is None or not ours.any()
        else:
            assert difference(ours, expected) < 1e-10 * max(1, expected.abs().max().item())
    with torch.no_grad():  # another path: in place
        y = attention(qkv, base, shifted if with_shifted else None, backend="fused")
    assert difference(y, results[1][0]) < 1e-12
    assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 8, 2, 4, 4, 4)])
@pytest.mark.parametrize("with_shifted", [True, False])
def test_the_form_that_exported_graphs_hold_is_the_definition(shape, with_shifted):
    qkv, base, shifted = case(shape)
    arguments = (qkv, base, shifted if with_shifted else None)
    assert difference(any_size(*arguments), attention(*arguments, backend="reference")) < 1e-6


def test_one_window_is_restormers_attention_with_an_affine():
    qkv, base, shifted = case((1, 6, 2, 4, 4, 4))
    q, k, v = qkv.view(3, 2, 3, 16)
    normal = [t * base[1] / (t * base[1]).norm(dim=-1, keepdim=True) for t in (q, k)]
    expected = (base[0] * normal[0] @ normal[1].mT).softmax(-1) @ v
    y = attention(qkv, base, shifted)
    assert difference(y, expected.reshape(1, 6, 4, 4)) < 1e-6


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_the_frame_is_the_first_branch_and_the_inside_a_weighted_mean(backend):
    qkv, base, shifted = case((1, 4, 2, 4, 8, 8))
    first = attention(qkv, base, None, backend=backend)
    second = attention(qkv[:, :, 2:-2, 2:-2], shifted, None, backend=backend)
    y = attention(qkv, base, shifted, backend=backend)
    for frame in (y - first)[:, :, :2], (y - first)[:, :, -2:], (y - first)[..., :2]:
        assert frame.abs().max() < 1e-6
    m1 = base[2].repeat_interleave(2, 1)[:, :, [2, 3, 0, 1]][..., [2, 3, 0, 1]]
    m2 = shifted[2].repeat_interleave(2, 1)
    expected = (first[:, :, 2:-2, 2:-2] * m1 + second * m2) / (m1 + m2)
    assert difference(y[:, :, 2:-2, 2:-2], expected) < 1e-6


def test_zero_pixels_are_finite_and_samples_keep_to_themselves():
    qkv, base, shifted = case((2, 12, 3, 4, 8, 12))
    qkv[1] = 0
    for backend in ("fused", "reference"):
        y = attention(qkv, base, shifted, backend=backend)
        assert y.isfinite().all()
        assert difference(y[:1], attention(qkv[:1], base, shifted, backend=backend)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32_and_rounded_once(dtype):
    qkv, base, shifted = case(SHAPES[0])
    qkv = qkv.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = attention(qkv, base, shifted)
    exact = attention(qkv.float(), base, shifted, backend="reference")
    assert y.dtype == dtype
    assert difference(y, exact) < 0.51 * torch.finfo(dtype).eps * exact.abs().max().item() + 1e-5


def test_wrong_arguments_are_refused_by_name():
    qkv, base, shifted = case(SHAPES[0])
    with pytest.raises(ValueError, match="does not divide into windows of 4x4"):
        attention(qkv[:, :, :6], base, shifted)
    with pytest.raises(ValueError, match="channels a multiple of the 3 heads"):
        attention(qkv[:, :16], base, shifted)
    with pytest.raises(ValueError, match="temperature, affine and mask of shapes"):
        attention(qkv, (base[0], base[1][:2], base[2]), shifted)
    with pytest.raises(ValueError, match="expected an even side"):
        attention(*case((1, 2, 1, 3, 6, 6)))
    with pytest.raises(ValueError, match="expected auto, reference, fused or triton"):
        attention(qkv, base, shifted, backend="fast")
    if os.environ.get("TRITON_INTERPRET") != "1":
        with pytest.raises(RuntimeError, match=r"cannot run: .*(not installed|CUDA device)"):
            attention(qkv, base, shifted, backend="triton")


TRITON_SCRIPT = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
runs = [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)]
for i, (shape, (dtype, limit)) in enumerate(zip(cases.SHAPES, runs)):
    layout = cases.FORMATS[i % 2]
    qkv, base, shifted = cases.case(shape, layout=layout)
    y = cases.attention(qkv.to(dtype), base, shifted, backend="triton")
    exact = cases.attention(qkv.to(dtype).float(), base, shifted, backend="reference")
    assert (y.dtype, y.shape) == (dtype, exact.shape)
    assert cases.difference(y, exact) < limit * max(1, exact.abs().max().item()), shape
    assert y.is_contiguous(memory_format=layout)
qkv, base, shifted = cases.case(cases.SHAPES[2])
for second in (shifted, None):
    results = []
    leaves = [t.requires_grad_() for t in (qkv, *base, *(second or ()))]
    for backend in ("triton", "reference"):
        y = cases.attention(qkv, base, second, backend=backend)
        results.append(torch.autograd.grad(y.square().sum(), leaves, allow_unused=True))
    for ours, expected in zip(*results):
        if expected is not None:
            assert cases.difference(ours, expected) < 1e-4 * expected.abs().max()
for bad in (qkv.double(), torch.zeros(1, 3 * 2 * 130, 4, 4)):
    try:
        cases.attention(bad, base, None, backend="triton")
    except RuntimeError as error:
        assert "cannot run" in str(error)
    else:
        raise AssertionError(bad.shape)
print("equal")
"""


def test_the_triton_kernel_equals_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-c", TRITON_SCRIPT, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == "equal\n", ran.stderr


@pytest.mark.parametrize("blend", [False, True])
def test_the_triton_kernel_compiles_for_a_gpu_without_tf32(monkeypatch, tmp_path, blend):
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    from triton.backends.compiler import GPUTarget

    from papers_shared.kernels import window_channel_attention_triton

    constants = {"WINDOW": 8, "BLEND": blend, "CHANNELS": 16, "POSITIONS": 64}
    pointers = dict.fromkeys(("temperature", "affine", "ratio", "y"), "*fp32") | {"qkv": "*bf16"}
    kernel = window_channel_attention_triton._attend
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
@pytest.mark.parametrize("shape", [*SHAPES, (1, 96, 1, 8, 32, 32)])
def test_every_backend_equals_the_cpu_reference_on_a_gpu(shape, layout):
    qkv, base, shifted = case(shape, layout=layout)
    expected = attention(qkv, base, shifted, backend="reference")
    on_gpu = [qkv.cuda(), *(tuple(t.cuda() for t in branch) for branch in (base, shifted))]
    for backend in ("reference", "fused", "triton", "auto"):
        assert difference(attention(*on_gpu, backend=backend).cpu(), expected) < 1e-4

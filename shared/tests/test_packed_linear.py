"""Packed linear layers: every backend equals the dequantized weights, at any size."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from papers_shared.kernels import packed_linear_cpu
from papers_shared.kernels.cpu_extension import ExtensionError
from papers_shared.kernels.packed_linear import (
    LAYOUTS,
    MANY,
    PackedLinear,
    pack_linear,
    packed_linear,
)
from papers_shared.quantization import GridRule, packed_layer, round_to_nearest

# out, in, group: rows and chunks that are not full, one group, groups across chunks
SIZES = [(13, 576, 576), (8, 576, 64), (7, 40, 40), (6, 1024, 32), (5, 768, 256)]


def case(bits, size, seed=0):
    """(codes, scale, zero, packed)."""
    out, inputs, group = size
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (out, inputs), generator=generator, dtype=torch.uint8)
    shape = (out, inputs // group)
    scale = torch.rand(shape, generator=generator) + 0.1
    zero = torch.randint(0, 2**bits, shape, generator=generator).float()
    return codes, scale, zero, pack_linear(codes, scale, zero, bits=bits, group=group)


def inputs(count, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, size[1], generator=generator).to(dtype)


@pytest.fixture(scope="session")
def paths():
    try:
        return packed_linear_cpu.paths()
    except ExtensionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", LAYOUTS)
def test_packing_keeps_the_codes_and_the_weights(bits, size) -> None:
    codes, scale, zero, packed = case(bits, size)
    assert torch.equal(packed.codes(), codes)
    group = size[2]
    expected = (codes.float().unflatten(1, (-1, group)) - zero[..., None]) * scale[..., None]
    assert torch.equal(packed.dequantize(), expected.flatten(1))


def test_a_word_holds_what_its_bits_say() -> None:
    _, _, _, packed = case(4, (4, 128, 128))
    assert packed.words.nbytes == 4 * 128 // 2
    _, _, _, packed = case(3, (4, 512, 512))
    assert packed.words.nbytes == 4 * 512 * 3 // 8


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", LAYOUTS)
def test_every_path_equals_the_reference(bits, size, paths) -> None:
    _, _, _, packed = case(bits, size)
    for path in paths:
        assert torch.equal(packed_linear_cpu.dequantize(packed, path=path), packed.dequantize()), (
            path
        )
        for count in (0, 1, 2, 3, 7, MANY):
            x = inputs(count, size)
            expected = packed_linear(x, packed, backend="reference")
            y = packed_linear(x, packed, backend=f"cpu:{path}")
            assert y.shape == expected.shape
            if count:
                assert (y - expected).abs().max() < 1e-5 * expected.abs().max(), (path, count)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", LAYOUTS)
def test_a_bfloat16_input_is_multiplied_exactly_and_rounded_once(bits, size, paths) -> None:
    _, _, _, packed = case(bits, size)
    x = inputs(1, size, torch.bfloat16)
    expected = packed_linear(x.float(), packed, backend="reference")
    y = packed_linear_cpu.multiply(x, packed)[:, : size[0]]
    assert (y - expected).abs().max() < 2e-5 * expected.abs().max()
    rounded = packed_linear(x, packed, backend="cpu")
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, expected.bfloat16(), rtol=2**-7, atol=1e-3)


def test_the_module_adds_its_bias_in_any_shape() -> None:
    _, _, _, packed = case(4, SIZES[1])
    bias = torch.arange(8.0)
    x = inputs(6, SIZES[1]).view(2, 3, -1)
    y = PackedLinear(packed, bias)(x)
    expected = torch.nn.functional.linear(x, packed.dequantize(), bias)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert packed_linear(x.double(), packed).dtype == torch.float64


def test_the_module_moves_and_is_stored_whole() -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    quantized = round_to_nearest(weight, GridRule(3, group=32, search="none"))
    layer = packed_layer(quantized, nn.Parameter(torch.arange(12.0)))
    x = inputs(2, (12, 64, 32))
    expected = torch.nn.functional.linear(x, quantized.dequantize(), layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
    other = round_to_nearest(-weight, GridRule(3, group=32, search="none"))
    again = packed_layer(other, torch.zeros(12))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    moved = layer.to("meta")
    tensors = (moved.weight.words, moved.weight.scale, moved.weight.zero, moved.bias)
    assert {t.device.type for t in tensors} == {"meta"}


def test_several_threads_give_the_same(paths) -> None:
    _, _, _, packed = case(4, (200, 256, 64))
    x = inputs(1, (200, 256, 64))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(packed_linear(x, packed, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_wrong_arguments_are_refused_by_name(paths) -> None:
    codes, scale, zero, packed = case(4, SIZES[1])
    with pytest.raises(ValueError, match="bits=5"):
        pack_linear(codes, scale, zero, bits=5, group=64)
    with pytest.raises(ValueError, match="group=48"):
        pack_linear(codes, scale[:, :1], zero[:, :1], bits=4, group=48)
    with pytest.raises(ValueError, match=r"expected \(8, 9\)"):
        pack_linear(codes, scale[:, :1], zero, bits=4, group=64)
    with pytest.raises(ValueError, match="-128 to 128"):
        pack_linear(codes, scale, zero + 1000, bits=4, group=64)
    with pytest.raises(ValueError, match="575 features"):
        packed_linear(torch.zeros(1, 575), packed)
    with pytest.raises(ValueError, match="backend='gpu'"):
        packed_linear(torch.zeros(1, 576), packed, backend="gpu")
    with pytest.raises(RuntimeError, match="this CPU has"):
        packed_linear(torch.zeros(1, 576), packed, backend="cpu:vax")


def test_without_a_compiler_auto_warns_and_cpu_refuses(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PAPERS_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    packed_linear_cpu.extension.cache_clear()
    _, _, _, packed = case(2, SIZES[0])
    x = inputs(1, SIZES[0])
    try:
        with pytest.raises(RuntimeError, match=r"no C.. compiler 'no-such-compiler'"):
            packed_linear(x, packed, backend="cpu")
        with pytest.warns(RuntimeWarning, match=r"reference in plain torch: no C.. compiler"):
            y = packed_linear(x, packed)
    finally:
        packed_linear_cpu.extension.cache_clear()
    assert torch.equal(y, packed_linear(x, packed, backend="reference"))


TRITON_SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
for bits in cases.LAYOUTS:
    for size in ((7, 40, 40), (5, 768, 256)):
        packed = cases.case(bits, size)[3]
        x = cases.inputs(2, size)
        expected = cases.packed_linear(x, packed, backend="reference")
        y = cases.packed_linear(x, packed, backend="triton")
        assert (y - expected).abs().max() < 1e-5 * expected.abs().max(), (bits, size)
print("equal")
"""


def test_the_triton_kernel_equals_the_reference_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-c", TRITON_SCRIPT, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "equal\n", ran.stderr


def test_triton_refuses_cpu_tensors_and_says_why() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 lets it run on a CPU")
    _, _, _, packed = case(4, SIZES[1])
    with pytest.raises(RuntimeError, match=r"triton' cannot run: .*(not installed|CUDA device)"):
        packed_linear(inputs(1, SIZES[1]), packed, backend="triton")


@pytest.mark.parametrize("bits", LAYOUTS)
def test_the_triton_kernel_compiles_for_a_gpu(bits, monkeypatch, tmp_path) -> None:
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton.backends.compiler import GPUTarget

    from papers_shared.kernels import packed_linear_triton

    layout = LAYOUTS[bits]
    constants = {"BITS": bits, "VECTORS": layout.inputs // 16, "WORDS": layout.words, "BLOCKS": 8}
    pointers = dict.fromkeys(("x", "scale", "zero", "y"), "*fp32") | {"words": "*i32"}
    kernel = packed_linear_triton._multiply
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32")
        for name in kernel.arg_names
    }
    source = triton.compiler.ASTSource(kernel, signature, constants)
    assert "cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", LAYOUTS)
def test_triton_equals_the_cpu_reference_on_a_gpu(bits) -> None:
    _, _, _, packed = case(bits, SIZES[1])
    for count in (1, 3, MANY):
        x = inputs(count, SIZES[1])
        expected = packed_linear(x, packed, backend="reference")
        y = packed_linear(x.cuda(), packed.to("cuda"), backend="triton").cpu()
        assert (y - expected).abs().max() < 1e-4 * expected.abs().max()

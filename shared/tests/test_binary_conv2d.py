"""Every face of the packed convolution equals the reference, and that equals the dense formula."""

import copy
import itertools
import os
import random
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from papers_shared.kernels import (
    PackedBinaryConv2d,
    binary_conv2d,
    binary_conv2d_cpu,
    pack_weight,
)

THRESHOLD = 0.3


@pytest.fixture(scope="module")
def paths():
    try:
        return binary_conv2d_cpu.paths()
    except binary_conv2d_cpu.ExtensionError as error:
        pytest.skip(str(error))


def random_case(seed, dtype, sizes=(9, 12, 17, 23)):
    """Arguments of one random convolution: (x, weight, settings)."""
    pick, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    kernel = pick.choice([(1, 1), (3, 3), (5, 5), (3, 1)])
    channels, out_channels = pick.randint(7, 130), pick.choice([1, 7, 16, 17, 40])
    x = randn(pick.choice([1, 2, 3]), channels, pick.choice(sizes), pick.choice(sizes))
    if pick.random() < 0.5:
        x = torch.where(torch.rand(x.shape, generator=generator) < 0.1, x.new_tensor(THRESHOLD), x)
    if pick.random() < 0.5:
        x = x.contiguous(memory_format=torch.channels_last)
    settings = {
        "threshold": THRESHOLD,
        "activation_scale": pick.choice([0.9, -0.7]),
        "activation_center": 0.4,
        "stride": pick.choice([1, 2, 3]),
        "padding": pick.choice([0, 1, 2, 4]),
        "dilation": pick.choice([1, 2]),
    }
    weight = pack_weight(randn(out_channels, channels, *kernel))
    if pick.random() < 0.5:
        settings["bias"] = randn(out_channels)
    if pick.random() < 0.5:
        settings["slopes"] = (randn(out_channels), randn(out_channels))
    if pick.random() < 0.5:
        shape = binary_conv2d(x, weight, **settings, backend="reference").shape
        settings["residual"] = randn(*shape)
    return x, weight, settings


def dense(x, weight, *, threshold, activation_scale, activation_center, bias=None, residual=None,
          slopes=None, **steps):  # fmt: skip
    """The two-valued tensors written out, in float64."""
    threshold = x.new_tensor(threshold)
    q = torch.sign((x - threshold) / activation_scale).double()
    bias = None if bias is None else bias.double()
    y = F.conv2d(activation_scale * q + activation_center, weight.dense(torch.float64), bias,
                 **steps)  # fmt: skip
    y = y if residual is None else y + residual
    if slopes is not None:
        positive, negative = (slope.double()[:, None, None] for slope in slopes)
        y = positive * y.relu() - negative * (-y).relu()
    return y


def relative_error(y, expected):
    return ((y - expected).abs().max() / expected.abs().max()).item()


CASES = list(itertools.product(range(40), [torch.float32, torch.float64]))


@pytest.mark.parametrize("part", range(4))
def test_the_reference_equals_the_dense_formula(part):
    for seed, dtype in CASES[part::4]:
        x, weight, settings = random_case(seed, dtype)
        y = binary_conv2d(x, weight, **settings, backend="reference")
        assert y.dtype == dtype
        error = relative_error(y, dense(x, weight, **settings))
        assert error < (1e-5 if dtype == torch.float32 else 1e-12), (seed, dtype, settings)


@pytest.mark.parametrize("part", range(4))
def test_every_instruction_set_gives_the_bits_of_the_reference(part, paths):
    for seed, dtype in CASES[part::4]:
        x, weight, settings = random_case(seed, dtype)
        expected = binary_conv2d(x, weight, **settings, backend="reference")
        for path in paths:
            y = binary_conv2d(x, weight, **settings, backend=f"cpu:{path}")
            assert torch.equal(y, expected), (path, seed, dtype, settings)


def test_two_threads_give_the_same_bits(paths):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for seed, dtype in CASES[:16]:
            x, weight, settings = random_case(seed, dtype)
            expected = binary_conv2d(x, weight, **settings, backend="reference")
            assert torch.equal(binary_conv2d(x, weight, **settings, backend="cpu"), expected)
    finally:
        torch.set_num_threads(threads)


def case(shape=(2, 70, 9, 11), out_channels=20, kernel=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator, dtype=dtype)
    weight = torch.randn(out_channels, shape[1], kernel, kernel, generator=generator, dtype=dtype)
    settings = {"threshold": 0.1, "activation_scale": 0.8, "activation_center": 0.2, "padding": 1}
    return x, pack_weight(weight), settings


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_layouts_of_the_input_do_not_change_the_result(backend, paths):
    x, weight, settings = case()
    y = binary_conv2d(x, weight, **settings, backend=backend)
    views = [
        x.contiguous(memory_format=torch.channels_last),
        torch.cat([x, x], 3)[..., : x.shape[3]],
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x.repeat_interleave(2, 0)[::2],
    ]
    for view in views:
        assert torch.equal(binary_conv2d(view, weight, **settings, backend=backend), y)
    last = binary_conv2d(views[0], weight, **settings, backend=backend)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert y.is_contiguous()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_inputs_at_the_threshold_count_as_zero_like_torch_sign(backend, paths):
    x, weight, settings = case(dtype=torch.float64)
    settings["threshold"] = 0.0
    x = x.relu()  # half of all inputs lie exactly on it
    y = binary_conv2d(x, weight, **settings, backend=backend)
    assert relative_error(y, dense(x, weight, **settings)) < 1e-12


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_empty_batch_gives_an_empty_result(backend, paths):
    x, weight, settings = case()
    y = binary_conv2d(x[:0], weight, **settings, backend=backend)
    assert y.shape == (0, 20, 9, 11)


def test_nan_counts_as_the_threshold_on_every_path(paths):
    x, weight, settings = case()
    at = x.clone()
    x[0, 3, 4, 5], at[0, 3, 4, 5] = torch.nan, settings["threshold"]
    y = binary_conv2d(at, weight, **settings, backend="reference")
    for backend in ("reference", *(f"cpu:{path}" for path in paths)):
        assert torch.equal(binary_conv2d(x, weight, **settings, backend=backend), y)


def test_a_packed_weight_holds_mean_and_population_std_of_each_filter():
    weight = torch.randn(5, 9, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    packed = pack_weight(weight)
    flat = weight.flatten(1)
    torch.testing.assert_close(packed.center, flat.mean(1))
    torch.testing.assert_close(packed.scale, flat.std(1, correction=0))
    assert torch.equal(
        packed.signs(torch.float64), torch.sign(weight - packed.center[:, None, None, None])
    )
    assert packed.bits.shape == (5, 11)  # 81 bits in 11 bytes
    assert packed.words().shape == (5, 9, 1)


def test_bit_i_of_a_filter_is_tap_major():
    weight = torch.full((1, 3, 1, 2), -1.0)
    weight[0, 2, 0, 1] = 1.0  # tap 1, channel 2: bit 1 * 3 + 2
    assert pack_weight(weight).bits.tolist() == [[1 << 5]]


def test_wrong_arguments_are_refused_by_name():
    x, weight, settings = case()
    with pytest.raises(ValueError, match=r"filter 1 .* is constant"):
        pack_weight(torch.stack([torch.randn(4, 3, 3), torch.ones(4, 3, 3)]))
    with pytest.raises(ValueError, match="expected floats of shape"):
        pack_weight(torch.randn(4, 3))
    with pytest.raises(ValueError, match="groups must be 1"):
        binary_conv2d(x[:, :35], weight, **settings)
    with pytest.raises(ValueError, match="must differ"):
        binary_conv2d(x, weight, **{**settings, "activation_scale": 0.0})
    with pytest.raises(ValueError, match="float32 or float64"):
        binary_conv2d(x.half(), weight, **settings)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        binary_conv2d(x[:, :, :1], weight, **{**settings, "padding": 0})
    with pytest.raises(ValueError, match=r"stride=\(0, 0\)"):
        binary_conv2d(x, weight, **settings, stride=0)
    with pytest.raises(ValueError, match=r"bias of shape \(19,\)"):
        binary_conv2d(x, weight, **settings, bias=torch.zeros(19))
    with pytest.raises(ValueError, match=r"slopes of shape \(1,\)"):
        binary_conv2d(x, weight, **settings, slopes=(torch.zeros(20), torch.zeros(1)))
    with pytest.raises(ValueError, match="expected auto, reference"):
        binary_conv2d(x, weight, **settings, backend="fast")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_residual_of_another_shape_is_refused(backend, paths):
    x, weight, settings = case()
    for residual in (torch.zeros(2, 20, 9, 10), torch.zeros(2, 20, 9, 11).double()):
        with pytest.raises(ValueError, match="residual of"):
            binary_conv2d(x, weight, **settings, residual=residual, backend=backend)


def test_an_unknown_instruction_set_is_refused(paths):
    x, weight, settings = case()
    with pytest.raises(RuntimeError, match="this CPU has"):
        binary_conv2d(x, weight, **settings, backend="cpu:vax")


def test_without_a_compiler_auto_warns_once_and_cpu_refuses(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERS_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    binary_conv2d_cpu.extension.cache_clear()
    x, weight, settings = case()
    try:
        with pytest.raises(RuntimeError, match=r"no C.. compiler 'no-such-compiler'"):
            binary_conv2d(x, weight, **settings, backend="cpu")
        with pytest.warns(RuntimeWarning, match=r"reference in plain torch: no C.. compiler"):
            y = binary_conv2d(x, weight, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            binary_conv2d(x, weight, **settings)
    finally:
        binary_conv2d_cpu.extension.cache_clear()
    assert torch.equal(y, binary_conv2d(x, weight, **settings, backend="reference"))


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("alpha", [0.7, -0.7])
def test_a_layer_packs_both_forms_of_the_activation_set(form, alpha, paths):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 20, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(12, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 20, 8, 8, generator=generator, dtype=torch.float64)
    beta = 0.3
    layer = PackedBinaryConv2d.from_conv(
        weight,
        alpha_a=torch.tensor(alpha, dtype=x.dtype),
        beta_a=beta,
        form=form,
        bias=bias,
        padding=1,
    )
    q = torch.sign((x - beta) / alpha)
    activation = alpha * (q + beta) if form == "code" else alpha * q + beta
    expected = F.conv2d(activation, layer.weight.dense(), bias, padding=1)
    assert relative_error(layer(x), expected) < 1e-12


def fused_layer(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    layer = PackedBinaryConv2d.from_conv(
        torch.randn(12, 20, 3, 3, generator=generator, dtype=dtype),
        alpha_a=0.7, beta_a=0.2, stride=2, padding=1,
    )  # fmt: skip
    norm = nn.BatchNorm2d(12, dtype=dtype).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor, generator=generator)
    nn.init.uniform_(norm.running_var, 0.5, 2, generator=generator)
    slopes = torch.randn(2, 12, generator=generator, dtype=dtype)
    return layer, norm, slopes


def test_batch_norm_residual_and_slopes_fuse_into_the_layer(paths):
    layer, norm, slopes = fused_layer()
    x = torch.randn(2, 20, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    residual = torch.randn(2, 12, 4, 4, dtype=torch.float64)
    y = norm(layer(x)) + residual
    y = slopes[0][:, None, None] * y.relu() - slopes[1][:, None, None] * (-y).relu()
    layer.fold_batch_norm(norm).fuse_slopes(slopes[0], slopes[1])
    assert relative_error(layer(x, residual), y) < 1e-12


def test_the_state_of_a_layer_goes_through_safetensors(tmp_path, paths):
    safetensors = pytest.importorskip("safetensors.torch")
    layer, norm, slopes = fused_layer(dtype=torch.float32)
    layer.fold_batch_norm(norm).fuse_slopes(slopes[0], slopes[1])
    file = tmp_path / "layer.safetensors"
    safetensors.save_file(layer.state_dict(), file)
    empty = PackedBinaryConv2d(20, 12, 3, stride=2, padding=1, bias=True, slopes=True)
    x = torch.randn(1, 20, 8, 8, generator=torch.Generator().manual_seed(1))
    before = empty(x)  # its constants must not outlive loading
    empty.load_state_dict(safetensors.load_file(file))
    assert torch.equal(empty(x), layer(x))
    assert not torch.equal(empty(x), before)
    assert layer.weight_bits.numel() == 12 * 23  # 180 bits in 23 bytes


def test_a_layer_follows_dtype_copies_and_input_sizes(paths):
    layer, _, _ = fused_layer(dtype=torch.float32)
    x = torch.randn(1, 20, 8, 8, generator=torch.Generator().manual_seed(1))
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert layer.double()(x.double()).dtype == torch.float64
    assert layer.weight_bits.dtype == torch.uint8
    for height in range(3, 20):  # more sizes than constants are kept for
        x = torch.randn(1, 20, height, 8, generator=torch.Generator().manual_seed(1))
        assert layer(x.double()).shape == (1, 12, (height + 1) // 2, 4)


TRITON_SCRIPT = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
for seed in (1, 3):
    for dtype in (torch.float32, torch.float64):
        x, weight, settings = cases.random_case(seed, dtype, sizes=(9,))
        expected = cases.binary_conv2d(x, weight, **settings, backend="reference")
        y = cases.binary_conv2d(x, weight, **settings, backend="triton")
        assert torch.equal(y, expected), (seed, dtype, settings)
print("equal")
"""


def test_the_triton_kernels_give_the_bits_of_the_reference_in_the_interpreter():
    pytest.importorskip("triton")
    ran = subprocess.run(
        [sys.executable, "-c", TRITON_SCRIPT, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.stdout == "equal\n", ran.stderr


def test_the_triton_kernels_compile_for_a_gpu_and_count_bits_in_hardware(monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")
    from triton.backends.compiler import GPUTarget

    from papers_shared.kernels import binary_conv2d_triton as module

    integers = ["bits", "marks", "marked", "weight", "base", "valid", "total"]
    integers += ["row_class", "column_class"]
    reals = ["x", "threshold", "a", "b", "e", "positive", "negative", "residual", "y"]
    pointers = dict.fromkeys(integers, "*i32") | dict.fromkeys(reals, "*fp32")
    constants = {
        "_pack": {"FLIPPED": True, "BLOCK": 64, "WORD": 32},
        "_convolve": {"RESIDUAL": True, "SLOPES": True, "NATIVE": True,
                      "BLOCK_P": 64, "BLOCK_O": 32},
    }  # fmt: skip
    for name, constexprs in constants.items():
        kernel = getattr(module, name)
        signature = {
            argument: "constexpr" if argument in constexprs else pointers.get(argument, "i32")
            for argument in kernel.arg_names
        }
        source = triton.compiler.ASTSource(kernel, signature, constexprs)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        options = {"enable_fp_fusion": False}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert "cubin" in compiled.asm
    assert "popc.b32" in compiled.asm["ptx"]  # of the last, _convolve


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_triton_kernels_give_the_bits_of_the_reference_on_a_gpu():
    for seed, dtype in CASES:
        x, weight, settings = random_case(seed, dtype)
        expected = binary_conv2d(x, weight, **settings, backend="reference")
        on_gpu = {
            name: value.cuda() if isinstance(value, torch.Tensor) else value
            for name, value in settings.items()
        }
        y = binary_conv2d(x.cuda(), weight, **on_gpu, backend="triton")
        assert torch.equal(y.cpu(), expected), (seed, dtype, settings)


def test_importing_the_kernels_compiles_nothing_and_loads_no_compiler():
    code = "import sys, papers_shared.kernels; sys.exit('torch.utils.cpp_extension' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

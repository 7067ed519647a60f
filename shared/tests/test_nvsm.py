"""NVSM attention by gathers equals roll, pad, unfold and mask: values, maps, gradients, layouts.

The recorded rows and columns come from the fact sheet's golden file, which ran the authors' code.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papers_shared.kernels.nvsm import nvsm_attention, nvsm_shared
from papers_shared.kernels.nvsm_layout import Group, mask_positions, masked_rows, pixels

FORMATS = [torch.contiguous_format, torch.channels_last]
PADS = ["sparse", "zero_pad", "ref_pad"]


def groups_of(window=8, *, shift=True, mask="sparse", pad_type="sparse", restore=False, dense=None):
    """The dense and the sparse group of a layer."""
    dense = dense or window
    positions = None if mask is None else mask_positions(mask, window, seed=3)
    return (
        Group(dense, shift=shift * (dense // 2)),
        Group(
            window,
            shift=shift * (window // 2),
            positions=positions,
            pad_type=pad_type,
            restore=restore,
        ),
    )


CASES = {
    "plain": groups_of(shift=False),
    "shifted": groups_of(),
    "16": groups_of(16),
    "4": groups_of(4),
    "16 and 8": groups_of(8, dense=16),
    "dense": groups_of(mask="dense"),
    "no mask": groups_of(mask=None),
    "sector": groups_of(mask="sector"),
    "sector 16": groups_of(16, mask="sector"),
    "random": groups_of(mask="random"),
    "restored": groups_of(restore=True),
    "restored sector": groups_of(mask="sector", restore=True),
    "zeros": groups_of(pad_type="zero_pad"),
    "repeated": groups_of(pad_type="ref_pad"),
}


def inputs(*, batch=2, d=3, layout=torch.contiguous_format, dtype=torch.float32, size=(16, 32)):
    """What an attention takes, and the values of one that shares its maps."""
    generator = torch.Generator().manual_seed(0)
    made = (
        torch.randn(batch, channels, *size, generator=generator, dtype=dtype)
        for channels in (4 * d, 2 * d)
    )
    return tuple(t.contiguous(memory_format=layout) for t in made)


def difference(y, expected):
    return (y.double() - expected.double()).abs().max().item()


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_both_forms_take_the_recorded_rows_and_columns():
    file = Path(os.environ["PAPERS_MIRROR"].split(os.pathsep)[0]) / "golden/lipt.json"
    recorded = [c for c in json.loads(file.read_text())["modules"] if "rows_picked" in c]
    assert len(recorded) == 4
    for case in recorded:
        pad = {"wrap": "sparse", "zero": "zero_pad", "ref": "ref_pad"}[case["padding"]]
        positions = mask_positions(case["mask"], case["window"])
        height, width = case["height"], case["width"]
        for length, key in ((height, "rows_picked"), (width, "columns_picked")):
            assert masked_rows(length, case["window"], positions, pad) == case[key]
        # Values under queries of zero are means over windows: 0 where nothing was taken.
        group = (Group(case["window"], positions=positions, pad_type=pad),)
        x = torch.zeros(1, 2, height, width)
        x[0, 1] = 1 + torch.arange(height * width).view(height, width)
        taken = torch.zeros(height, width)
        for r, row in enumerate(case["rows_picked"]):
            for c, column in enumerate(case["columns_picked"]):
                taken[r, c] = 0 if None in (row, column) else x[0, 1, row, column]
        w = case["window"]
        means = taken.view(height // w, w, width // w, w).mean((1, 3))
        for backend in ("reference", "fast"):
            y, _ = nvsm_attention(x, group, backend=backend)
            assert difference(y[0, 0, ::w, ::w], means) < 1e-3


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_gathers_equal_roll_pad_unfold_and_mask(name, layout):
    groups, (x, v) = CASES[name], inputs(layout=layout)
    for share in (False, True):
        expected, kept = nvsm_attention(x, groups, share=share, backend="reference")
        y, shared = nvsm_attention(x, groups, share=share)
        assert difference(y, expected) < 1e-5
    for ours, theirs in zip(shared.maps(), kept.maps(), strict=True):
        assert difference(ours, theirs) < 1e-6
    for other in (groups, tuple(Group(g.window, shift=g.shift) for g in groups)):
        y, expected = (nvsm_shared(v, s, other) for s in (shared, kept))
        assert difference(y, expected) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_gathers_have_the_gradients_of_the_reference(name):
    groups = CASES[name]
    values = tuple(Group(g.window, shift=g.shift) for g in groups)
    for share in (False, True):
        results = []
        for backend in ("reference", "fast"):
            x, v = (t.requires_grad_() for t in inputs(dtype=torch.float64, batch=1))
            y, shared = nvsm_attention(x, groups, share=share, backend=backend)
            wanted = [x]
            if share:
                y, wanted = y + nvsm_shared(v, shared, values), [x, v]
            results.append(torch.autograd.grad(y.pow(3).sum(), wanted))
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)


def test_gradients_can_be_differentiated_again():
    groups = groups_of(4)
    x = torch.randn(1, 8, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def maps_and_values(t):
        y, shared = nvsm_attention(t, groups, share=True, backend="fast")
        return y + nvsm_shared(t[:, ::2], shared, groups)

    torch.autograd.gradgradcheck(maps_and_values, x.requires_grad_(), fast_mode=True)


def test_working_in_pieces_changes_nothing(monkeypatch):
    from papers_shared.kernels import nvsm

    x, _ = inputs(size=(32, 32))
    for groups, share in itertools.product((groups_of(), CASES["zeros"]), (False, True)):
        whole, maps = nvsm_attention(x, groups, share=share)
        with monkeypatch.context() as patch:
            patch.setattr(nvsm, "_PIECE", 5 * 64 * 64 * 4 // torch.get_num_threads())  # 5 windows
            pieces, again = nvsm_attention(x, groups, share=share)
        assert difference(pieces, whole) < 1e-6
        if share:
            assert difference(again.parts[0], maps.parts[0]) < 1e-6


def test_a_window_of_the_sparse_group_reaches_112_pixels_of_16x16():
    """Sheet 3.4: 64 dense and 64 sparse pixels, 16 of them common, in rows and columns 8..23."""
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y, _ = nvsm_attention(x, groups_of(shift=False), backend="fast")
    (grad,) = torch.autograd.grad(y[0, :, 10, 12].sum(), x)
    reached = grad[0].abs().sum(0) > 0
    assert int(reached.sum()) == 112
    assert int(reached[8:24, 8:24].sum()) == 112


def test_masks_are_those_of_the_sheet():
    assert mask_positions("sparse", 8) == (0, 2, 4, 6, 9, 11, 13, 15)
    assert mask_positions("sparse", 16) == (*range(0, 16, 2), *range(17, 32, 2))
    assert mask_positions("dense", 7) == tuple(range(7))
    assert mask_positions("sector", 16) == (*range(2, 14), 22, 23, 24, 25)
    drawn = mask_positions("random", 8, seed=1)
    assert drawn == mask_positions("random", 8, seed=1) != mask_positions("random", 8, seed=2)
    assert len(set(drawn)) == 8
    assert list(drawn) == sorted(drawn)


def test_restoring_undoes_the_permutation():
    device = torch.device("cpu")
    for name in ("restored", "restored sector"):
        taken, given = pixels(CASES[name][1], 16, 24, device)
        assert torch.equal(taken, given)
        assert torch.equal(taken.sort().values, torch.arange(16 * 24))
    taken, given = pixels(CASES["shifted"][1], 16, 24, device)
    assert (taken != given).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_worked_out_in_float32(dtype):
    x, v = (t.to(dtype) for t in inputs())
    y, shared = nvsm_attention(x, groups_of(), share=True)
    exact, kept = nvsm_attention(x.float(), groups_of(), share=True)
    again, expected = nvsm_shared(v, shared, groups_of()), nvsm_shared(v.float(), kept, groups_of())
    assert y.dtype == again.dtype == dtype
    for ours, theirs in ((y, exact), (again, expected)):
        assert difference(ours, theirs) < 0.51 * torch.finfo(dtype).eps * theirs.abs().max() + 1e-6


def test_autocast_changes_nothing():
    x, _ = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = nvsm_attention(x, groups_of())
    assert torch.equal(y, nvsm_attention(x, groups_of())[0])


def test_what_inference_mode_makes_does_not_spoil_training():
    x, _ = inputs(size=(8, 56))  # no other test has this size: no index is kept yet
    with torch.inference_mode():
        nvsm_attention(x, groups_of())
    x.requires_grad_()
    nvsm_attention(x, groups_of())[0].sum().backward()
    assert x.grad.abs().max() > 0


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        y, shared = nvsm_attention(torch.empty(2, 12, 16, 24), groups_of(), share=True)
        assert y.shape == nvsm_shared(y, shared, groups_of()).shape == (2, 6, 16, 24)
        assert shared.maps()[1].shape == (12, 64, 64)


def test_wrong_arguments_are_refused_by_name():
    x, v = inputs()
    groups = groups_of()
    with pytest.raises(ValueError, match="multiples of the window 8; pad the input"):
        nvsm_attention(x[..., 1:], groups)
    with pytest.raises(ValueError, match="channels a multiple of 4"):
        nvsm_attention(x[:, :6], groups)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        nvsm_attention(x.long(), groups)
    with pytest.raises(ValueError, match="at least one"):
        nvsm_attention(x, ())
    with pytest.raises(ValueError, match="expected auto, reference, fast, triton"):
        nvsm_attention(x, groups, backend="cuda")
    for backend in ("reference", "fast"):
        _, shared = nvsm_attention(x, groups, share=True, backend=backend)
        with pytest.raises(ValueError, match="other windows"):
            nvsm_shared(v, shared, groups_of(16))
        with pytest.raises(ValueError, match="the size that the maps were made for"):
            nvsm_shared(v[:1], shared, groups)
    with pytest.raises(ValueError, match="an even window"):
        mask_positions("sparse", 7)
    with pytest.raises(ValueError, match="a window of 8 or 16"):
        mask_positions("sector", 4)
    with pytest.raises(ValueError, match="expected one of sparse, dense"):
        mask_positions("checkerboard", 8)
    with pytest.raises(ValueError, match="pad_type 'reflect'"):
        masked_rows(16, 8, range(8), "reflect")
    with pytest.raises(ValueError, match=r"expected 8 of 0\.\.15"):
        Group(8, positions=(0, 1, 2))
    with pytest.raises(ValueError, match="window 0"):
        Group(0)
    for odd in ({"mask": "random"}, {"pad_type": "ref_pad"}, {"mask": "sector", "window": 16}):
        with pytest.raises(ValueError, match="cannot be restored"):
            groups_of(**odd, restore=True)


TRITON_SCRIPT = """
import importlib.util, itertools, sys, torch
spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
attention, shared = cases.nvsm_attention, cases.nvsm_shared
kinds = (torch.float32, torch.float16)  # the interpreter cuts bfloat16 off, unrounded
small = {"batch": 1, "size": (16, 16)}  # the interpreter is slow
for name, layout, dtype in (
    *itertools.product(("16 and 8", "restored"), cases.FORMATS, kinds[:1]),
    *itertools.product(("zeros",), cases.FORMATS[:1], kinds),
):
    x, v = (t.to(dtype) for t in cases.inputs(layout=layout, **small))
    groups = cases.CASES[name]
    plain = tuple(cases.Group(g.window, shift=g.shift) for g in groups)
    limit = 1e-5 if dtype == torch.float32 else 2e-3
    exact, kept = attention(x.float(), groups, share=True, backend="reference")
    y, queries = attention(x, groups, share=True, backend="triton")
    assert y.dtype == dtype and y.is_contiguous(memory_format=layout), (name, layout)
    assert cases.difference(y, exact) < limit, (name, layout)
    for ours, theirs in zip(queries.maps(), kept.maps()):
        assert cases.difference(ours, theirs) < 1e-5
    exact, y = shared(v.float(), kept, plain), shared(v, queries, plain)
    assert y.dtype == dtype and cases.difference(y, exact) < limit, (name, layout)

groups, results = cases.CASES["shifted"], []
for backend in ("triton", "reference"):
    x, v = (t.requires_grad_() for t in cases.inputs(**small))
    y, kept = attention(x, groups, share=True, backend=backend)
    assert y.grad_fn.name().startswith("TritonNVSM") == (backend == "triton")
    results.append(torch.autograd.grad((y + shared(v, kept, groups)).pow(3).sum(), (x, v)))
for ours, expected in zip(*results):
    assert cases.difference(ours, expected) < 1e-4 * expected.abs().max()
x, v = cases.inputs()
_, kept = attention(x, groups, share=True, backend="triton")
double = lambda: attention(x.double(), groups, backend="triton")
for bad in (lambda: shared(v[:1], kept, groups), double):
    try:
        bad()
    except (ValueError, RuntimeError) as error:
        assert "made for" in str(error) or "cannot run" in str(error)
    else:
        raise AssertionError("not refused")
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
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 lets it run on a CPU")
    with pytest.raises(RuntimeError, match=r"triton' cannot run: .*(not installed|CUDA device)"):
        nvsm_attention(inputs()[0], groups_of(), backend="triton")


@pytest.mark.parametrize(
    ("n", "d", "block", "kind"), [(64, 16, 64, "fp32"), (64, 16, 64, "bf16"), (256, 72, 32, "fp32")]
)
def test_the_triton_kernel_compiles_for_a_gpu_without_tf32(
    monkeypatch, tmp_path, n, d, block, kind
):
    triton = pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 replaces the compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    from triton.backends.compiler import GPUTarget

    from papers_shared.kernels import nvsm_triton

    constants = {"N": n, "D": d, "WIDTH": triton.next_power_of_2(d), "BLOCK": block}
    pointers = dict.fromkeys(("q", "v", "y"), f"*{kind}") | dict.fromkeys(
        ("q_pixels", "v_pixels", "y_pixels"), "*i64"
    )
    kernel = nvsm_triton._attend
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
@pytest.mark.parametrize("name", CASES)
def test_every_backend_equals_the_cpu_reference_on_a_gpu(name, layout):
    groups, (x, v) = CASES[name], inputs(layout=layout)
    expected, kept = nvsm_attention(x, groups, share=True, backend="reference")
    again = nvsm_shared(v, kept, groups)
    for backend in ("reference", "fast", "triton", "auto"):
        y, shared = nvsm_attention(x.cuda(), groups, share=True, backend=backend)
        assert difference(y.cpu(), expected) < 1e-4
        assert difference(nvsm_shared(v.cuda(), shared, groups).cpu(), again) < 1e-4

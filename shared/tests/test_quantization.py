"""Grids, GPTQ's solver, packing and export."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from papers_shared.language_models import block_linears, block_names, find_blocks, tiny_llama
from papers_shared.quantization import (
    FakeQuantLinear,
    Grid,
    GridRule,
    Hessian,
    export_compressed_tensors,
    export_gptq,
    fake_quantize_activation,
    gptq,
    grid_from_range,
    grids,
    inverse_cholesky,
    load_gptq,
    lsq,
    minmax_grid,
    pack_words,
    quantized_bytes,
    round_to_nearest,
    search_grid,
    unpack_words,
)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def inputs() -> torch.Tensor:
    x = torch.randn(4, 48, 64, generator=torch.Generator().manual_seed(1))
    x[..., 5::16] *= 6
    return x


def hessian_of(x: torch.Tensor) -> Hessian:
    hessian = Hessian(x.shape[-1])
    for sequence in x:
        hessian.add(sequence)
    return hessian


def test_hessian_is_twice_the_mean_over_sequences(inputs: torch.Tensor) -> None:
    flat = inputs.flatten(0, 1)
    hessian = hessian_of(inputs)
    torch.testing.assert_close(hessian.value, 2 * flat.T @ flat / len(inputs), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hessian.mean_square(), flat.square().mean(0))


@pytest.mark.parametrize("rule", ["portable", "gptq", "omniquant", "awq", "brecq"])
@pytest.mark.parametrize("group", [-1, 16])
def test_nearest_is_within_half_a_step(weight: torch.Tensor, rule: str, group: int) -> None:
    grid = minmax_grid(weight, bits=6, group=group, rule=rule)  # type: ignore[arg-type]
    error = (grid.nearest(weight) - weight).abs().unflatten(1, (-1, grid.group))
    # Rounding the zero to a whole number may cost another half step at the range's ends.
    assert (error <= 1.01 * grid.scale[..., None]).all()
    torch.testing.assert_close(grid.nearest_ste(weight), grid.nearest(weight))
    assert torch.equal(grid.nearest(grid.nearest(weight)), grid.nearest(weight))


def test_portable_grids_are_storable() -> None:
    positive = torch.rand(8, 32) + 1
    for symmetric in (False, True):
        grid = minmax_grid(positive, bits=4, symmetric=symmetric)
        assert 0 <= grid.zero.min() <= grid.zero.max() <= 15
        assert torch.equal(grid.scale.half().float(), grid.scale)
    assert minmax_grid(positive, bits=4, rule="omniquant").zero.max() < 0  # zero outside the range


def test_search_never_loses_against_the_full_range(weight: torch.Tensor) -> None:
    importance = torch.rand(64) + 0.1
    for bits in (2, 3, 4):
        full = minmax_grid(weight, bits=bits, group=16)
        best = search_grid(weight, bits=bits, group=16, importance=importance)
        errors = [((g.nearest(weight) - weight) ** 2 * importance) for g in (full, best)]
        sums = [e.unflatten(1, (-1, 16)).sum(-1) for e in errors]
        assert (sums[1] <= sums[0]).all()
        assert sums[1].sum() < sums[0].sum()


def test_a_search_takes_few_rows_at_a_time_on_a_cpu_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    find = grids.grid_from_range

    def counted(*ends: torch.Tensor, **options: Any) -> Grid:
        calls.append(ends[0].shape[0])
        return find(*ends, **options)

    monkeypatch.setattr(grids, "grid_from_range", counted)
    search_grid(torch.empty(4096, 8192, device="meta"), bits=4, group=128, candidates=2)
    assert len(calls) <= 2
    calls.clear()
    search_grid(torch.ones(16, 8192), bits=4, candidates=2)
    assert calls == [8, 8]


def test_gptq_beats_rounding_to_nearest(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    hessian = hessian_of(inputs)
    for rule in (GridRule(3), GridRule(2, group=16), GridRule(3, search="none", symmetric=True)):
        near = round_to_nearest(weight, rule, hessian.mean_square()).dequantize()
        ours = gptq(weight, hessian.value, rule, block=32)
        worse, better = (
            (inputs @ (w - weight).T).square().mean() for w in (near, ours.dequantize())
        )
        assert better < worse
        # The compensated columns, rounded, are the codes.
        assert torch.equal(ours.grid.codes(ours.compensated), ours.codes.float())


def test_pruned_weights_stay_zero_under_gptq(weight: torch.Tensor, inputs: torch.Tensor) -> None:
    keep = torch.rand(weight.shape) > 0.5
    pruned = weight * keep
    hessian = hessian_of(inputs).value
    kept = gptq(pruned, hessian, GridRule(4), keep=keep).dequantize()
    assert (kept[~keep] == 0).all()
    assert (gptq(pruned, hessian, GridRule(4)).dequantize()[~keep] != 0).any()


def test_gptq_without_correlation_is_rounding_to_nearest(weight: torch.Tensor) -> None:
    rule = GridRule(4, search="none")
    ours = gptq(weight, torch.eye(64), rule)
    assert torch.equal(ours.codes, round_to_nearest(weight, rule).codes)


def test_dead_inputs_and_few_tokens_do_not_stop_gptq(weight: torch.Tensor) -> None:
    x = torch.randn(1, 8, 64)
    x[..., 10] = 0
    hessian = hessian_of(x)
    ours = gptq(weight, hessian.value, GridRule(4))
    assert torch.isfinite(ours.dequantize()).all()
    assert (ours.dequantize()[:, 10] == 0).all()
    singular = torch.ones(8, 8)
    _, damping = inverse_cholesky(singular, 1e-9)
    assert damping > 1e-9
    with pytest.raises(ValueError, match="NaN or Inf"):
        inverse_cholesky(torch.full((4, 4), math.nan))


def test_gptq_refuses_what_it_cannot_store(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="static_groups"):
        gptq(weight, torch.eye(64), GridRule(4, group=16, search="none"), act_order=True)
    with pytest.raises(ValueError, match="straddle"):
        gptq(weight, torch.eye(64), GridRule(4, group=32, search="none"), block=48)
    with pytest.raises(ValueError, match="do not divide"):
        minmax_grid(weight, bits=4, group=48)
    for search in ("none", "weighted"):
        with pytest.raises(ValueError, match="64 inputs do not divide into groups of 128"):
            gptq(weight, torch.eye(64), GridRule(4, group=128, search=search))
    with pytest.raises(ValueError, match="mean squares"):
        GridRule(4, search="weighted")(weight)
    with pytest.raises(ValueError, match="no symmetric grid"):
        ends = torch.ones(1, 1)
        grid_from_range(-ends, ends, bits=4, group=1, symmetric=True, rule="awq")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_words_hold_codes_without_gaps(bits: int, dim: int) -> None:
    codes = torch.randint(2**bits, (64, 96), dtype=torch.uint8)
    words = pack_words(codes, bits=bits, dim=dim)
    assert words.shape[dim] == codes.shape[dim] * bits // 32
    back = unpack_words(words, bits=bits, count=codes.shape[dim], dim=dim)
    assert torch.equal(back, codes)
    line = torch.arange(8, dtype=torch.uint8)
    assert pack_words(line, bits=4).tolist() == [0x76543210]


def test_words_are_those_of_the_installed_compressed_tensors() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for bits in (2, 3, 4, 8):
        codes = torch.randint(2**bits, (24, 45))
        theirs = helpers.pack_to_int32((codes - 2 ** (bits - 1)).to(torch.int8), bits)
        assert torch.equal(pack_words(codes, bits=bits), theirs)


def quantize_all(model: torch.nn.Module, rule: GridRule) -> dict:
    quantized = {}
    for block, prefix in zip(find_blocks(model), block_names(model), strict=True):
        for name, linear in block_linears(block).items():
            weight = round_to_nearest(linear.weight.detach(), rule)
            quantized[f"{prefix}.{name}"] = weight
            linear.weight.data.copy_(weight.dequantize())
    return quantized


@pytest.mark.parametrize(
    ("bits", "group", "symmetric"), [(4, -1, False), (3, -1, False), (2, 32, False), (4, 32, True)]
)
def test_exports_reload_bit_equal(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny_llama(layers=2)
    quantized = quantize_all(model, GridRule(bits, group, symmetric, search="mse"))
    state = model.state_dict()

    folder = export_gptq(model, quantized, tmp_path / "gptq", checkpoint_format="gptq_v2")
    read = load_gptq(folder)
    assert all(torch.equal(read[name], state[name]) for name in read)
    assert set(state) - set(read) == {"lm_head.weight"}  # tied to the embedding

    pytest.importorskip("compressed_tensors")
    folder = export_compressed_tensors(model, quantized, tmp_path / "ct")
    config = transformers.CompressedTensorsConfig(dequantize=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32
    )
    theirs = again.state_dict()
    for name, value in state.items():
        assert torch.equal(theirs[name], value), name


def test_the_gptq_format_refuses_a_zero_of_zero(tmp_path: Path) -> None:
    model = tiny_llama(layers=1)
    with torch.no_grad():
        find_blocks(model)[0].mlp.up_proj.weight.abs_()
    quantized = quantize_all(model, GridRule(4, search="none"))
    with pytest.raises(ValueError, match="gptq_v2"):
        export_gptq(model, quantized, tmp_path)
    folder = export_gptq(model, quantized, tmp_path, checkpoint_format="gptq_v2")
    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert described["checkpoint_format"] == "gptq_v2"


def test_bytes_of_a_quantized_matrix() -> None:
    assert quantized_bytes(64, 128, bits=4) == 64 * 128 / 2 + 64 * 20 / 8
    assert quantized_bytes(64, 128, bits=3, group=32, symmetric=True) == 64 * 128 * 3 / 8 + 256 * 2


def test_activations_per_token_do_not_see_each_other() -> None:
    x = torch.randn(2, 3, 16)
    x[0, 0] *= 1000
    per_token = fake_quantize_activation(x, 8, "token")
    assert (per_token[1] - x[1]).abs().max() < 0.02
    assert (fake_quantize_activation(x, 8, "tensor")[1] - x[1]).abs().max() > 0.1
    assert torch.equal(fake_quantize_activation(x, 8, "none"), x)
    layer = torch.nn.Linear(16, 4)
    quantized = FakeQuantLinear(layer, bits=8)
    assert quantized.weight is layer.weight
    assert torch.equal(quantized(x), layer(per_token))
    assert quantized.state_dict().keys() == layer.state_dict().keys()


def test_lsq_has_the_papers_gradients() -> None:
    x = torch.tensor([[-3.0, -0.4, 0.26, 0.9, 5.0]], requires_grad=True)
    step = torch.tensor([[0.5]], requires_grad=True)
    y = lsq(x, step, bits=3)  # -4 .. 3
    assert y.tolist() == [[-2.0, -0.5, 0.5, 1.0, 1.5]]
    y.sum().backward()
    assert x.grad is not None
    assert step.grad is not None
    assert x.grad.tolist() == [[0, 1, 1, 1, 0]]
    by_hand = -4 + (-1 + 0.8) + (1 - 0.52) + (2 - 1.8) + 3
    assert step.grad.item() == pytest.approx(by_hand / math.sqrt(5 * 3), rel=1e-5)

"""All windows of a tiny Llama: codes, resuming, recoveries, rotation, attention."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

from cbq import state
from cbq.layers import CBQLinear, HardLinear
from cbq.output import load_quantized, save_quantized
from cbq.reconstruct import SignDescent, Window
from cbq.rotation import hadamard, rotate
from cbq.settings import preset
from cbq.start import observe
from papers_shared.language_models import capture_inputs, find_blocks, tiny_llama
from papers_shared.quantization import GridRule


def test_codes_reproduce_the_finished_model(quantized) -> None:
    assert len(quantized.weights) == 3 * 7
    for name, weight in quantized.weights.items():
        layer = quantized.model.get_submodule(name)
        assert isinstance(layer, HardLinear)
        assert torch.equal(layer.weight, weight.dequantize())
    assert not any(isinstance(m, CBQLinear) for m in quantized.model.modules())
    assert [(r["first"], r["last"]) for r in quantized.reports] == [(0, 1), (1, 2)]
    assert all(0 < r["top_token"] < 1 for r in quantized.reports)


def test_without_steps_the_presets_are_rtn_and_gptq(quantize_tiny) -> None:
    grids: dict = {}
    rtn, by_gptq = (quantize_tiny(preset=name, grids=grids) for name in ("rtn", "gptq"))
    model = tiny_llama()
    name = "model.layers.0.self_attn.q_proj"
    weight = model.get_submodule(name).weight.detach()
    assert torch.equal(rtn.weights[name].codes, grids[name].codes(weight).to(torch.uint8))
    assert torch.equal(rtn.weights[name].grid.scale, by_gptq.weights[name].grid.scale)
    assert (rtn.weights[name].codes != by_gptq.weights[name].codes).any()
    assert rtn.reports[0]["steps"] == 0


def test_start_scales_are_weighted_by_the_float_inputs(segments, quantize_tiny) -> None:
    grids: dict = {}
    quantize_tiny(preset="rtn", grids=grids)
    model, name = tiny_llama(), "model.layers.1.mlp.down_proj"
    seen = []
    layer = model.get_submodule(name)
    layer.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.stack(segments))
    squares = seen[0].flatten(0, 1).square().mean(0)
    grid = GridRule(4)(layer.weight.detach(), squares)
    close = (grid.scale - grids[name].scale).abs() < 1e-6
    assert close.float().mean() > 0.97  # ties of the search may fall the other way


class Killed(Exception):
    pass


def kill_after(window):
    def progress(done, total, what):
        if done == window:
            raise Killed

    return progress


@pytest.mark.parametrize(
    "changes",
    [{}, {"act_bits": 4, "scale_channels": True, "truncate": True, "refloor": True}],
    ids=["weights", "everything"],
)
def test_a_killed_and_resumed_run_gives_the_same_codes(
    changes, quantize_tiny, quantized, tmp_path
) -> None:
    whole = quantize_tiny(**changes) if changes else quantized
    with pytest.raises(Killed):
        quantize_tiny(**changes, work=tmp_path, progress=kill_after(1))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["window"] for line in lines] == [0]
    resumed = quantize_tiny(**changes, work=tmp_path)
    assert len(resumed.reports) == 2
    for name, weight in whole.weights.items():
        assert torch.equal(weight.codes, resumed.weights[name].codes), name
        assert torch.equal(weight.grid.scale, resumed.weights[name].grid.scale), name
    assert whole.act_factors == resumed.act_factors
    with pytest.raises(ValueError, match="another run"):
        quantize_tiny(**{**changes, "bits": 3}, work=tmp_path)


@pytest.mark.parametrize("format", ["compressed-tensors", "float"])
def test_finished_blocks_can_stay_on_disk(quantize_tiny, quantized, tmp_path, format) -> None:
    with pytest.raises(Killed):
        quantize_tiny(work=tmp_path / "work", offload=True, progress=kill_after(1))
    result = quantize_tiny(work=tmp_path / "work", offload=True)
    assert all(result.model.get_submodule(name).weight.is_meta for name in result.weights)
    assert all(torch.equal(w.codes, quantized.weights[n].codes) for n, w in result.weights.items())
    save_quantized(result, tmp_path / "out", kind=format)
    loaded = load_quantized(tmp_path / "out").state_dict()
    state = quantized.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    with pytest.raises(ValueError, match="name one"):
        quantize_tiny(offload=True)


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq_v2", "float"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_comes_to_the_codes_of_float32(
    quantize_tiny, tmp_path, format, dtype
) -> None:
    half = tiny_llama().to(dtype)
    whole = quantize_tiny(model=copy.deepcopy(half).float())
    result = quantize_tiny(model=half)
    assert {p.dtype for p in result.model.parameters()} == {dtype}
    for name, weight in whole.weights.items():
        assert torch.equal(weight.codes, result.weights[name].codes), name
    save_quantized(result, tmp_path, kind=format)
    loaded = load_quantized(tmp_path).state_dict()
    state = whole.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_write_that_fails_leaves_the_last_window_standing(
    quantize_tiny, quantized, tmp_path, monkeypatch
) -> None:
    save, calls = state.save_state_dict, []

    def full(entries, path):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        save(entries, path)

    monkeypatch.setattr(state, "save_state_dict", full)
    with pytest.raises(OSError, match="No space left"):
        quantize_tiny(work=tmp_path)
    monkeypatch.setattr(state, "save_state_dict", save)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"window": 1, "lo')  # all that the disk held of the next line
    resumed = quantize_tiny(work=tmp_path)
    name = "model.layers.2.mlp.up_proj"
    assert torch.equal(resumed.weights[name].codes, quantized.weights[name].codes)


def test_nan_in_a_window_is_tried_again_and_then_given_up(quantize_tiny, monkeypatch) -> None:
    loss, count = Window._loss, []

    def poisoned(times):
        def run(self, chosen, data, precision):
            value = loss(self, chosen, data, precision)
            count.append(precision)
            return value * (math.nan if len(count) <= times else 1.0)

        return run

    monkeypatch.setattr(Window, "_loss", poisoned(1))
    once = quantize_tiny(precision="bfloat16").reports[0]
    assert once["kept"]
    assert once["notes"] == ["NaN or Inf after 1 steps in bfloat16: again in float32"]
    assert count[:2] == ["bfloat16", "float32"]
    count.clear()
    monkeypatch.setattr(Window, "_loss", poisoned(10**9))
    never = quantize_tiny()
    assert not any(r["kept"] for r in never.reports)
    assert "codes from before it kept" in never.reports[0]["notes"][-1]
    start = quantize_tiny(preset="rtn")
    for name, weight in start.weights.items():
        assert torch.equal(weight.codes, never.weights[name].codes)


def test_float16_moves_codes_by_gradients_that_it_cannot_hold(quantize_tiny, monkeypatch) -> None:
    loss = Window._loss
    monkeypatch.setattr(Window, "_loss", lambda *arguments: 1e-7 * loss(*arguments))
    report = quantize_tiny(bits=2, precision="float16").reports[0]
    assert report["kept"]
    assert report["flipped"] > 0
    assert report["notes"] == []


def test_a_float_stream_that_overflows_float16_is_computed_in_float32(quantize_tiny) -> None:
    model = tiny_llama()
    for block in model.model.layers:
        block.mlp.up_proj.weight.data *= 3e3
        block.mlp.down_proj.weight.data *= 3e3
    result = quantize_tiny(model=model, precision="float16")
    assert "overflows in float16: its targets in float32" in result.reports[0]["notes"][0]
    assert all(math.isfinite(report["loss_end"]) for report in result.reports if report["kept"])
    assert any(report["kept"] for report in result.reports)


def test_layers_of_the_same_inputs_share_a_hessian(segments) -> None:
    model = tiny_llama()
    stream = capture_inputs(model, [s[None] for s in segments])
    block = model.model.layers[0]
    seen, _ = observe(
        block, stream.hidden, stream.arguments[0], hessians=True, device=torch.device("cpu")
    )
    hessians = {name.rpartition(".")[2]: hessian for name, hessian in seen.hessians.items()}
    assert hessians["q_proj"] is hessians["k_proj"] is hessians["v_proj"]
    assert hessians["gate_proj"] is hessians["up_proj"] is not hessians["q_proj"]
    assert len({id(hessian) for hessian in hessians.values()}) == 4


def test_held_out_segments_that_get_worse_bring_the_start_back(quantize_tiny, monkeypatch) -> None:
    values = iter([1.0, 0.5, 1.0, 2.0])
    monkeypatch.setattr(Window, "evaluate", lambda self, data: next(values))
    reports = quantize_tiny(held_out=0.25).reports
    assert [r["kept"] for r in reports] == [True, False]
    assert reports[1]["flipped"] == 0
    assert "worse" in reports[1]["notes"][0]


@pytest.mark.parametrize("changes", [{}, {"preset": "lora", "lr_rounding": 3e-2}])
def test_training_brings_the_loss_down(changes, quantize_tiny) -> None:
    report = quantize_tiny(bits=2, steps=24, **changes).reports[0]
    assert report["loss_end"] < 0.9 * report["loss_start"]
    assert report["flipped"] > 0
    assert report["notes"] == []


@pytest.mark.parametrize("trained", ["rounding", "steps"])
@pytest.mark.parametrize(("kind", "start"), [("best", "rtn"), ("lora", "gptq")])
def test_only_what_is_to_be_learned_moves(kind, start, trained, quantize_tiny) -> None:
    switches = {f"learn_{what}": what == trained for what in ("rounding", "steps")}
    rate = {"lr_rounding": 5e-2} if kind == "lora" else {}
    begun = quantize_tiny(preset=start)
    made = quantize_tiny(preset=kind, **switches, window=1, overlap=0, **rate)
    name = "model.layers.0.mlp.up_proj"
    same_scale = torch.equal(made.weights[name].grid.scale, begun.weights[name].grid.scale)
    same_codes = torch.equal(made.weights[name].codes, begun.weights[name].codes)
    assert (same_scale, same_codes) == (trained == "rounding", trained == "steps")


def test_best_takes_blocks_alone_below_4_bits_unless_told_otherwise() -> None:
    found = preset("best", bits=3), preset("best", bits=4), preset("best", bits=3, window=2)
    assert [(s.window, s.overlap) for s in found] == [(1, 0), (2, 1), (2, 1)]
    assert preset("lora", bits=2).window == 2


def test_sign_descent_moves_each_value_by_the_rate_over_the_steps() -> None:
    layer = nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    optimizer = SignDescent([{"params": [layer.weight], "lr": 0.25}])
    layer(torch.tensor([[3.0, -1e-3]])).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight.detach(), before - torch.tensor([[0.25, -0.25]]))


def test_a_budget_cuts_the_steps_and_says_what_of(quantize_tiny) -> None:
    reports = quantize_tiny(steps=50, budget=0.0).reports
    assert {r["steps"] for r in reports} == {4}
    assert "4 of 50 steps a window" in reports[0]["notes"][0]
    assert quantize_tiny(steps=2, budget=1e9).reports[0]["steps"] == 2


# ---- rotation and attention


@pytest.mark.parametrize("order", [1, 2, 8, 12, 20, 28, 36, 576, 1536])
def test_hadamard_matrices(order) -> None:
    matrix = hadamard(order)
    assert matrix.abs().eq(1).all()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


def test_no_hadamard_matrix_for_an_odd_order() -> None:
    assert hadamard(92) is None


@pytest.mark.parametrize("hidden", [64, 44])
def test_a_rotated_model_computes_the_same(segments, hidden) -> None:
    model = tiny_llama(hidden=hidden, heads=2, kv_heads=1)
    with torch.no_grad():
        for block in find_blocks(model):
            block.input_layernorm.weight.uniform_(0.5, 2)
        ids = torch.stack(segments)
        before = model(ids).logits
        old = model.get_submodule("model.layers.0.mlp.up_proj").weight.clone()
        rotate(model)
        after = model(ids).logits
    assert (after - before).abs().max() < 1e-4 * before.abs().max()
    assert not torch.allclose(old, model.get_submodule("model.layers.0.mlp.up_proj").weight)
    assert model.lm_head.weight is not model.model.embed_tokens.weight


def test_queries_keys_and_values_are_quantized_below_16_bits(segments, quantize_tiny) -> None:
    ids = torch.stack(segments)
    with torch.no_grad():
        plain, quantized = (
            quantize_tiny(preset="rtn", bits=8, act_bits=4, attention=on).model(ids).logits
            for on in (False, True)
        )
    assert (plain - quantized).abs().max() > 1e-4


def test_models_of_another_kind_are_refused(segments, quantize_tiny) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from cbq.pipeline import quantize

    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=97))
    with pytest.raises(ValueError, match=r"holds no nn\.Linear"):
        quantize(gpt2, segments, preset("rtn"))
    with pytest.raises(ValueError, match="several lengths"):
        quantize(tiny_llama(), [torch.ones(4).long(), torch.ones(5).long()], preset("rtn"))
    with pytest.raises(ValueError, match="more are needed"):
        quantize(tiny_llama(), [], preset("rtn"))

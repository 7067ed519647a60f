"""Checks of recorded pruning cases; ``transformer_compression.parity`` calls them by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from papers_shared.parity import (
    Part,
    fingerprint_error,
    name_seeded_state_dict,
    seeded_input,
    values_error,
)
from papers_shared.quantization import GridRule, Hessian
from transformer_compression.prune.context import H2OCache
from transformer_compression.prune.sparsegpt import sparsegpt
from transformer_compression.prune.taylor import (
    Member,
    channel_scores,
    group_scores,
    head_scores,
    lowest,
    pruned_count,
)
from transformer_compression.prune.tokens import evit_block
from transformer_compression.prune.tome import bipartite_matching, merge_weighted
from transformer_compression.prune.weights import (
    InputNorms,
    Pattern,
    magnitude_keep,
    wanda_keep,
    wanda_scores,
)

Case = Mapping[str, Any]
TOLERANCE = 1e-5
AFTER_CHOLESKY = 1e-4


def draw(case: Case, *sections: str) -> dict[str, Tensor]:
    """The case's tensors by their names without the tag, weights and inputs by their own rules."""
    found = {}
    for section in sections or ("inputs", "state"):
        for name, shape in case.get(section, {}).items():
            whole = tuple(shape)
            if section == "state" or name.endswith((".weight", ".bias")):
                value = name_seeded_state_dict({name: torch.zeros(whole)})[name]
            else:
                value = seeded_input(name, whole)
            found[name.partition(".")[2]] = value
    return found


def compare(ours: Any, recorded: Any) -> float:
    """Error of a value by the recording's rule: fingerprints, lists, single numbers."""
    if isinstance(recorded, Mapping):
        return fingerprint_error(ours, recorded)
    return values_error(ours, recorded)


def linear_and_inputs(case: Case) -> tuple[Tensor, Tensor]:
    """``lin.weight`` and ``x`` with the recipe's outlier columns."""
    if case["recipe"] != "x columns 5::16 times 6":
        raise ValueError(f"no reader for the recipe {case['recipe']!r}")
    tensors = draw(case)
    tensors["x"][..., 5::16] *= 6
    return tensors["lin.weight"], tensors["x"]


def output_error(weight: Tensor, new: Tensor, x: Tensor) -> Tensor:
    """Mean of ``(x W_new^T - x W^T)^2``."""
    return (x @ new.T - x @ weight.T).square().mean()


def _pattern(config: Case) -> Pattern:
    n, m = config["prunen"], config["prunem"]
    return Pattern(n / m, n, m) if m else Pattern(config["sparsity"])


def _sparsegpt(case: Case) -> Iterator[Part]:
    config, recorded = case["config"], case["outputs"]
    weight, x = linear_and_inputs(case)
    hessian = Hessian(weight.shape[1])
    for sequence in x:
        hessian.add(sequence[None])
    grid = None
    if "bits" in config:
        grid = GridRule(config["bits"], -1, config["sym"], rule="gptq", search="none")
    result = sparsegpt(
        weight,
        hessian.value,
        _pattern(config),
        block=config["blocksize"],
        damping=config["percdamp"],
        grid=grid,
    )
    ours = {
        "weight": result.weight,
        "zeros": int((result.weight == 0).sum()),
        "out_mse": output_error(weight, result.weight, x),
    }
    for name, value in recorded.items():
        yield name, compare(ours[name], value), 0 if name == "zeros" else AFTER_CHOLESKY


def _wanda(case: Case) -> Iterator[Part]:
    weight, x = linear_and_inputs(case)
    norms = InputNorms(weight.shape[1])
    for sequence in x:
        norms.add(sequence[None])
    new = weight * wanda_keep(weight, norms.value, _pattern(case["config"]))
    ours = {
        "scaler_row": norms.value,
        "metric": wanda_scores(weight, norms.value),
        "weight": new,
        "zeros": int((new == 0).sum()),
        "out_mse": output_error(weight, new, x),
    }
    for name, value in case["outputs"].items():
        yield name, compare(ours[name], value), 0 if name == "zeros" else TOLERANCE


def _magnitude(case: Case) -> Iterator[Part]:
    weight, x = linear_and_inputs(case)
    new = weight * magnitude_keep(weight, _pattern(case["config"]))
    ours = {
        "weight": new,
        "zeros": int((new == 0).sum()),
        "out_mse": output_error(weight, new, x),
    }
    for name, value in case["outputs"].items():
        yield name, compare(ours[name], value), 0 if name == "zeros" else TOLERANCE


def _tome(case: Case) -> Iterator[Part]:
    config, tensors = case["config"], draw(case)
    metric, x = tensors["tome.metric"], tensors["tome.x"]
    tokens = {"class_token": config["class_token"], "distill_token": config["distill_token"]}
    first = bipartite_matching(metric, config["r"], **tokens)
    assert first is not None
    x1, size1 = merge_weighted(first, x, torch.ones_like(x[..., :1]))
    second = bipartite_matching(first.merge(metric), config["r"], **tokens)
    assert second is not None
    x2, size2 = merge_weighted(second, x1, size1)
    ours = {
        "x1": x1,
        "size1": size1,
        "x2": x2,
        "size2": size2,
        "unmerged": first.unmerge(x1),
        "size1_row0": size1[0, :, 0],
    }
    for name, value in case["outputs"].items():
        yield name, compare(ours[name], value), TOLERANCE


def _evit(case: Case) -> Iterator[Part]:
    from timm.models.vision_transformer import Block

    config, tensors = case["config"], draw(case)
    block = Block(
        config["dim"],
        config["heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        norm_layer=partial(torch.nn.LayerNorm, eps=config["layer_norm_eps"]),  # type: ignore[arg-type]
    )
    x = tensors.pop("evit.x")
    block.load_state_dict({k.removeprefix("evit."): v for k, v in tensors.items()})
    with torch.no_grad():
        fused, index = evit_block(block.eval(), x, keep=config["keep"])
        dropped, _ = evit_block(block, x, keep=config["keep"], fuse=False)
    ours = {"fused": fused, "dropped": dropped, "kept_indices_row0": index[0]}
    for name, value in case["outputs"].items():
        yield name, compare(ours[name], value), 0 if "indices" in name else TOLERANCE


def _llm_pruner(case: Case) -> Iterator[Part]:
    config, tensors = case["config"], draw(case)

    def member(name: str, axis: int) -> Member:
        grads = tensors[f"lp.{name}.grads"]
        return Member(tensors[f"lp.{name}.weight"], grads.mean(0), grads.square().mean(0), axis)

    heads = {n: member(n, int(n == "o_proj")) for n in ("q_proj", "k_proj", "v_proj", "o_proj")}
    ffn = [member(n, int(n == "down_proj")) for n in ("gate_proj", "up_proj", "down_proj")]
    count, ratio = config["heads"], config["ratio"]
    for form, recorded in case["outputs"].items():
        by_head = head_scores(heads, kv_heads=count, form=form, reduction=config["group_reduction"])
        channels = group_scores([channel_scores(m, form) for m in ffn], config["group_reduction"])
        head_dim = config["hidden"] // count
        ours = {
            "heads": by_head,
            "channels": channels,
            "pruned_heads": lowest(by_head, pruned_count(config["hidden"], ratio) // head_dim),
            "pruned_channels": lowest(channels, pruned_count(len(channels), ratio)),
        }
        for name, value in recorded.items():
            exact = name.startswith("pruned")
            error = float(ours[name] != value) if exact else compare(ours[name], value)
            yield f"{form} {name}", error, 0 if exact else TOLERANCE


def _h2o(case: Case) -> Iterator[Part]:
    config, scores = case["config"], draw(case)["h2o.scores"]
    prompt = config["prompt"]
    cache = H2OCache(heavy=config["heavy"], recent=config["recent"])
    logits = 2 * scores[0, 0, :, :prompt, :prompt]
    future = torch.ones(prompt, prompt, dtype=torch.bool).triu(1)
    attention = logits.masked_fill(future, -torch.inf).softmax(-1)
    cache.update(attention)
    assert cache.positions is not None
    first = cache.positions
    for step in range(1, len(scores)):
        cached = cache.positions.shape[1] + 1
        cache.update((2 * scores[step, 0, :, :1, :cached]).softmax(-1))
    ours: dict[str, Any] = {
        "kept_positions_first": first,
        "kept_positions_last": cache.positions,
        "score": cache.scores,
    }
    for name, value in case["outputs"].items():
        if name == "score":
            yield name, compare(ours[name], value), TOLERANCE
        else:
            yield name, float(ours[name].tolist() != value), 0


KINDS: Mapping[str, Callable[[Case], Iterable[Part]]] = {
    "sparsegpt": _sparsegpt,
    "wanda": _wanda,
    "magnitude": _magnitude,
    "tome": _tome,
    "evit_block": _evit,
    "llm_pruner": _llm_pruner,
    "h2o": _h2o,
}

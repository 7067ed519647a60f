"""Rotations folded into the weights of a Llama: same function, activations without outliers.

Source: QuaRot's two free rotations (CBQ sheet 4.8): one orthogonal matrix over the residual stream,
one Hadamard matrix a head between values and output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from papers_shared.language_models import block_layout, check_norm, find_blocks

_PALEY = {12: (11, 1), 20: (19, 1), 28: (13, 2), 36: (17, 2)}  # order -> prime, construction


def hadamard(order: int) -> Tensor | None:
    """A Hadamard matrix of +-1 in float64; None where no construction here gives one.

    Sylvester's for powers of two, Paley's for 12, 20, 28, 36, and products with powers of two.
    """
    power = 1
    while order % (2 * power) == 0 and order // power not in _PALEY:
        power *= 2
    rest = order // power
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(power.bit_length() - 1):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    if rest == 1:
        return matrix
    if rest not in _PALEY:
        return None
    return torch.kron(matrix, _paley(*_PALEY[rest]))


def _paley(prime: int, construction: int) -> Tensor:
    residues = {i * i % prime for i in range(1, prime)}
    symbol = torch.tensor([0] + [1 if i in residues else -1 for i in range(1, prime)])
    index = torch.arange(prime)
    jacobsthal = symbol[(index[:, None] - index[None, :]) % prime].to(torch.float64)
    n = prime + 1
    border = torch.zeros(n, n, dtype=torch.float64)
    border[1:, 1:] = jacobsthal
    border[0, 1:] = 1
    border[1:, 0] = -1 if construction == 1 else 1
    eye = torch.eye(n, dtype=torch.float64)
    if construction == 1:
        return eye + border
    plus = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    minus = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
    return torch.kron(border, plus) + torch.kron(eye, minus)


def orthogonal(order: int, generator: torch.Generator) -> Tensor:
    """``diag(random signs) H / sqrt(n)`` in float64, or a random orthogonal matrix without an H."""
    matrix = hadamard(order)
    if matrix is None:
        draw = torch.randn(order, order, dtype=torch.float64, generator=generator)
        q, r = torch.linalg.qr(draw)
        return q * r.diagonal().sign()
    signs = torch.randint(0, 2, (order,), generator=generator) * 2 - 1
    return signs[:, None] * matrix / math.sqrt(order)


@torch.no_grad()
def rotate(model: Any, *, seed: int = 0) -> None:
    """Fold both free rotations into a Llama-like model, in place; computed in float64.

    Norm weights go into the linears behind them and become 1; tied embeddings are untied.

    Args:
        model: a causal language model with RMSNorm (Llama, Mistral, Qwen2, SmolLM).
        seed: of the signs.

    Raises:
        ValueError: blocks of another layout, or norms that are no RMSNorm (a LayerNorm would need
            its mean removed); nothing is changed then.
    """
    blocks = find_blocks(model)
    if any(block_layout(block) != "llama" for block in blocks):
        raise ValueError(f"{type(model).__name__}: rotation knows Llama-like models with RMSNorm")
    for block in blocks:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            _check_rms_norm(norm)
    _check_rms_norm(model.model.norm)
    generator = torch.Generator().manual_seed(seed)
    config, head = model.config, model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        config.tie_word_embeddings = False
    q = orthogonal(config.hidden_size, generator)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_head = orthogonal(width, generator)

    _fold_norm(model.model.norm, [head])
    for linear in (embedding, head):
        _set(linear.weight, linear.weight.double() @ q)
    for block in blocks:
        attention: Any = block.self_attn
        mlp: Any = block.mlp
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        _fold_norm(block.input_layernorm, readers)
        _fold_norm(block.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        for linear in (*readers, mlp.gate_proj, mlp.up_proj):
            _set(linear.weight, linear.weight.double() @ q)
        for linear in (attention.o_proj, mlp.down_proj):
            _set(linear.weight, q.T @ linear.weight.double())
            if linear.bias is not None:
                _set(linear.bias, q.T @ linear.bias.double())
        value, out = attention.v_proj, attention.o_proj
        rows = value.weight.double().unflatten(0, (-1, width))
        _set(value.weight, (per_head.T @ rows).flatten(0, 1))
        if value.bias is not None:
            _set(value.bias, (value.bias.double().unflatten(0, (-1, width)) @ per_head).flatten())
        columns = out.weight.double().unflatten(1, (-1, width))
        _set(out.weight, (columns @ per_head).flatten(1))


def _check_rms_norm(norm: Any) -> None:
    check_norm(norm, "a norm")
    ones = {name: torch.ones_like(value) for name, value in norm.named_parameters()}
    x = torch.ones_like(norm.weight)[None, None]
    # A LayerNorm takes the mean away, which a rotation does not keep.
    if list(ones) != ["weight"] or (functional_call(norm, ones, (x,)) - 1).abs().max() > 0.1:
        raise ValueError(f"{type(norm).__name__} is no RMSNorm without bias: rotation needs one")


def _fold_norm(norm: Any, linears: list[nn.Linear]) -> None:
    for linear in linears:
        _set(linear.weight, linear.weight.double() * norm.weight.double())
    norm.weight.fill_(1)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.dtype))

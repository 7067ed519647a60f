"""The decoder blocks of a causal language model, one after the other, on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class _Captured(Exception):
    """Ends a forward pass once the first block's inputs are known."""


@dataclass
class BlockStream:
    """What goes into a block: hidden states of every batch, and the block's other arguments.

    Attributes:
        hidden: one (B, T, D) a batch.
        arguments: one mapping a batch (mask, positions, rotary tables …); the same for all
            blocks.
    """

    hidden: list[Tensor]
    arguments: list[dict[str, Any]]


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the list that is as long as the config says.

    Raises:
        ValueError: there is none (or the model's config does not say how many blocks it has).
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(
        f"{type(model).__name__} has no list of {count} blocks; expected a causal language model "
        f"of transformers (Llama, Qwen2, OPT, GPT-NeoX …)"
    )


def block_linears(block: nn.Module) -> dict[str, nn.Linear]:
    """Name within the block -> linear layer."""
    return {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}


def block_names(model: nn.Module) -> list[str]:
    """The blocks' names in the model, such as ``model.layers.0``."""
    names = {module: name for name, module in model.named_modules()}
    return [names[block] for block in find_blocks(model)]


@torch.no_grad()
def capture_inputs(model: nn.Module, batches: Sequence[Tensor]) -> BlockStream:
    """What the first block gets for each batch of token ids.

    Args:
        model: a causal language model, in eval mode.
        batches: token ids (B, T) each.

    Raises:
        ValueError: no batches, or blocks of several kinds that get different masks.
    """
    if not batches:
        raise ValueError("no calibration batches were given")
    kinds = set(getattr(model.config, "layer_types", None) or ["one"])
    if len(kinds) > 1:
        raise ValueError(
            f"the blocks of this model have different masks ({', '.join(sorted(kinds))}); the walk "
            f"block by block supports models with one kind"
        )
    first = find_blocks(model)[0]
    device = next(model.parameters()).device
    stream = BlockStream([], [])

    def take(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        hidden = args[0] if args else kwargs.pop("hidden_states")
        stream.hidden.append(hidden.detach())
        stream.arguments.append(kwargs)
        raise _Captured

    # All arguments are captured by name: their list changed between transformers' versions.
    handle = first.register_forward_pre_hook(take, with_kwargs=True)
    try:
        for batch in batches:
            try:
                model(batch.to(device), use_cache=False)
            except _Captured:
                continue
    finally:
        handle.remove()
    return stream


def call_block(block: nn.Module, hidden: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Hidden states (B, T, D) after a block, whether it returns a tensor or a tuple."""
    out = block(hidden, **arguments)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def run_block(block: nn.Module, stream: BlockStream) -> BlockStream:
    """The stream after a block."""
    pairs = zip(stream.hidden, stream.arguments, strict=True)
    return BlockStream([call_block(block, h, a) for h, a in pairs], stream.arguments)


def observe_inputs(
    block: nn.Module,
    stream: BlockStream,
    observe: Callable[[str, Tensor], None],
    *,
    linears: Mapping[str, nn.Linear] | None = None,
) -> BlockStream:
    """Run a block and show what each of its linear layers gets.

    Args:
        block: one of ``find_blocks``.
        stream: its inputs.
        observe: called as ``observe(name, x)`` with x (B, T, in_features), a batch at a time.
        linears: which layers; default all of the block.

    Returns:
        the stream after the block.
    """

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, args: observe(name, args[0].detach())

    chosen = block_linears(block) if linears is None else linears
    handles = [m.register_forward_pre_hook(hook(name)) for name, m in chosen.items()]
    try:
        return run_block(block, stream)
    finally:
        for handle in handles:
            handle.remove()


def walk_blocks(
    model: nn.Module,
    batches: Sequence[Tensor],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Iterator[tuple[int, nn.Module, BlockStream]]:
    """Yield every block with its inputs, which have gone through the blocks before as they are now.

    The consumer may change the block in place; it is run again before the next one is yielded.

    Args:
        model: a causal language model; put into eval mode.
        batches: token ids (B, T) each.
        progress: called as ``progress(done, total, what)``.

    Yields:
        index, block, its inputs.
    """
    model.eval()
    stream = capture_inputs(model, batches)
    blocks = find_blocks(model)
    for index in range(len(blocks)):
        yield index, blocks[index], stream
        if index + 1 < len(blocks):
            stream = run_block(blocks[index], stream)
        progress(index + 1, len(blocks), "blocks")

"""ToMe: merge similar tokens in every block of a vision transformer, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

Mode = Literal["sum", "mean", "amax"]
Form = Literal["code", "paper"]


@dataclass(frozen=True)
class Matching:
    """Which tokens are merged into which: A are the even positions, B the odd ones.

    Attributes:
        unmerged: (B, A - r, 1), places within A of the tokens that stay.
        source: (B, r, 1), places within A of those that are merged.
        target: (B, r, 1), where within B they go.
        tokens: N before merging.
        distill_token: whether the two leading tokens stay in front.
        form: ``code``: the official ``unmerge`` reads the merged order as unmerged A, then B,
            also with a distillation token, whose order is another; ``paper``: undoes it.
    """

    unmerged: Tensor
    source: Tensor
    target: Tensor
    tokens: int
    distill_token: bool = False
    form: Form = "code"

    def merge(self, x: Tensor, mode: Mode = "mean") -> Tensor:
        """(B, N, C) -> (B, N - r, C); each B token reduced with all that are merged into it."""
        a, b = x[:, ::2], x[:, 1::2]
        width = x.shape[-1]
        stays = a.gather(1, self.unmerged.expand(-1, -1, width))
        comes = a.gather(1, self.source.expand(-1, -1, width))
        b = b.scatter_reduce(1, self.target.expand(-1, -1, width), comes, reduce=mode)
        if self.distill_token:
            return torch.cat([stays[:, :1], b[:, :1], stays[:, 1:], b[:, 1:]], 1)
        return torch.cat([stays, b], 1)

    def unmerge(self, y: Tensor) -> Tensor:
        """(B, N - r, C) -> (B, N, C); merged tokens receive the value of what they went into."""
        count, width = self.unmerged.shape[1], y.shape[-1]
        if self.distill_token and self.form == "paper":
            y = torch.cat([y[:, :1], y[:, 2 : count + 1], y[:, 1:2], y[:, count + 1 :]], 1)
        stays, b = y[:, :count], y[:, count:]
        out = y.new_zeros(len(y), self.tokens, width)
        out[:, 1::2] = b
        out.scatter_(1, (2 * self.unmerged).expand(-1, -1, width), stays)
        comes = b.gather(1, self.target.expand(-1, -1, width))
        return out.scatter_(1, (2 * self.source).expand(-1, -1, width), comes)


def bipartite_matching(
    metric: Tensor,
    r: int,
    *,
    class_token: bool = True,
    distill_token: bool = False,
    form: Form = "code",
) -> Matching | None:
    """The r pairs of most alike tokens, one of each pair at an even and one at an odd position.

    Args:
        metric: (B, N, C), the mean of the keys over the heads.
        r: pairs; no more than half of the tokens that are not protected.
        class_token: position 0 is never merged.
        distill_token: position 1 is never merged into.
        form: see ``Matching``.

    Returns:
        None where nothing is to be merged.

    Source: Bolya et al., Token Merging, arXiv 2210.09461; sheet 4.7.
    """
    tokens = metric.shape[1]
    r = min(r, (tokens - class_token - distill_token) // 2)
    if r <= 0:
        return None
    with torch.no_grad():
        unit = metric / metric.norm(dim=-1, keepdim=True)
        scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        if class_token:
            scores[:, 0] = -torch.inf
        if distill_token:
            scores[..., 0] = -torch.inf
        best, partner = scores.max(-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        source, unmerged = order[:, :r], order[:, r:]
        if class_token:
            unmerged = unmerged.sort(1).values
        target = partner[..., None].gather(1, source)
    return Matching(unmerged, source, target, tokens, distill_token, form)


def random_matching(
    metric: Tensor, r: int, generator: torch.Generator, *, class_token: bool = True
) -> Matching | None:
    """The same with drawn pairs: what merging is worth is its distance from this."""
    batch, tokens, _ = metric.shape
    r = min(r, (tokens - class_token) // 2)
    if r <= 0:
        return None
    a, b = (tokens + 1) // 2, tokens // 2
    draw = torch.rand(batch, a, generator=generator).to(metric.device)
    if class_token:
        draw[:, 0] = 2  # last in ascending order
    order = draw.argsort(1)[..., None]
    source, unmerged = order[:, :r], order[:, r:].sort(1).values
    target = torch.randint(0, b, (batch, r, 1), generator=generator).to(metric.device)
    return Matching(unmerged, source, target, tokens)


def merge_weighted(matching: Matching, x: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """``x' = sum(x size) / sum(size)`` of each merged token, and the new sizes.

    Args:
        matching: of these tokens.
        x: (B, N, C).
        size: (B, N, 1), how many patches each token stands for; 1 at first.
    """
    summed = matching.merge(x * size, "sum")
    sizes = matching.merge(size, "sum")
    return summed / sizes, sizes


def merge_schedule(r: int | tuple[int, float] | Sequence[int], layers: int) -> list[int]:
    """Tokens to merge in each layer.

    Args:
        r: the same in every layer; a pair (r, inflect), inflect from -1 (fewer and fewer) to 1;
            or a list, filled up with zeros.
        layers: how many.

    Raises:
        ValueError: an inflection outside -1 .. 1, or a list longer than the layers.
    """
    if isinstance(r, int):
        return [r] * layers
    if isinstance(r, tuple):
        mean, inflect = r
        if not -1 <= inflect <= 1:
            raise ValueError(f"inflect is {inflect}, expected -1 to 1")
        low = int(mean * (1 - inflect))
        step = (2 * mean - low - low) / max(1, layers - 1)
        return [int(low + step * i) for i in range(layers)]
    if len(r) > layers:
        raise ValueError(f"{len(r)} numbers for {layers} layers")
    return [*r, *[0] * (layers - len(r))]


def attend(attention: Any, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """timm's attention, with what it keeps to itself.

    Args:
        attention: of a timm vision transformer.
        x: (B, N, D).
        bias: added to the logits, broadcast to (B, heads, N, N).

    Returns:
        output (B, N, D), keys (B, heads, N, head_dim), probabilities (B, heads, N, N).
    """
    b, n, _ = x.shape
    qkv = attention.qkv(x).reshape(b, n, 3, attention.num_heads, attention.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    probabilities = logits.softmax(-1)
    out = (probabilities @ v).transpose(1, 2).reshape(b, n, -1)
    return attention.proj(attention.norm(out)), k, probabilities


@dataclass
class ToMeState:
    """What goes from block to block of one forward pass: the tokens' sizes."""

    r: list[int]
    proportional: bool
    distill_token: bool
    random: torch.Generator | None
    size: Tensor | None = None


def _tome_block(block: Any, index: int, state: ToMeState, x: Tensor) -> Tensor:
    if index == 0 or state.size is None:
        state.size = torch.ones_like(x[..., :1])
    bias = state.size.log()[:, None, None, :, 0] if state.proportional else None
    made, keys, _ = attend(block.attn, block.norm1(x), bias)
    x = x + block.ls1(made)
    metric, r = keys.mean(1), state.r[index]
    if state.random is not None:
        matching = random_matching(metric, r, state.random)
    else:
        matching = bipartite_matching(metric, r, distill_token=state.distill_token)
    if matching is not None:
        x, state.size = merge_weighted(matching, x, state.size)
    return x + block.ls2(block.mlp(block.norm2(x)))


def check_vit(model: Any) -> None:
    """Raise ValueError unless ``model`` is a timm vision transformer with plain attention."""
    blocks = getattr(model, "blocks", None)
    plain = blocks is not None and all(
        hasattr(b, "attn") and hasattr(b.attn, "qkv") and hasattr(b, "norm1") for b in blocks
    )
    if not plain:
        raise ValueError(
            f"{type(model).__name__}: expected a timm vision transformer (ViT, DeiT) with "
            f"blocks[i].norm1, attn.qkv, norm2, mlp"
        )


def replace_blocks(model: Any, forward: Callable[[Any, int, Tensor], Tensor]) -> None:
    """Let every block compute ``forward(block, index, x)``; parameters and names stay."""
    for index, block in enumerate(model.blocks):
        block.forward = partial(_call, forward, block, index)


def _call(
    forward: Callable[[Any, int, Tensor], Tensor],
    block: Any,
    index: int,
    x: Tensor,
    **_: object,
) -> Tensor:
    return forward(block, index, x)


def restore_blocks(model: Any) -> None:
    """Undo ``replace_blocks``."""
    for block in model.blocks:
        block.__dict__.pop("forward", None)


def apply_tome(
    model: Any,
    r: int | tuple[int, float] | Sequence[int] = 8,
    *,
    proportional: bool = True,
    random: torch.Generator | None = None,
) -> Any:
    """Make a timm vision transformer merge tokens, in place; weights stay as they are.

    Args:
        model: ViT or DeiT of timm.
        r: tokens merged in each block, see ``merge_schedule``.
        proportional: add log(size) of the key to the attention logits.
        random: merge drawn pairs instead (a baseline).

    Returns:
        the model.

    Raises:
        ValueError: another architecture.
    """
    check_vit(model)
    layers = len(model.blocks)
    distilled = getattr(model, "dist_token", None) is not None
    schedule = merge_schedule(r, layers)
    state = ToMeState(schedule, proportional, distilled, random)

    def forward(block: Any, index: int, x: Tensor) -> Tensor:
        return _tome_block(block, index, state, x)

    replace_blocks(model, forward)
    return model


def tokens_after(tokens: int, schedule: Sequence[int], *, protected: int = 1) -> list[int]:
    """Tokens that each block's MLP sees; the last entry leaves the network."""
    left = []
    for r in schedule:
        tokens -= max(0, min(r, (tokens - protected) // 2))
        left.append(tokens)
    return left


def tome_macs(
    *,
    width: int,
    depth: int,
    tokens: int,
    patch_inputs: int,
    classes: int,
    r: int | tuple[int, float] | Sequence[int] = 0,
    mlp_ratio: float = 4,
    protected: int = 1,
) -> int:
    """Multiply-accumulates of a vision transformer that merges r tokens in each block.

    Patch embedding, the blocks' matrix products with attention before and MLP after merging, and
    the classifier; matching is not counted.

    Source: sheet 4.7, the rule of its table.
    """
    total = (tokens - protected) * patch_inputs * width + width * classes
    before = tokens
    for after in tokens_after(tokens, merge_schedule(r, depth), protected=protected):
        total += 4 * before * width**2 + 2 * before**2 * width
        total += round(2 * mlp_ratio * after * width**2)
        before = after
    return total

"""Cross-block dependency: which blocks are reconstructed together, and in which order."""

from __future__ import annotations


def windows(blocks: int, *, size: int = 2, overlap: int = 1) -> list[range]:
    """The blocks of each window.

    Windows start at 0, stride, 2 stride, ... with stride = size - overlap; the last is cut at the
    last block. Their number is ``ceil((blocks - size) / stride) + 1``.

    Args:
        blocks: how many the model has.
        size: blocks a window.
        overlap: how many of them the next window optimises again.

    Raises:
        ValueError: no blocks, no stride, or an impossible overlap.
    """
    if blocks < 1 or size < 1 or not 0 <= overlap < size:
        raise ValueError(
            f"{blocks} blocks in windows of {size} with overlap {overlap}: expected at least one "
            "block, and an overlap from 0 to one less than the window"
        )
    stride = size - overlap
    count = max(0, -(-(blocks - size) // stride)) + 1
    return [range(i * stride, min(i * stride + size, blocks)) for i in range(count)]


def finished_after(plan: list[range]) -> list[range]:
    """For each window the blocks that no later one touches: they are hardened then, in order."""
    starts = [window.start for window in plan[1:]] + [plan[-1].stop]
    return [range(window.start, stop) for window, stop in zip(plan, starts, strict=True)]

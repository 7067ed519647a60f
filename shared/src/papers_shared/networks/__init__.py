"""Published super-resolution networks that several papers measure against.

    from papers_shared.networks import load
    rlfn = load("rlfn_x4")              # eval mode, published weights
    high = rlfn(low).clamp(0, 1)        # RGB (B, 3, H, W) in [0, 1] -> four times as large

``NETWORKS`` lists them; ``build(name)`` gives one with fresh weights, to count or to time.
"""

from papers_shared.networks.published import Published
from papers_shared.networks.registry import (
    NETWORKS,
    Entry,
    SuperResolver,
    build,
    describe,
    load,
)

__all__ = ["NETWORKS", "Entry", "Published", "SuperResolver", "build", "describe", "load"]

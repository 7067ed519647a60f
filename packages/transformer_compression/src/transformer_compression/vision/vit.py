"""Small vision transformers: timm's own class at CIFAR-10's size, and the one that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from papers_shared.checkpoints import file_metadata, load_state_dict, load_strict
from papers_shared.workspace import package_folder

SHIPPED = "vit_cifar10"
# The sheet's two sizes (section 5): 1,205,898 and 2,693,578 parameters.
SMALL_VITS: dict[str, dict[str, int]] = {
    "vit_128": {"embed_dim": 128, "depth": 6, "num_heads": 4},
    "vit_192": {"embed_dim": 192, "depth": 6, "num_heads": 3},
}


def build_vit(
    *,
    embed_dim: int = 128,
    depth: int = 6,
    num_heads: int = 4,
    image_size: int = 32,
    patch_size: int = 4,
    num_classes: int = 10,
    token_drop: float = 0.0,
    fused_attention: bool = False,
) -> Any:
    """timm's ``VisionTransformer`` for small pictures: (B, 3, S, S) -> logits (B, classes).

    Args:
        embed_dim: width of the tokens.
        depth: blocks.
        num_heads: attention heads.
        image_size: S, a multiple of ``patch_size``.
        patch_size: side of a patch; tokens = (S / patch_size)^2 + 1.
        num_classes: logits.
        token_drop: part of the patches that training leaves out.
        fused_attention: torch's fused attention, which on CPUs is slower at 65 tokens.
    """
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
        patch_drop_rate=token_drop,
    )
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.fused_attn = fused_attention
    return model


def path_of(name: str) -> Path:
    """The file of a shipped network, or the path itself."""
    shipped = package_folder("transformer_compression") / "weights" / f"{name}.safetensors"
    return shipped if shipped.is_file() else Path(name)


def load_vit(name: str = SHIPPED) -> Any:
    """A small vision transformer in eval mode, float32.

    Args:
        name: ``vit_cifar10`` (ships with the package), or a file that ``vision.train`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not say which network it holds.
    """
    path = path_of(name)
    state = load_state_dict(path)
    metadata = file_metadata(path)
    sizes = ("embed_dim", "depth", "num_heads")
    if missing := [size for size in sizes if size not in metadata]:
        raise ValueError(f"{path} does not say its {', '.join(missing)}; was it written by train?")
    options: dict[str, Any] = {size: int(metadata[size]) for size in sizes}
    model = build_vit(**options)
    load_strict(model, state, what=str(path))
    return model.eval()

"""ResShift's VQ autoencoders as diffusers' ``VQModel``, with the authors' key layout both ways.

f4 (3 channels, 8192 codes; CompVis latent-diffusion's) fits diffusers' class as it is; the face f8
has another number of blocks at each level, which ``VQAutoencoder`` adds. Encoding does not
quantise, decoding does. Source: dit_sr sheet 3.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import ModelMixin, VQModel  # noqa: F401  pipelines look ModelMixin up here
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UpDecoderBlock2D
from torch import Tensor, nn

from papers_shared.checkpoints import load_strict, unwrap


class VQAutoencoder(VQModel):
    """``VQModel`` whose levels may have different numbers of residual blocks.

    Args:
        in_channels: of the picture, in and out.
        block_out_channels: width of each level, shallowest first.
        level_blocks: residual blocks of each level in the encoder; the decoder has one more.
        latent_channels: of encoder output and decoder input.
        vq_embed_dim: channels of a code.
        num_vq_embeddings: codes.
        norm_num_groups: of all group norms.
        scaling_factor, norm_type, lookup_from_codebook, force_upcast: of ``VQModel``, whose code
            reads them from the config.

    Raises:
        ValueError: the two sequences differ in length.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        block_out_channels: tuple[int, ...] = (128, 256, 512),
        level_blocks: tuple[int, ...] = (2, 2, 2),
        latent_channels: int = 3,
        vq_embed_dim: int = 3,
        num_vq_embeddings: int = 8192,
        norm_num_groups: int = 32,
        scaling_factor: float = 1.0,
        norm_type: str = "group",
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
    ) -> None:
        levels = len(block_out_channels)
        if len(level_blocks) != levels:
            raise ValueError(
                f"{levels} widths {block_out_channels} need as many level_blocks, "
                f"got {level_blocks}"
            )
        # The parent registers its own arguments; register_to_config keeps only the outer ones.
        VQModel.__init__.__wrapped__(
            self,
            in_channels=in_channels,
            out_channels=in_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=block_out_channels,
            layers_per_block=level_blocks[0],
            latent_channels=latent_channels,
            num_vq_embeddings=num_vq_embeddings,
            norm_num_groups=norm_num_groups,
            vq_embed_dim=vq_embed_dim,
            scaling_factor=scaling_factor,
            norm_type=norm_type,
            lookup_from_codebook=lookup_from_codebook,
            force_upcast=force_upcast,
        )
        if len(set(level_blocks)) == 1:
            return
        groups = {"resnet_eps": 1e-6, "resnet_groups": norm_num_groups}
        before, after = block_out_channels[0], block_out_channels[-1]
        for i, (width, blocks) in enumerate(zip(block_out_channels, level_blocks, strict=True)):
            self.encoder.down_blocks[i] = DownEncoderBlock2D(
                before,
                width,
                num_layers=blocks,
                add_downsample=i < levels - 1,
                downsample_padding=0,
                **groups,
            )
            before = width
        for i in range(levels):
            width, blocks = block_out_channels[levels - 1 - i], level_blocks[levels - 1 - i]
            self.decoder.up_blocks[i] = UpDecoderBlock2D(
                after, width, num_layers=blocks + 1, add_upsample=i < levels - 1, **groups
            )
            after = width


def build(config: Mapping[str, Any]) -> VQAutoencoder:
    """The autoencoder of the authors' configuration (``embed_dim``, ``n_embed``, ``ddconfig``).

    Raises:
        ValueError: something that no released autoencoder has.
    """
    dd = dict(config["ddconfig"])
    if dd["double_z"] or dd["attn_resolutions"] or dd["in_channels"] != dd["out_ch"]:
        raise ValueError(
            "released autoencoders have no double_z, no attn_resolutions, and as many channels "
            f"out as in; got {dd}"
        )
    blocks = dd["num_res_blocks"]
    if isinstance(blocks, int):
        blocks = [blocks] * len(dd["ch_mult"])
    return VQAutoencoder(
        in_channels=dd["in_channels"],
        block_out_channels=tuple(dd["ch"] * mult for mult in dd["ch_mult"]),
        level_blocks=tuple(blocks),
        latent_channels=dd["z_channels"],
        vq_embed_dim=config["embed_dim"],
        num_vq_embeddings=config["n_embed"],
    )


F4: dict[str, Any] = {
    "embed_dim": 3,
    "n_embed": 8192,
    "ddconfig": {
        "double_z": False,
        "z_channels": 3,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [],
    },
}
F8_FACE: dict[str, Any] = {
    "embed_dim": 8,
    "n_embed": 4096,
    "ddconfig": {
        "double_z": False,
        "z_channels": 8,
        "resolution": 512,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 64,
        "ch_mult": [1, 2, 4, 8],
        "num_res_blocks": [1, 2, 3, 4],
        "attn_resolutions": [],
    },
}

# What follows a level's or the middle's prefix: diffusers' name -> the authors' name.
_PARTS = {
    ".mid_block.resnets.0.": ".mid.block_1.",
    ".mid_block.resnets.1.": ".mid.block_2.",
    ".mid_block.attentions.0.group_norm.": ".mid.attn_1.norm.",
    ".mid_block.attentions.0.to_q.": ".mid.attn_1.q.",
    ".mid_block.attentions.0.to_k.": ".mid.attn_1.k.",
    ".mid_block.attentions.0.to_v.": ".mid.attn_1.v.",
    ".mid_block.attentions.0.to_out.0.": ".mid.attn_1.proj_out.",
    ".conv_shortcut.": ".nin_shortcut.",
    ".conv_norm_out.": ".norm_out.",
}


def official_names(model: VQAutoencoder) -> dict[str, str]:
    """diffusers' name -> the authors' name, for every entry of the state dict."""
    levels = len(model.config.block_out_channels)
    parts = dict(_PARTS)
    for i in range(levels):
        # The authors count levels from the shallowest, also in the decoder.
        for way, level in (("down", i), ("up", levels - 1 - i)):
            parts[f".{way}_blocks.{i}.resnets."] = f".{way}.{level}.block."
            parts[f".{way}_blocks.{i}.{way}samplers.0."] = f".{way}.{level}.{way}sample."
    names = {}
    for name in model.state_dict():
        official = name
        for ours, theirs in parts.items():
            official = official.replace(ours, theirs)
        names[name] = official
    return names


def to_official(model: VQAutoencoder) -> dict[str, Tensor]:
    """The state dict in the authors' layout: attention as 1x1 convolutions."""
    out = {}
    for ours, theirs in official_names(model).items():
        value = model.state_dict()[ours]
        is_attention = ".mid.attn_1." in theirs and value.ndim == 2
        out[theirs] = value[:, :, None, None] if is_attention else value
    return out


def load_official(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> VQAutoencoder:
    """The autoencoder with weights in the authors' layout, in eval mode.

    Args:
        state_dict: of ``autoencoder_vq_f4.pth`` or ``ffhq512_vq_f8_dim8_face.pth``.
        config: ``F4``, ``F8_FACE``, or another of the authors' form.

    Raises:
        ValueError: names are missing, unexpected or of another shape.
    """
    state = dict(unwrap(state_dict))
    model = build(config)
    renamed = {}
    for ours, theirs in official_names(model).items():
        if theirs in state:
            value = state.pop(theirs)
            is_attention = ".mid.attn_1." in theirs and value.ndim == 4
            renamed[ours] = value[:, :, 0, 0] if is_attention else value
    load_strict(model, {**renamed, **state}, what="the autoencoder's state dict")
    return model.eval()


def freeze(module: nn.Module) -> nn.Module:
    """Eval mode, no gradients."""
    return module.eval().requires_grad_(False)

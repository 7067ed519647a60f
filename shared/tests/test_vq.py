"""The VQ autoencoders: sizes, the authors' keys there and back, where the codebook acts."""

import pytest
import torch

from papers_shared.complexity import count_parameters
from papers_shared.diffusion import vq

F8_LIKE = {
    "embed_dim": 4,
    "n_embed": 16,
    "ddconfig": {
        "double_z": False,
        "z_channels": 4,
        "resolution": 32,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2, 1, 1],
        "num_res_blocks": [1, 2, 1, 2],
        "attn_resolutions": [],
    },
}
F4_LIKE = {
    **F8_LIKE,
    "ddconfig": {**F8_LIKE["ddconfig"], "ch_mult": [1, 2, 1], "num_res_blocks": 2},
}
BOTH = pytest.mark.parametrize("config", [F4_LIKE, F8_LIKE], ids=["f4", "f8"])


def model_of(config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = vq.build(config).eval()
        # New codes lie closer together than rounding; spread them over the latents.
        torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


def on_meta(config):
    with torch.device("meta"):
        return vq.build(config)


def picture(side=32, seed=0):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(
    ("config", "parameters", "entries"),
    [(vq.F4, 55_322_782, 205), (vq.F8_FACE, 77_009_115, 285)],
    ids=["f4", "f8"],
)
def test_the_released_autoencoders_have_the_sheets_size(config, parameters, entries):
    model = on_meta(config)
    assert count_parameters(model) == parameters
    assert len(vq.to_official(model)) == entries
    assert count_parameters(on_meta(vq.F4).encoder) == 22_337_411


def test_the_faces_levels_have_one_to_four_blocks():
    model = on_meta(vq.F8_FACE)
    assert [len(block.resnets) for block in model.encoder.down_blocks] == [1, 2, 3, 4]
    assert [len(block.resnets) for block in model.decoder.up_blocks] == [5, 4, 3, 2]
    names = vq.to_official(model)
    assert "encoder.down.3.block.3.conv1.weight" in names
    assert "decoder.up.0.block.1.conv1.weight" in names  # the shallowest level, last to run
    assert "decoder.up.0.block.2.conv1.weight" not in names
    assert "decoder.up.3.upsample.conv.weight" in names
    assert "decoder.up.0.upsample.conv.weight" not in names


@BOTH
def test_the_authors_layout_goes_there_and_back(config):
    model = model_of(config)
    official = vq.to_official(model)
    assert len(official) == len(model.state_dict())
    assert official["encoder.mid.attn_1.q.weight"].ndim == 4  # a 1x1 convolution
    again = vq.load_official(official, config).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again[name]), name


@BOTH
@torch.no_grad()
def test_every_weight_lands_where_it_acts(config):
    """The decoded picture of a renamed state dict is that of the original."""
    model, z = model_of(config), torch.randn(1, 4, 4, 4)
    again = vq.load_official(vq.to_official(model), config)
    assert not again.training
    assert torch.equal(again.decode(z).sample, model.decode(z).sample)
    assert torch.equal(again.encode(picture()).latents, model.encode(picture()).latents)


@BOTH
@torch.no_grad()
def test_encoding_does_not_quantise_and_decoding_does(config):
    model = model_of(config)
    codes = model.quantize.embedding.weight
    z = model.encode(picture()).latents
    side = 32 >> len(config["ddconfig"]["ch_mult"]) - 1
    assert z.shape == (1, 4, side, side)
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    distances = torch.cdist(flat, codes)
    assert distances.min() > 1e-3  # no latent is a code
    nearest = codes[distances.argmin(1)].reshape(*z.shape[2:], 4).permute(2, 0, 1)[None]
    decoded = model.decode(z).sample
    torch.testing.assert_close(decoded, model.decode(nearest, force_not_quantize=True).sample)
    assert not torch.allclose(decoded, model.decode(z, force_not_quantize=True).sample, atol=1e-3)


@BOTH
@torch.no_grad()
def test_an_autoencoder_survives_saving(config, tmp_path):
    model = model_of(config)
    model.save_pretrained(tmp_path)
    again = vq.VQAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(picture()).latents, model.encode(picture()).latents)
    assert tuple(again.config.level_blocks) == model.config.level_blocks


def test_wrappers_prefixes_are_taken_off():
    official = vq.to_official(model_of(F4_LIKE))
    wrapped = {"state_dict": {f"module.{name}": value for name, value in official.items()}}
    vq.load_official(wrapped, F4_LIKE)


def test_a_state_dict_that_does_not_fit_is_refused():
    official = vq.to_official(model_of(F4_LIKE))
    less = {name: v for name, v in official.items() if name != "quant_conv.bias"}
    with pytest.raises(ValueError, match=r"autoencoder's state dict.*1 missing \(quant_conv.bias"):
        vq.load_official(less, F4_LIKE)
    with pytest.raises(ValueError, match=r"1 unexpected \(loss.weight"):
        vq.load_official({**official, "loss.weight": torch.zeros(1)}, F4_LIKE)
    with pytest.raises(ValueError, match="of another shape"):
        vq.load_official(official, {**F4_LIKE, "n_embed": 32})


@pytest.mark.parametrize(
    "change", [{"double_z": True}, {"attn_resolutions": [16]}, {"out_ch": 1}], ids=str
)
def test_what_no_released_autoencoder_has_is_refused(change):
    with pytest.raises(ValueError, match="released autoencoders have no double_z"):
        vq.build({**F4_LIKE, "ddconfig": {**F4_LIKE["ddconfig"], **change}})


def test_as_many_blocks_as_levels():
    with pytest.raises(ValueError, match="3 widths"):
        vq.VQAutoencoder(level_blocks=(1, 2))


def test_a_frozen_module_asks_for_no_gradients():
    frozen = vq.freeze(torch.nn.Sequential(torch.nn.Linear(2, 2)).train())
    assert not frozen.training
    assert not any(p.requires_grad for p in frozen.parameters())

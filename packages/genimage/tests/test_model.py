"""Networks: the sheet's counts are tested through the recording; here what it does not hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from genimage.detectors import Detector, load_detector, make_detector, preset_of, two_logits
from genimage.model import VARIANTS, Config, build
from genimage.official import load_official, load_weights_into, swin_names
from genimage.parity import checks
from genimage.xception import Xception
from papers_shared.checkpoints import save_state_dict
from papers_shared.parity import _run_case

GOLDEN = Path(__file__).parent / "golden" / "genimage.json"
# The full-size counts take most of the time; tests/test_parity.py of the workspace runs them all.
CASES = {
    name: run
    for name, run in checks(json.loads(GOLDEN.read_text(encoding="utf-8")))
    if not name.startswith("full_size") and name != "f3net"
}


@pytest.mark.parametrize("case", CASES)
def test_a_recorded_case_agrees(case: str) -> None:
    line = _run_case("genimage", case, CASES[case])
    assert line.status == "PASS", str(line)


def test_an_unknown_section_or_kind_of_a_recording_fails() -> None:
    for name, run in checks({"news": {}, "cases": {"x": {"kind": "poem"}}}):
        assert _run_case("genimage", name, run).status == "FAIL"


def test_a_changed_value_of_a_recording_fails() -> None:
    recording = json.loads(GOLDEN.read_text(encoding="utf-8"))
    recording["cases"] = {"spec": recording["cases"]["spec"]}
    recording["cases"]["spec"]["logits"]["0"][0][0] += 0.01
    ((_, run),) = list(checks({"cases": recording["cases"]}))
    assert _run_case("genimage", "spec", run).status == "FAIL"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"arch": "resnet50", "num_classes": 1}, "CNNSpot"),
        ({"arch": "resnet34", "num_classes": 2}, "Spec"),
        ({"arch": "resnet18_gram"}, "GramNet"),
        ({"img_width": 299}, "F3Net"),
        ({"window_size": 7, "embed_dim": 96}, "SwinTransformer"),
        ({"model": "resnet50"}, "timm"),
        ({"class": "Spec", "config": {"arch": "resnet34"}}, "Spec"),
    ],
)
def test_the_class_is_told_by_itself_or_by_the_options(options, expected) -> None:
    assert Config.of(options).class_name == expected


@pytest.mark.parametrize("options", [{}, {"class": "DIRE"}, {"depth": 3}])
def test_an_unknown_class_is_refused(options) -> None:
    with pytest.raises(ValueError, match="one of timm"):
        Config.of(options)


def test_f3net_takes_299_pixels_only() -> None:
    with pytest.raises(ValueError, match="299"):
        build({"class": "F3Net", "img_width": 224, "img_height": 224})


def test_the_authors_labels_become_ours() -> None:
    native = torch.tensor([[3.0, 1.0]])
    assert two_logits(native, preset_of("spec")).tolist() == [[1.0, 3.0]]  # theirs: real is 1
    assert two_logits(native, preset_of("resnet50")).tolist() == [[3.0, 1.0]]
    assert two_logits(native[:, :1], preset_of("cnnspot")).tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("name", ["mini_resnet", "mini_cnnspot", "mini_spec", "mini_gramnet"])
def test_a_detector_gives_probabilities_and_is_read_back_equal(name, make_picture, tmp_path):
    detector = make_detector(name, seed=3).eval()
    pictures = [make_picture(i, size) for i, size in enumerate([(32, 32), (50, 40), (20, 90)])]
    found = detector.judge(pictures)
    assert all(0 <= p <= 1 for p in found)
    path = tmp_path / "x.safetensors"
    save_state_dict(detector.network.state_dict(), path, metadata=detector.metadata())
    assert load_detector(path).judge(pictures) == pytest.approx(found, abs=1e-6)


def test_several_crops_of_a_picture_are_averaged(make_picture) -> None:
    preset = preset_of("mini_resnet")
    many = type(preset)(preset.config, type(preset.geometry)(32, crops=4), preset.pixels)
    detector = Detector(many).eval()
    images = detector.preprocess(make_picture(0, (70, 70)))
    assert images.shape == (4, 3, 32, 32)
    single = torch.stack([detector.margin(image[None])[0] for image in images])
    assert detector.margin(images[None])[0].item() == pytest.approx(single.mean().item(), abs=1e-5)


def test_a_checkpoint_without_a_name_needs_one(tmp_path) -> None:
    detector = make_detector("mini_cnnspot")
    torch.save({"model": detector.network.state_dict()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="--detector"):
        load_detector(tmp_path / "x.pth")
    assert load_detector(tmp_path / "x.pth", detector="mini_cnnspot").facts == {}
    with pytest.raises(ValueError, match="does not fit"):
        load_detector(tmp_path / "x.pth", detector="mini_spec")


def test_swin_names_move_the_downsampling_and_drop_buffers() -> None:
    state = dict.fromkeys(
        ["layers.0.downsample.norm.weight", "head.weight", "layers.0.blocks.1.attn_mask"],
        torch.zeros(1),
    )
    assert set(swin_names(state)) == {"layers.1.downsample.norm.weight", "head.fc.weight"}


def test_all_presets_of_timm_and_probes_are_checked_by_name() -> None:
    assert preset_of("timm:resnet18").config.class_name == "timm"
    assert preset_of("probe:tf_efficientnet_lite0").pixels == "efficientnet"
    for wrong in ("resnet51", "timm:no_such_model", "clip:x"):
        with pytest.raises(ValueError, match=r"no model|no detector"):
            preset_of(wrong)


def test_every_variant_is_a_class_of_ours() -> None:
    assert {config.class_name for config in VARIANTS.values()} <= {
        *("timm", "CNNSpot", "Spec", "GramNet", "F3Net")
    }


def test_a_probe_trains_its_last_layer_only() -> None:
    network = build({"class": "Probe", "encoder": "resnet18"}).train()
    trained = [n for n, p in network.named_parameters() if p.requires_grad]
    assert trained == ["head.weight", "head.bias"]
    assert not network.encoder.training


def test_gramnet_starts_from_a_whole_trunk_and_keeps_the_rest_fresh(tmp_path) -> None:
    config, path = VARIANTS["mini_gramnet"], tmp_path / "resnet.pth"
    trunk = build(VARIANTS["mini_resnet"]).state_dict()
    # An older file, without counts of batches.
    trunk = {k: v + 1 for k, v in trunk.items() if not k.endswith("num_batches_tracked")}
    torch.save(trunk, path)
    network = build(config)
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    load_weights_into(network, path, config)
    for name, value in network.state_dict().items():
        assert torch.equal(value, trunk.get(name, fresh[name])), name
    del trunk["layer3.0.conv1.weight"]
    torch.save(trunk, path)
    with pytest.raises(ValueError, match="or the trunk"):
        load_weights_into(network, path, config)


def test_f3net_starts_both_trunks_from_one_xception(tmp_path) -> None:
    trunk = Xception().state_dict()
    # Files of Xception hold matrices, and a classifier.
    stored = {k: v[:, :, 0, 0] if "pointwise" in k else v for k, v in trunk.items()}
    torch.save(stored | {"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "xception.pth")
    network = build(VARIANTS["f3net"])
    load_weights_into(network, tmp_path / "xception.pth", VARIANTS["f3net"])
    images = torch.randn(1, 3, 9, 9)
    expected = torch.nn.functional.conv2d(images, trunk["conv1.weight"])
    for part, times in ((network.fad_excep, 4), (network.lfs_excep, 2)):
        found = torch.nn.functional.conv2d(images.repeat(1, times, 1, 1), part.conv1.weight)
        assert torch.allclose(found, expected, atol=1e-5)
        rest = part.state_dict()
        assert all(torch.equal(rest[k], v) for k, v in trunk.items() if k != "conv1.weight")


def test_an_official_checkpoint_must_fit_whole() -> None:
    state = build(VARIANTS["mini_gramnet"]).state_dict()
    state.pop("scale.scale")
    with pytest.raises(ValueError, match="scale"):
        load_official(state, VARIANTS["mini_gramnet"])

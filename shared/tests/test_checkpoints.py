"""Other people's files are opened safely; our own are written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from papers_shared import checkpoints
from papers_shared.checkpoints import (
    atomic_path,
    load_file,
    load_state_dict,
    load_strict,
    save_state_dict,
    unwrap,
)


class RunsCode:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_runs_code_is_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / "evil.pth"
    content = {"state_dict": RunsCode(trap)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"refused.*mkdir"):
        load_file(file)
    assert not trap.exists()


def test_a_truncated_file_or_a_text_is_no_checkpoint(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"w": torch.zeros(1000)}, whole)
    for name, content in {"cut.pth": whole.read_bytes()[:500], "text.pth": b"hello\n"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_file(tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match="safetensors"):
        load_file(tmp_path / "cut.safetensors")


def test_a_wrong_checksum_is_refused_before_opening(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    torch.save({"w": torch.ones(2)}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_file(file, sha256=sha256)["w"].sum() == 2
    with pytest.raises(ValueError, match=sha256):
        load_file(file, sha256="0" * 64)


def test_a_namespace_beside_the_weights_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "net.pth"
    torch.save({"args": argparse.Namespace(lr=0.1), "model": {"w": torch.ones(2)}}, file)
    assert load_file(file)["args"].lr == 0.1
    assert list(load_state_dict(file)) == ["w"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"params": {}, "params_ema": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model": {f"_orig_mod.{k}": v for k, v in s.items()}},
    ],
)
def test_the_usual_containers_are_unwrapped(wrap) -> None:
    state = {"a.weight": torch.ones(2), "b": torch.zeros(1)}
    assert list(unwrap(wrap(state))) == ["a.weight", "b"]


def test_no_state_dict_is_a_clear_error() -> None:
    for content in ({"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}):
        with pytest.raises(ValueError, match="no state dict"):
            unwrap(content)
    with pytest.raises(ValueError, match="no entry 'ema'"):
        unwrap({"params": {}}, key="ema")


def test_strict_loading_lists_what_differs_and_changes_nothing() -> None:
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(ValueError) as error:
        load_strict(model, {"weight": torch.zeros(3, 5), "scale": torch.zeros(1)})
    text = str(error.value)
    assert "1 missing (bias)" in text
    assert "1 unexpected (scale)" in text
    assert "weight is (3, 5), expected (3, 2)" in text
    assert torch.equal(model.weight, before)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("power cut")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode & stat.S_IRUSR


def test_an_output_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another output folder"):
        save_state_dict({"w": torch.ones(1)}, tmp_path / "file" / "model.safetensors")


def test_a_disk_that_takes_no_more_is_an_oserror(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: .*too large"):
            save_state_dict({"w": torch.ones(1000)}, tmp_path / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_convert_keeps_the_metadata_and_halves_floats_if_asked(tmp_path: Path) -> None:
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    state = {"weight": torch.tensor([1.0, 2.5]), "index": torch.tensor([3, 4])}
    checkpoints.save_state_dict(state, source, metadata={"network": "small"})
    assert checkpoints.main(["convert", str(source), str(target), "--half"]) == 0
    halved = checkpoints.load_state_dict(target)
    assert (halved["weight"].dtype, halved["index"].dtype) == (torch.float16, torch.int64)
    assert torch.equal(halved["weight"].float(), state["weight"])
    assert checkpoints.file_metadata(target)["network"] == "small"


def test_convert_writes_safetensors(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, target = tmp_path / "a.pth", tmp_path / "a.safetensors"
    shared = torch.arange(4.0)
    torch.save({"state_dict": {"module.a": shared, "module.b": shared[:2]}}, source)
    assert checkpoints.main(["convert", str(source), str(target)]) == 0
    assert torch.equal(load_state_dict(target)["b"], shared[:2])
    assert checkpoints.main(["show", str(target)]) == 0
    assert "b  (2,)  float32" in capsys.readouterr().out
    assert checkpoints.main(["show", str(tmp_path / "none.pth")]) == 2

"""Named files: found in order, verified before use, never overwritten."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from papers_shared import assets

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of one asset in two forms, an empty mirror, an empty cache."""
    asset = assets.Asset(
        "net",
        title="a network",
        licence="MIT",
        forms=(
            assets.Form("mirror", (assets.File("weights/net.bin", sha256=SHA256),)),
            assets.Form(
                "original", (assets.File("net.tar", sha256=SHA256, url="https://x/net.tar"),)
            ),
        ),
    )
    monkeypatch.setattr(assets, "catalogue", lambda: {"net": asset})
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv(assets.MIRROR_VARIABLE, str(folder))
    monkeypatch.setenv(assets.CACHE_VARIABLE, str(tmp_path / "cache"))
    assets._by_name.cache_clear()
    return folder


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_mirror_is_found_by_path_or_by_base_name(mirror: Path) -> None:
    elsewhere = put(mirror / "deep" / "down" / "net.bin")
    assert assets.fetch("net").path == elsewhere
    assets._by_name.cache_clear()
    first = put(mirror / "weights" / "net.bin")
    found = assets.fetch("net")
    assert found.path == first
    assert found.checksums == {"net.bin": f"sha256:{SHA256}"}


def test_the_explicit_path_comes_first(mirror: Path, tmp_path: Path) -> None:
    put(mirror / "weights" / "net.bin")
    own = put(tmp_path / "own" / "net.bin")
    assert assets.fetch("net", path=own).path == own
    assert assets.fetch("net", path=own.parent).path == own


def test_another_form_is_taken_where_the_first_is_missing(mirror: Path, tmp_path: Path) -> None:
    put(tmp_path / "cache" / "net" / "net.tar")
    assert assets.fetch("net", download=False).form == "original"


def test_a_missing_asset_names_its_file_address_and_place(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(assets.AssetMissing) as error:
        assets.fetch("net", download=False)
    text = str(error.value)
    for part in ("net.bin", "https://x/net.tar", str(tmp_path / "cache"), "PAPERS_MIRROR"):
        assert part in text
    assert "\n" not in text


def test_a_corrupt_file_is_refused_with_both_checksums_and_left_alone(mirror: Path) -> None:
    bad = put(mirror / "weights" / "net.bin", b"changed")
    with pytest.raises(assets.AssetCorrupt) as error:
        assets.fetch("net")
    assert SHA256 in str(error.value)
    assert hashlib.sha256(b"changed").hexdigest() in str(error.value)
    assert bad.read_bytes() == b"changed"


def test_a_changed_file_is_verified_again(mirror: Path) -> None:
    path = put(mirror / "weights" / "net.bin")
    assets.fetch("net")
    path.write_bytes(b"weighty")  # the same size, another time stamp or not
    import os

    os.utime(path, ns=(1, 1))
    with pytest.raises(assets.AssetCorrupt):
        assets.fetch("net")


def test_a_mirror_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("/no/such/folder", "relative"):
        monkeypatch.setenv(assets.MIRROR_VARIABLE, value)
        with pytest.raises(ValueError, match="PAPERS_MIRROR"):
            assets.mirrors()


def test_an_unknown_name_is_answered_with_the_nearest(mirror: Path) -> None:
    with pytest.raises(ValueError, match="did you mean net"):
        assets.fetch("nett")


def test_a_folder_asset_is_verified_by_its_listing(mirror: Path) -> None:
    put(mirror / "set" / "a.png", b"1")
    put(mirror / "set" / "b.png", b"2")
    file = assets.File("set", glob="*.png", sha256=assets.folder_digest(mirror / "set", "*.png"))
    assert assets._verify(mirror / "set", file).startswith("sha256:")
    put(mirror / "set" / "c.png", b"3")
    with pytest.raises(assets.AssetCorrupt):
        assets._verify(mirror / "set", file)


def test_a_catalogue_entry_needs_known_keys_and_checksums(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.yaml"
    for text, message in (
        ("net: {title: t, licence: l, forms: {m: {files: [{path: a}]}}}", "checksum"),
        ("net: {forms: {m: {files: [{path: a, md5: b, unverified: true}]}}}", "or else unverified"),
        ("net: {title: t, licence: l, form: {}}", "no forms"),
        ("net: {title: t, licence: l, forms: {m: {files: [{path: a, sha: b}]}}}", "unknown key"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            assets.load_catalogue(path)


def test_a_file_without_a_known_checksum_is_used_but_never_downloaded(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = assets.File("free.pth", unverified=True, url="https://x/free.pth")
    asset = assets.Asset("free", title="t", licence="l", forms=(assets.Form("original", (file,)),))
    monkeypatch.setattr(assets, "catalogue", lambda: {"free": asset})
    monkeypatch.setattr(assets, "_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(assets.AssetMissing, match=r"https://x/free\.pth"):
        assets.fetch("free")
    put(mirror / "free.pth")
    assets._by_name.cache_clear()
    assert assets.fetch("free").checksums == {"free.pth": f"sha256:{SHA256} (not verified)"}


def test_every_catalogued_asset_says_its_licence() -> None:
    assert all(asset.licence and asset.title for asset in assets.catalogue().values())


def test_the_command_line_finds_an_asset(mirror: Path, capsys: pytest.CaptureFixture) -> None:
    path = put(mirror / "weights" / "net.bin")
    assert assets.main(["where", "net"]) == 0
    assert str(path) in capsys.readouterr().out
    assert assets.main(["where", "nett"]) == 2
    assert "did you mean" in capsys.readouterr().err

"""GenImage's folders: ``<generator>[/<inner>][/{train,val}]/{ai,nature}/<files>``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genimage.pictures import SUFFIXES

LABELS = {"nature": 0, "ai": 1}
MODES = ("train", "val")
# As the paper's tables name and order them, each with what its folders are called.
GENERATORS = {
    "Midjourney": ("midjourney", "imagenet_midjourney"),
    "SD V1.4": ("stable_diffusion_v_1_4", "imagenet_ai_0419_sdv4", "sdv1.4", "sdv4"),
    "SD V1.5": ("stable_diffusion_v_1_5", "imagenet_ai_0424_sdv5", "sdv1.5", "sdv5"),
    "ADM": ("adm", "imagenet_ai_0508_adm"),
    "GLIDE": ("glide", "imagenet_glide"),
    "Wukong": ("wukong", "imagenet_ai_0424_wukong"),
    "VQDM": ("vqdm", "imagenet_ai_0419_vqdm"),
    "BigGAN": ("biggan", "imagenet_ai_0419_biggan"),
}
_ALIASES = {
    alias: name for name, aliases in GENERATORS.items() for alias in (name.lower(), *aliases)
}
_CLASS = re.compile(r"^(\d{1,3})_")


def canonical(name: str) -> str:
    """The tables' name of a generator given by it or by its folder; others stay as they are."""
    return _ALIASES.get(name.lower(), name)


@dataclass(frozen=True)
class Place:
    """What a file's path says.

    Attributes:
        subset: the generator whose folder holds the file, real ones too.
        mode: ``train`` or ``val`` (which the folders without either count as).
        label: 0 real, 1 generated.
        class_id: ImageNet class 0..999 by the file's name, or None.
    """

    subset: str
    mode: str
    label: int
    class_id: int | None


def place_of(path: PurePosixPath, *, root_name: str) -> Place | None:
    """What a path relative to the data's root says; None where it is not of the layout.

    Args:
        path: of a file.
        root_name: the subset's name where the root itself is a generator's folder.
    """
    *folders, name = path.parts
    if not folders or folders[-1].lower() not in LABELS:
        return None
    label = LABELS[folders.pop().lower()]
    mode = folders.pop().lower() if folders and folders[-1].lower() in MODES else "val"
    if len(folders) > 2:
        return None
    subset = canonical(folders[0] if folders else root_name)
    found = _CLASS.match(name) if label else None
    return Place(subset, mode, label, int(found[1]) if found else None)


def walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders of pictures under ``root`` with their files, both sorted, one folder at a time.

    Yields:
        folder relative to the root, as POSIX, and names of files with a picture's suffix.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder; expected GENERATOR/{{train,val}}/{{ai,nature}}/ below it"
        )
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        if os.path.basename(folder).lower() in LABELS:
            names = sorted(f for f in files if os.path.splitext(f)[1].lower() in SUFFIXES)
            yield Path(folder).relative_to(root).as_posix(), names

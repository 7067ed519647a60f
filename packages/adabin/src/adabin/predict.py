"""``adabin predict photo.png``: the likeliest classes of photos."""

from __future__ import annotations

from adabin.config import PredictConfig
from adabin.pipeline import Classifier
from papers_shared.images import list_images, read_image


def main(config: PredictConfig) -> int:
    """Print the classes of every photo; an unreadable one is an error before anything runs."""
    paths = [
        path
        for given in config.photos
        for path in (list_images(given) if given.is_dir() else [given])
    ]
    images = [read_image(path) for path in paths]
    classifier = Classifier.from_checkpoint(
        config.checkpoint, variant=config.variant, device=config.device
    )
    for path, image in zip(paths, images, strict=True):
        print(path)
        for guess in classifier(image, top=config.top):
            print(f"  {100 * guess.probability:5.1f} %  {guess.label}")
    return 0

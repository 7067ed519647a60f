"""``adabin predict photo.png``: the likeliest classes of photos."""

from __future__ import annotations

from adabin.config import PredictConfig
from adabin.pipeline import Classifier
from papers_shared.images import list_images, read_image


def main(config: PredictConfig) -> int:
    """Print the classes of every photo.

    Photos are read one at a time: all of them at full size may not fit into memory.

    Raises:
        FileNotFoundError, ValueError: a photo cannot be read; those before it are printed.
    """
    paths = [
        path
        for given in config.photos
        for path in (list_images(given) if given.is_dir() else [given])
    ]
    classifier = Classifier.from_checkpoint(
        config.checkpoint, variant=config.variant, device=config.device
    )
    for path in paths:
        guesses = classifier(read_image(path), top=config.top)
        print(path)
        for guess in guesses:
            print(f"  {100 * guess.probability:5.1f} %  {guess.label}")
    return 0

"""Pictures of classes: ``u-dit sample``; ``torchrun -m u_dit.sample`` shares them out."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from u_dit.cli import main as command_line

    raise SystemExit(command_line(["sample", *sys.argv[1:]]))

from papers_shared.diffusion.class_sample import sample_and_tell
from u_dit.config import SampleConfig
from u_dit.family import FAMILY


def main(config: SampleConfig) -> int:
    """Write the pictures, and say where they lie."""
    from u_dit.pipeline import UDiTPipeline

    return sample_and_tell(config, FAMILY, pipeline=UDiTPipeline)

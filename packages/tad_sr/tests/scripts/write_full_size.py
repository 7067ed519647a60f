"""Write random weights of full size as the authors' files hold them.

``write_full_size.py GENERATOR.pth AUTOENCODER.pth``
"""

from __future__ import annotations

import sys

import torch

from papers_shared.diffusion import vq
from tad_sr.model import VARIANTS, build

if __name__ == "__main__":
    torch.manual_seed(0)
    generator = build(VARIANTS["realsr"])
    state = {f"module.{name}": value for name, value in generator.state_dict().items()}
    torch.save({"state_dict": state, "iters_start": 30_000}, sys.argv[1])
    torch.save(vq.to_official(vq.build(vq.F4)), sys.argv[2])

"""Networks on pictures of any size: tiles, memory, colour correction, files and folders.

def network(tiles, origins):  # (N, 3, h, w) -> (N, 3, 4 h, 4 w)
    return model(tiles.to(device), noise=noise_at(origins))

large = run_tiled(network, photo, scale=4, tile=256, overlap=32, multiple=64)
large = match_colour(large, photo, method="wavelet")
"""

from papers_shared.inference.colour import match_colour
from papers_shared.inference.memory import OutOfMemory, available_memory, plan_tile
from papers_shared.inference.photos import Estimate, Report, Upscaler, upscale_files
from papers_shared.inference.tiles import Origin, count_tiles, even_tile, run_tiled, tile_starts

__all__ = [
    "Estimate",
    "Origin",
    "OutOfMemory",
    "Report",
    "Upscaler",
    "available_memory",
    "count_tiles",
    "even_tile",
    "match_colour",
    "plan_tile",
    "run_tiled",
    "tile_starts",
    "upscale_files",
]

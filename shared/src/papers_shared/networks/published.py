"""What others printed of the published networks, of the very weights in the catalogue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What somebody printed of a network on a test set: PSNR-Y in dB, SSIM-Y, and where."""

    psnr: float
    ssim: float | None
    source: str


_DAT = "table in github.com/zhengchen1999/DAT"
_RLFN = "RLFN's paper, quoted by a public table"
_BSRN = "BSRN's paper, quoted"
_LKDN = "README of LKDN, quoting BSRN"
_CARN = "README of github.com/nmhkahn/CARN-pytorch"
BENCHMARKS = ("set5", "set14", "bsd100", "urban100", "manga109")


def _rows(source: str, *values: tuple[float, float | None] | None) -> dict[str, Published]:
    pairs = zip(BENCHMARKS, values, strict=False)
    return {name: Published(*pair, source) for name, pair in pairs if pair is not None}


PUBLISHED: dict[str, dict[str, Published]] = {
    "dat_light_x2": _rows(
        _DAT, (38.24, 0.9614), (34.01, 0.9214), (32.34, 0.9019), (32.89, 0.9346), (39.49, 0.9788)
    ),
    "dat_light_x3": _rows(
        _DAT, (34.76, 0.9299), (30.63, 0.8474), (29.29, 0.8103), (28.89, 0.8666), (34.55, 0.9501)
    ),
    "dat_light_x4": _rows(
        _DAT, (32.57, 0.8991), (28.87, 0.7879), (27.74, 0.7428), (26.64, 0.8033), (31.37, 0.9178)
    ),
    "rlfn_x2": _rows(_RLFN, (38.07, 0.9607), (33.72, 0.9187), (32.22, 0.9000), (32.33, 0.9299)),
    "rlfn_x4": _rows(_RLFN, (32.24, 0.8952), (28.62, 0.7813), (27.60, 0.7364), (26.17, 0.7877)),
    "bsrn_x2": _rows(_BSRN, (38.10, None), (33.74, None)),
    "bsrn_x3": _rows(_BSRN, (34.46, None)),
    "bsrn_x4": _rows(
        _LKDN, (32.35, 0.8966), (28.73, 0.7847), (27.65, 0.7387), (26.27, 0.7908), (30.84, 0.9123)
    ),
    "carn_m_x2": _rows(_CARN, (37.53, None)),
    "carn_m_x3": _rows(_CARN, (33.99, None)),
    "carn_m_x4": _rows(_CARN, (31.92, None)),
}

"""Where published weights of encoders lie, and what their first layer expects.

Names, addresses, bands and normalisation of torchgeo's are those of torchgeo 0.8.1 (``torchgeo.models``). Left out are
the Swin transformers, whose tensors are named as in torchvision, those with patches of 14 px, and those of sensors or
bands that covermap does not have.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import NamedTuple

from covermap.errors import SettingError


class Scale(NamedTuple):
    """What is subtracted from the integers of each band before they are divided: ``(x - offset) / divisor``."""

    offset: tuple[float, ...]
    divisor: tuple[float, ...]


class HubFile(NamedTuple):
    """A file of weights on Hugging Face, its first layer's bands, and how their integers were scaled.

    ``scale`` is None where each band had a mean of 0 and a deviation of 1, as covermap's have. ``digest`` is how the
    SHA-256 of the file begins, as its name tells it; empty: it does not.
    """

    repository: str
    revision: str
    file: str
    bands: tuple[str, ...] = ("B04", "B03", "B02")
    scale: Scale | None = None
    digest: str = ""


def _equal(count: int, divisor: float) -> Scale:
    return Scale((0.0,) * count, (divisor,) * count)


TOA = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
SURFACE = tuple(band for band in TOA if band != "B10")
RGB = ("B04", "B03", "B02")
SATLAS = (*RGB, "B05", "B06", "B07", "B08", "B11", "B12")
RADAR = ("VV", "VH")

REFLECTANCE = 10_000.0  # integers of a reflectance of 1
BRIGHT = 3558.0  # ASSUME: integers that true colour images of Level-1C show as 255, as in ESA's products
ALL = TOA, _equal(13, REFLECTANCE)
# SSL4EO-S12: Wang et al. 2023, doi:10.1109/MGRS.2023.3281651; its S1 in dB, ours in 0.01 dB
ALL_BY_BAND = (
    TOA,
    Scale(
        (1612.9, 1397.6, 1322.3, 1373.1, 1561.0, 2108.4, 2390.7, 2318.7, 2581.0, 837.7, 22.0, 2195.2, 1537.4),
        (791.0, 854.3, 878.7, 1144.9, 1127.5, 1164.2, 1276.0, 1249.5, 1345.9, 577.5, 47.5, 1340.0, 1142.9),
    ),
)
BACKSCATTER = RADAR, Scale((-1259.0, -2026.0), (526.0, 591.0))
COLOUR = RGB, _equal(3, REFLECTANCE)
BY_SPREAD = RGB, None
TRUE_COLOUR = RGB, _equal(3, BRIGHT)
NINE = SATLAS, Scale((0.0,) * 9, (BRIGHT,) * 3 + (8160.0,) * 6)
LAND = SURFACE, _equal(12, REFLECTANCE)

Expected = tuple[tuple[str, ...], Scale | None]
_DECUR_1, _DECUR_2 = "9328eeb90c686a88b30f8526ed757b4bc0f12027", "eba7ae5945d482a4319be046d34b552db5dd9950"
_CLOSP = "DarthReca/CLOSP-Visual", "3bb8677c21dac56bea2dd7baa08d7871272db440"
_SOFTCON = "wangyi111/softcon", "62ff465b2e7467dbfc70758ec1e9d08ab87fc46b"
_SATLAS = "torchgeo/satlas", "081d6607431bf36bdb59c223777cbb267131b8f2"
_MAE = "wangyi111/SSL4EO-S12", "75c72195d35201dc1fb210818993518c25da566b"
_FGMAE = "wangyi111/FGMAE", "24dd3077d7a99ecd454eaec7adb83d045d7fa122"


def _own(name: str, revision: str, digest: str, expected: Expected) -> tuple[str, HubFile]:
    """Weights with a repository of their own, whose name theirs is."""
    return name, HubFile(f"torchgeo/{name}", revision, f"{name}-{digest}.pth", *expected, digest)


def _in(repository: str, revision: str, file: str, expected: Expected) -> HubFile:
    """Weights of a repository with several; a dash before the last eight letters of a name leads to their digest."""
    stem, dash, digest = file.removesuffix(".pth").rpartition("-")
    return HubFile(repository, revision, file, *expected, digest if stem and dash and len(digest) == 8 else "")


def _vits(size: str, letter: str) -> dict[str, HubFile]:
    """Vision transformers of one size by masked autoencoders."""
    name = f"vit_{size}_patch16_224"
    sensors = {"sentinel2_all": ("B13", ALL), "sentinel1_grd": ("B2", BACKSCATTER)}
    return {
        f"{name}_{sensor}_{method}": _in(*place, f"{bands}_vit{letter}16_{method}_ep99_enc.pth", expected)
        for sensor, (bands, expected) in sensors.items()
        for method, place in {"mae": _MAE, "fgmae": _FGMAE}.items()
    }


TORCHGEO: dict[str, HubFile] = {
    **dict(
        [
            _own("resnet18_sentinel2_all_moco", "5b8cddc9a14f3844350b7f40b85bcd32aed75918", "59bfdff9", ALL),
            _own("resnet18_sentinel2_rgb_moco", "e1c032e7785fd0625224cdb6699aa138bb304eec", "e3a335e3", COLOUR),
            _own("resnet18_sentinel2_rgb_seco", "f8dcee692cf7142163b55a5c197d981fe0e717a0", "cefca942", BY_SPREAD),
            _own("resnet50_sentinel1_all_moco", "e79862c667853c10a709bdd77ea8ffbad0e0f1cf", "906e4356", BACKSCATTER),
            _own("resnet50_sentinel2_all_dino", "d7f14bf5530d70ac69d763e58e77e44dbecfec7c", "d6c330e9", ALL),
            _own("resnet50_sentinel2_all_moco", "da4f3c9dbe09272eb902f3b37f46635fa4726879", "df8b932e", ALL),
            _own("resnet50_sentinel2_rgb_moco", "efd9723b59a88e9dc1420dc1e96afb25b0630a3c", "2b57ba8b", COLOUR),
            _own("resnet50_sentinel2_rgb_seco", "fbd07b02a8edb8fc1035f7957160deed4321c145", "018bf397", BY_SPREAD),
            _own(
                "vit_small_patch16_224_sentinel2_all_dino", "5b41dd418a79de47ac9f5be3e035405a83818a62", "36bcc127", ALL
            ),
            _own(
                "vit_small_patch16_224_sentinel2_all_moco", "1cb683f6c14739634cdfaaceb076529adf898c74", "67c9032d", ALL
            ),
        ]
    ),
    "resnet50_sentinel1_all_decur": _in(
        "torchgeo/decur", _DECUR_1, "rn50_ssl4eo-s12_sar_decur_ep100-f0e69ba2.pth", BACKSCATTER
    ),
    "resnet50_sentinel2_all_decur": _in("torchgeo/decur", _DECUR_2, "rn50_ssl4eo-s12_ms_decur_ep100-fc6b09ff.pth", ALL),
    "resnet50_sentinel2_all_closp": _in(*_CLOSP, "closp-rn_s2_encoder-183922a5.pth", ALL),
    "resnet50_sentinel2_all_geoclosp": _in(*_CLOSP, "geoclosp-rn_s2_encoder-94c37f4a.pth", ALL),
    "resnet50_sentinel1_grd_softcon": _in(*_SOFTCON, "B2_rn50_softcon.pth", BACKSCATTER),
    "resnet50_sentinel2_all_softcon": _in(*_SOFTCON, "B13_rn50_softcon.pth", ALL_BY_BAND),
    "resnet50_sentinel2_all_seco_eco": _in(
        "torchgeo/seco-eco",
        "aea279ea46572cfca5876ac1f9d8d8595fcdeb3b",
        "resnet50_sentinel2_all_seco_eco-90ec322f.pth",
        LAND,
    ),
    "resnet50_sentinel2_mi_ms_satlas": _in(*_SATLAS, "sentinel2_resnet50_mi_ms-da5413d2.pth", NINE),
    "resnet50_sentinel2_mi_rgb_satlas": _in(*_SATLAS, "sentinel2_resnet50_mi_rgb-e79bb7fe.pth", TRUE_COLOUR),
    "resnet50_sentinel2_si_ms_satlas": _in(*_SATLAS, "sentinel2_resnet50_si_ms-1f454cc6.pth", NINE),
    "resnet50_sentinel2_si_rgb_satlas": _in(*_SATLAS, "sentinel2_resnet50_si_rgb-45fc6972.pth", TRUE_COLOUR),
    "resnet152_sentinel2_mi_ms_satlas": _in(*_SATLAS, "sentinel2_resnet152_mi_ms-fd35b4bb.pth", NINE),
    "resnet152_sentinel2_mi_rgb_satlas": _in(*_SATLAS, "sentinel2_resnet152_mi_rgb-67563ac5.pth", TRUE_COLOUR),
    "resnet152_sentinel2_si_ms_satlas": _in(*_SATLAS, "sentinel2_resnet152_si_ms-4500c6cb.pth", NINE),
    "resnet152_sentinel2_si_rgb_satlas": _in(*_SATLAS, "sentinel2_resnet152_si_rgb-f4d24c3c.pth", TRUE_COLOUR),
    "vit_small_patch16_224_sentinel2_all_closp": _in(*_CLOSP, "closp-vs_s2_encoder-1a3ee5a5.pth", ALL),
    "vit_large_patch16_224_sentinel2_all_closp": _in(*_CLOSP, "closp-vl_s2_encoder-4a4f026a.pth", ALL),
    **_vits("small", "s"),
    **_vits("base", "b"),
    **_vits("large", "l"),
}


def hub_file(name: str) -> HubFile:
    """What ``timm/NAME``, ``timm/NAME@COMMIT`` or ``torchgeo/NAME`` stands for; without a commit it is the newest file.

    Raises
    ------
    SettingError
        torchgeo has no such weights.
    """
    hub, _, own = name.partition("/")
    if hub == "timm":
        repository, _, commit = own.partition("@")
        return HubFile(f"timm/{repository}", commit or "main", "model.safetensors")
    if own not in TORCHGEO:
        near = get_close_matches(own, TORCHGEO, 3, 0)
        raise SettingError(f"torchgeo has no weights {own}: expected a name such as {', '.join(near)}")
    return TORCHGEO[own]

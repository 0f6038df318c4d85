"""An area as a classifier of patches knows it: the bands of its images, in the values of its images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from covermap.errors import ModelError
from covermap.inputs import NODATA, Meaning

STEPS = 10_000  # of reflectance, from 0 to 1
DARKEST, BRIGHTEST = 1, 255  # 0 is no data


class Pictures(BaseModel):
    """What the images are that a model learned from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: str
    white: float


def bands_in(wanted: Meaning, found: Meaning, source: object) -> list[int]:
    """Places of the images' bands among those of a stack.

    Raises
    ------
    ModelError
        The stack lacks one.
    """
    there = found.get("s2", {}).get("band", [])
    if missing := [band for band in wanted["s2"]["band"] if band not in there]:
        raise ModelError(
            f"{source} has the bands {', '.join(there) or 'none'}, the network learned from images with {missing[0]}: "
            "add it to sentinel2.bands of the area"
        )
    return [there.index(band) for band in wanted["s2"]["band"]]


def as_images(values: np.ndarray, bands: Sequence[int], pictures: Pictures) -> np.ndarray:
    """Reflectance of a stack in the values of images: uint16 (T, B, y, x) from uint16 (T, C, y, x), 0 no data.

    Pictures of 8 bits show reflectance from 0 to white as 1 to 255, as EuroSAT's were made (Helber et al. 2019,
    doi:10.1109/JSTARS.2019.2918242); a pixel that lacks a band is no data in all of them.
    """
    chosen = values[:, list(bands)]
    if pictures.level != "RGB8":
        return chosen
    scale = (BRIGHTEST - DARKEST) / (pictures.white * STEPS)
    shown = np.minimum(np.rint(chosen * np.float32(scale)) + DARKEST, BRIGHTEST).astype(chosen.dtype)
    return np.where((chosen == NODATA["s2"]).any(1, keepdims=True), chosen.dtype.type(NODATA["s2"]), shown)

"""An area is shown to a classifier as its images were made."""

import numpy as np
import pytest

from covermap.errors import ModelError
from covermap.pictures import Pictures, as_images, bands_in

EUROSAT = Pictures(level="RGB8", white=0.275)


def test_reflectance_becomes_what_the_pictures_of_eurosat_hold():
    reflectance = np.array([1, 1375, 2750, 9000, 0], np.uint16).reshape(1, 1, 1, 5).repeat(3, 1)
    shown = as_images(reflectance, [2, 0], EUROSAT)
    assert shown.shape == (1, 2, 1, 5) and shown.dtype == np.uint16
    assert shown[0, 0, 0].tolist() == [1, 128, 255, 255, 0]


def test_bands_are_taken_by_their_names_and_in_the_order_of_the_images():
    wanted = {"s2": {"band": ["B04", "B03", "B02"], "level": ["RGB8"]}}
    bands = bands_in(wanted, {"s2": {"band": ["B02", "B03", "B04", "B08"]}}, "x")
    assert bands == [2, 1, 0]
    values = np.arange(1, 5, dtype=np.uint16).reshape(1, 4, 1, 1)
    assert as_images(values, bands, Pictures(level="L2A", white=0.275)).ravel().tolist() == [3, 2, 1]
    with pytest.raises(ModelError, match=r"x has the bands B02, B03, the network learned from images with B04"):
        bands_in(wanted, {"s2": {"band": ["B02", "B03"]}}, "x")


def test_a_pixel_that_lacks_a_band_is_no_data_in_all():
    values = np.array([[0, 500], [500, 500]], np.uint16).reshape(1, 2, 1, 2)
    assert as_images(values, [0, 1], EUROSAT)[0, :, 0].tolist() == [[0, 47], [0, 47]]

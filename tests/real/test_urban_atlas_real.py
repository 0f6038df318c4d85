"""Real files of Urban Atlas, of two editions and in three containers, through the step that rasterizes them."""

import numpy as np
import pytest
import rasterio

from covermap.errors import SettingError
from covermap.grid import Grid
from covermap.label_settings import Labels
from covermap.labels import check_overlap, rasterize_labels
from covermap.legend import read_legend
from tests.conftest import ROOT

# Narva: two polygons, of 12.4 and 5.75 ha by the attribute AREA
GRID = Grid(crs="EPSG:3035", left=5_343_060, top=4_165_260, width=216, height=498)
FILES = ["EE003L1_NARVA_UA2012.gpkg", "EE003L1_NARVA_UA2012.shp.zip", "EE003L1_NARVA_UA2018.gpkg.zip"]


def rasterized(data, folder, name, **settings):
    labels = Labels(source="urban_atlas", path=str(data / "labels" / "urban_atlas" / name), **settings)
    codes = read_legend(ROOT / labels.legend).codes
    rasterize_labels(labels.path, folder / "labels.tif", GRID, codes, labels.source, labels.code_attribute)
    with rasterio.open(folder / "labels.tif") as raster:
        return raster.read(1), codes


@pytest.mark.parametrize("year", [None, 2012, 2018])
@pytest.mark.parametrize("name", FILES)
def test_narva(data, tmp_path, name, year):
    if year and str(year) not in name:
        with pytest.raises(SettingError, match=rf"are read as Urban Atlas of {year}, but have codes of 201"):
            rasterized(data, tmp_path, name, year=year)
        return
    classes, codes = rasterized(data, tmp_path, name, year=year)
    ids, pixels = np.unique(classes[classes > 0], return_counts=True)
    areas_ha = dict(zip(ids.tolist(), pixels / 100, strict=True))
    industrial, forest = codes["12100"], codes["31000"]
    if "2018" in name:  # the forest was built over
        assert areas_ha == {industrial: pytest.approx(12.41 + 5.75, rel=0.02)}
    else:
        assert areas_ha == {industrial: pytest.approx(12.41, rel=0.02), forest: pytest.approx(5.75, rel=0.02)}


@pytest.mark.parametrize("name", FILES)
def test_narva_lies_where_it_lies(data, name):
    from shapely.geometry import Point

    check_overlap(data / "labels" / "urban_atlas" / name, Point(28.2, 59.36).buffer(0.1))

"""What headless QGIS makes of a map and of what lies beside it: run by the Python that QGIS was built for.

``python3 _qgis.py FOLDER NAME PLACES`` writes JSON to standard output; PLACES are rows and columns of pixels.
"""

import json
import sys
from pathlib import Path

from osgeo import gdal
from qgis.core import (
    QgsApplication,
    QgsPalettedRasterRenderer,
    QgsRasterLayer,
    QgsRectangle,
    QgsVectorLayer,
)


def palette(layer):
    return [[entry.value, entry.label, entry.color.name(), entry.color.alpha()] for entry in layer.renderer().classes()]


def raster_of(path, style):
    """A raster as QGIS shows it: with the style beside it by itself, then with that style when asked."""
    bare = QgsRasterLayer(str(path), path.stem)
    told = {"valid": bare.isValid(), "bands": bare.bandCount(), "auto": bare.renderer().type()}
    told["applied"] = bare.loadNamedStyle(str(style))[1]
    told["type"] = bare.renderer().type()
    told["nodata"] = [bare.dataProvider().sourceHasNoDataValue(1), bare.dataProvider().sourceNoDataValue(1)]
    return bare, told


def default_palette(path):
    """The palette of the file alone, without any style."""
    layer = QgsRasterLayer(str(path), "bare")
    table = layer.dataProvider().colorTable(1)
    classes = QgsPalettedRasterRenderer.colorTableToClassData(table)
    return [[one.value, one.label, one.color.name(), one.color.alpha()] for one in classes]


def attributes(path):
    """Columns and rows of the raster attribute table, and the names of the categories, as this GDAL reads them."""
    data = gdal.Open(str(path))
    band = data.GetRasterBand(1)
    table = band.GetDefaultRAT()
    columns = [table.GetNameOfCol(k) for k in range(table.GetColumnCount())]
    rows = [[table.GetValueAsString(row, k) for k in range(len(columns))] for row in range(table.GetRowCount())]
    return {"columns": columns, "rows": rows, "categories": band.GetRasterCategoryNames()}


def polygons_of(path):
    """Classes of the layer as QGIS styles it by itself."""
    layer = QgsVectorLayer(f"{path}|layername=classes", "classes", "ogr")
    told = {"valid": layer.isValid(), "type": layer.renderer().type(), "features": layer.featureCount()}
    told["field"] = layer.renderer().classAttribute() if told["type"] == "categorizedSymbol" else None
    if told["field"]:
        shown = layer.renderer().categories()
        told["classes"] = [[one.value(), one.label(), one.symbol().color().name()] for one in shown]
    told["fields"] = [field.name() for field in layer.fields()]
    return told


def pixel_of(layer, row, column):
    """Red, green, blue, alpha that the layer's renderer gives a pixel."""
    extent, side = layer.extent(), layer.rasterUnitsPerPixelX()
    left, top = extent.xMinimum() + column * side, extent.yMaximum() - row * side
    image = layer.renderer().block(1, QgsRectangle(left, top - side, left + side, top), 1, 1).image()
    return list(image.pixelColor(0, 0).getRgb())


def main(folder, name, places):
    map, confidence = (folder / f"{name}.tif", folder / f"{name}.confidence.tif")
    layer, told = raster_of(map, folder / f"{name}.qml")
    told |= {"palette": palette(layer), "own": default_palette(map), "table": attributes(map)}
    told["pixels"] = [pixel_of(layer, *place) for place in places]
    shown, second = raster_of(confidence, folder / f"{name}.confidence.qml")
    ramp = shown.renderer().shader().rasterShaderFunction().colorRampItemList()
    second["ramp"] = [[item.value, item.color.name()] for item in ramp]
    second["pixels"] = [pixel_of(shown, *place) for place in places]
    return {"map": told, "confidence": second, "polygons": polygons_of(folder / f"{name}.gpkg")}


QgsApplication.setPrefixPath("/usr", True)
application = QgsApplication([], False)
application.initQgis()
print("JSON" + json.dumps(main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))))
application.exitQgis()

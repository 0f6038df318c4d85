"""Deep learning packages of ArcGIS: a graph, its Esri model definition and the raster function that runs it."""

from __future__ import annotations

import json
import zipfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from covermap.exported import Card
from covermap.files import whole
from covermap.inputs import DAY
from covermap.model_settings import Prediction

FUNCTION = "CovermapClassifier"  # module and class of the raster function
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of all files in the zip
TITLES = {"s1": "Sentinel-1", "s2": "Sentinel-2", "terrain": "terrain"}
BATCH = 4  # windows at once, unless the user says otherwise


def write_package(dlpk: Path, name: str, graph: bytes, card: Card) -> None:
    """A zip, stored, with the same bytes for the same graph.

    Parameters
    ----------
    dlpk : output.
    name : of the model: that of the definition and of the graph in it.
    graph : ONNX, as bytes.
    card : of the model.
    """
    function = files("covermap") / "templates" / f"{FUNCTION}.py"
    definition = json.dumps(definition_of(name, card), indent=2, ensure_ascii=False)
    members = {
        f"{name}.emd": definition.encode(),
        f"{name}.onnx": graph,
        f"{FUNCTION}.py": function.read_bytes(),
    }
    with whole(dlpk) as part, zipfile.ZipFile(part, "w") as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member, EPOCH), data)


def definition_of(name: str, card: Card) -> dict[str, Any]:
    """Esri model definition (Esri, raster-deep-learning, "Esri Model Definition file"), and what our function reads.

    The latter are ``Inputs``, ``Bands``, ``WindowStep``, ``Blend`` and ``Symmetries``.
    """
    settings = Prediction(window_pixels=card.window_pixels, overlap=card.overlap)
    return {
        "Framework": "ONNX",
        "ModelConfiguration": FUNCTION,
        "ModelFile": f"{name}.onnx",
        "ModelName": name,
        "ModelType": "ImageClassification",
        "InferenceFunction": f"{FUNCTION}.py",
        "ImageHeight": card.window_pixels,
        "ImageWidth": card.window_pixels,
        "ImageSpaceUsed": "MAP_SPACE",
        "IsMultispectral": True,
        "ExtractBands": list(range(len(card.bands))),
        "BatchSize": BATCH,
        "MinCellSize": {"x": card.pixel_m, "y": card.pixel_m},
        "MaxCellSize": {"x": card.pixel_m, "y": card.pixel_m},
        "Inputs": inputs_of(card),
        "Bands": [band.name for band in card.bands],
        "WindowStep": settings.step_pixels,
        "Blend": card.blend,
        "Symmetries": card.symmetries,
        "Classes": [{"Value": entry.id, "Name": entry.name, "Color": list(entry.rgb)} for entry in card.classes],
        "Attribution": card.attribution,
        "Version": card.covermap,
    }


def inputs_of(card: Card) -> list[dict[str, Any]]:
    """Rasters that the bands may be spread over, in their order; days of Sentinel-2 come with the last."""
    counts = {key: steps * bands for key, (steps, bands) in card.shapes.items()}
    counts[[*counts][-1]] += sum(band.input == DAY for band in card.bands)
    return [{"Name": TITLES[key], "Bands": count} for key, count in counts.items()]

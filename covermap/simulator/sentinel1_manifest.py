"""Manifest of a Sentinel-1 IW GRDH product: platform, orbit, footprint, and every file with its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from covermap.simulator.sentinel1_xml import Element, Grd, document, element, utc

IPF_VERSION = "003.31"
_NAMESPACES = {
    "gml": "http://www.opengis.net/gml",
    "xfdu": "urn:ccsds:schema:xfdu:1",
    "safe": "http://www.esa.int/safe/sentinel-1.0",
    "s1": "http://www.esa.int/safe/sentinel-1.0/sentinel-1",
    "s1sar": "http://www.esa.int/safe/sentinel-1.0/sentinel-1/sar",
    "s1sarl1": "http://www.esa.int/safe/sentinel-1.0/sentinel-1/sar/level-1",
}
_prefixed = element  # a name with its prefix in it: the manifest declares the prefixes on its root


def manifest(grd: Grd, footprint: Sequence[tuple[float, float]], safe: Path) -> bytes:
    """Manifest of the files under ``safe``; ``footprint`` is the (lon, lat) of the four corners."""
    corners = " ".join(f"{lat:.6f},{lon:.6f}" for lon, lat in footprint)
    files = sorted(path for path in safe.rglob("*") if path.is_file())
    since_node_ms = [1e3 * (time - grd.ascending_node).total_seconds() for time in (grd.first_line, grd.last_line)]
    wrapped = {
        "platform": _prefixed(
            "safe:platform",
            _prefixed("safe:nssdcIdentifier", "2014-016A"),
            _prefixed("safe:familyName", "SENTINEL-1"),
            _prefixed("safe:number", "A"),
            _prefixed(
                "safe:instrument",
                _prefixed("safe:familyName", "Synthetic Aperture Radar", abbreviation="SAR"),
                _prefixed(
                    "safe:extension",
                    _prefixed(
                        "s1sarl1:instrumentMode", _prefixed("s1sarl1:mode", "IW"), _prefixed("s1sarl1:swath", "IW")
                    ),
                ),
            ),
        ),
        "processing": _prefixed(
            "safe:processing",
            _prefixed("safe:facility", _prefixed("safe:software", name="Sentinel-1 IPF", version=IPF_VERSION)),
            name="GRD Post Processing",
        ),
        "measurementOrbitReference": _prefixed(
            "safe:orbitReference",
            *(_prefixed("safe:orbitNumber", str(grd.absolute_orbit), type=end) for end in ("start", "stop")),
            *(_prefixed("safe:relativeOrbitNumber", str(grd.relative_orbit), type=end) for end in ("start", "stop")),
            _prefixed("safe:cycleNumber", str(grd.cycle)),
            _prefixed("safe:phaseIdentifier", "1"),
            _prefixed(
                "safe:extension",
                _prefixed(
                    "s1:orbitProperties",
                    _prefixed("s1:pass", "DESCENDING"),
                    _prefixed("s1:ascendingNodeTime", utc(grd.ascending_node)),
                ),
            ),
        ),
        "generalProductInformation": _prefixed(
            "s1sarl1:standAloneProductInformation",
            _prefixed("s1sarl1:instrumentConfigurationID", "7"),
            _prefixed("s1sarl1:missionDataTakeID", str(grd.data_take)),
            *(_prefixed("s1sarl1:transmitterReceiverPolarisation", name) for name in ("VV", "VH")),
            _prefixed("s1sarl1:productClass", "S"),
            _prefixed("s1sarl1:productClassDescription", "SAR Standard L1 Product"),
            _prefixed("s1sarl1:productComposition", "Individual"),
            _prefixed("s1sarl1:productType", "GRD"),
            _prefixed("s1sarl1:productTimelinessCategory", "Fast-24h"),
            _prefixed("s1sarl1:sliceProductFlag", "false"),
        ),
        "acquisitionPeriod": _prefixed(
            "safe:acquisitionPeriod",
            _prefixed("safe:startTime", utc(grd.first_line)),
            _prefixed("safe:stopTime", utc(grd.last_line)),
            _prefixed(
                "safe:extension",
                _prefixed(
                    "s1:timeANX",
                    _prefixed("s1:startTimeANX", f"{since_node_ms[0]:.6e}"),
                    _prefixed("s1:stopTimeANX", f"{since_node_ms[1]:.6e}"),
                ),
            ),
        ),
        "measurementFrameSet": _prefixed(
            "safe:frameSet",
            _prefixed(
                "safe:frame",
                _prefixed(
                    "safe:footPrint",
                    _prefixed("gml:coordinates", corners),
                    srsName="http://www.opengis.net/gml/srs/epsg.xml#4326",
                ),
            ),
        ),
    }
    root = _prefixed(
        "xfdu:XFDU",
        element("informationPackageMap", _content_unit(files, safe)),
        element("metadataSection", *(_metadata_object(name, content) for name, content in wrapped.items())),
        element("dataObjectSection", *(_data_object(path, safe) for path in files)),
        version="esa/safe/sentinel-1.0/sentinel-1/sar/level-1/grd/standard/iwdp",
        **{f"xmlns:{prefix}": address for prefix, address in _NAMESPACES.items()},
    )
    return document(root)


def _kind(path: Path) -> str:
    """Schema that the manifest names for a file."""
    if path.suffix == ".tiff":
        return "s1Level1MeasurementSchema"
    first = path.name.partition("-")[0]
    return {"calibration": "s1Level1CalibrationSchema", "noise": "s1Level1NoiseSchema"}.get(
        first, "s1Level1ProductSchema"
    )


def _identifier(path: Path) -> str:
    bare = path.stem.replace("-", "")
    return f"product{bare}" if _kind(path) == "s1Level1ProductSchema" else bare


def _content_unit(files: Sequence[Path], safe: Path) -> Element:
    units = (
        _prefixed(
            "xfdu:contentUnit",
            element("dataObjectPointer", dataObjectID=_identifier(path)),
            unitType="Measurement Data Unit" if path.suffix == ".tiff" else "Metadata Unit",
            repID=_kind(path),
        )
        for path in files
    )
    return _prefixed(
        "xfdu:contentUnit",
        *units,
        unitType="SAFE Archive Information Package",
        textInfo="Sentinel-1 IW Level-1 GRD Product",
        dmdID="acquisitionPeriod platform generalProductInformation measurementOrbitReference measurementFrameSet",
        pdiID="processing",
    )


def _metadata_object(name: str, content: Element) -> Element:
    provenance = name == "processing"
    return element(
        "metadataObject",
        element(
            "metadataWrap",
            element("xmlData", content),
            mimeType="text/xml",
            vocabularyName="SAFE",
        ),
        ID=name,
        classification="PROVENANCE" if provenance else "DESCRIPTION",
        category="PDI" if provenance else "DMD",
    )


def _data_object(path: Path, safe: Path) -> Element:
    content = path.read_bytes()
    return element(
        "dataObject",
        element(
            "byteStream",
            element("fileLocation", locatorType="URL", href=f"./{path.relative_to(safe).as_posix()}"),
            element("checksum", hashlib.md5(content, usedforsecurity=False).hexdigest(), checksumName="MD5"),
            mimeType="application/octet-stream" if path.suffix == ".tiff" else "text/xml",
            size=str(len(content)),
        ),
        ID=_identifier(path),
        repID=_kind(path),
    )

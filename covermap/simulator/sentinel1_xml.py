"""XML annotation of a Sentinel-1 IW GRDH product: the product itself, its calibration and its noise.

Element names, nesting, units and number formats are those of products of the Sentinel-1 IPF 003.31 (Sentinel-1 Product
Specification, S1-RS-MDA-52-7441). Lists that describe the instrument rather than the image (attitude, replica, Doppler
centroid, antenna pattern) are there with ``count="0"``, because nothing in the demo world stands behind them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

RADAR_FREQUENCY_HZ = 5.405000454334350e9
RANGE_SAMPLING_RATE_HZ = 6.434523812571428e7

Element = ElementTree.Element
Array = NDArray[Any]


@dataclass(frozen=True)
class Swath:
    """One sub-swath of the merged image: name ("IW1") and its first and last range sample, both inside."""

    name: str
    first_sample: int
    last_sample: int


@dataclass(frozen=True)
class GridPoints:
    """Geolocation grid, one entry a point, rows first: arrays are (point,); angles and coordinates in degrees."""

    azimuth_time: list[datetime]
    slant_range_time_s: Array  # two-way
    line: Array
    pixel: Array
    latitude: Array
    longitude: Array
    height_m: Array
    incidence_deg: Array
    elevation_deg: Array


@dataclass(frozen=True)
class Grd:
    """What the files of one product share between polarisations."""

    first_line: datetime
    last_line: datetime
    lines: int
    samples: int
    azimuth_interval_s: float
    range_spacing_m: float
    azimuth_spacing_m: float
    absolute_orbit: int
    relative_orbit: int
    cycle: int
    data_take: int
    ascending_node: datetime
    heading_deg: float
    incidence_mid_swath_deg: float
    slant_range_time_s: float  # two-way, of sample 0
    orbit_times: list[datetime]
    positions_m: Array  # (vector, 3), Earth fixed
    velocities_m_s: Array  # (vector, 3), Earth fixed
    record_times: list[datetime]  # of the coordinate conversion
    near_range_m: float
    srgr: Array  # (record, 9): ground range from slant range less near_range_m
    grsr: Array  # (record, 9): slant range from ground range
    terrain_height_m: Array  # (record,)
    grid: GridPoints
    swaths: tuple[Swath, ...]


def annotation(grd: Grd, polarisation: str, image_number: str, mean: float, deviation: float) -> bytes:
    """Product annotation (``annotation/*.xml``); ``mean`` and ``deviation`` are of the digital numbers."""
    return document(
        element(
            "product",
            _header(grd, polarisation, image_number),
            element("qualityInformation", element("productQualityIndex", _e15(0.0)), _listing("qualityDataList", [])),
            element(
                "generalAnnotation",
                element(
                    "productInformation",
                    element("pass", "Descending"),
                    element("timelinessCategory", "Fast-24h"),
                    element("platformHeading", _e15(grd.heading_deg)),
                    element("projection", "Ground Range"),
                    element("rangeSamplingRate", _e15(RANGE_SAMPLING_RATE_HZ)),
                    element("radarFrequency", _e15(RADAR_FREQUENCY_HZ)),
                    element("azimuthSteeringRate", _e15(1.590368784)),
                ),
                _listing("downlinkInformationList", []),
                _listing("orbitList", _orbits(grd)),
                _listing("attitudeList", []),
                _listing("rawDataAnalysisList", []),
                _listing("replicaInformationList", []),
                _listing("noiseList", []),
                _listing(
                    "terrainHeightList",
                    (
                        element("terrainHeight", element("azimuthTime", utc(time)), element("value", _e15(height)))
                        for time, height in zip(grd.record_times, grd.terrain_height_m, strict=True)
                    ),
                ),
                _listing("azimuthFmRateList", []),
            ),
            element(
                "imageAnnotation",
                _image_information(grd, mean, deviation),
                _processing_information(grd),
            ),
            element("dopplerCentroid", _listing("dcEstimateList", [])),
            element("antennaPattern", _listing("antennaPatternList", [])),
            element(
                "swathTiming",
                element("linesPerBurst", "0"),
                element("samplesPerBurst", "0"),
                _listing("burstList", []),
            ),
            element("geolocationGrid", _listing("geolocationGridPointList", _grid_points(grd.grid))),
            element("coordinateConversion", _listing("coordinateConversionList", _conversions(grd))),
            element("swathMerging", _listing("swathMergeList", (_swath_merge(grd, swath) for swath in grd.swaths))),
        )
    )


def calibration(
    grd: Grd, polarisation: str, image_number: str, lines: Array, pixels: Array, luts: dict[str, Array]
) -> bytes:
    """Calibration annotation; ``luts`` maps element names (sigmaNought ...) to (pixel,) values, equal on each line."""
    vectors = (
        element(
            "calibrationVector",
            element("azimuthTime", utc(_line_time(grd, line))),
            element("line", str(line)),
            _numbers("pixel", pixels, "d"),
            *(_numbers(name, values, ".6e") for name, values in luts.items()),
        )
        for line in lines
    )
    return document(
        element(
            "calibration",
            _header(grd, polarisation, image_number),
            element("calibrationInformation", element("absoluteCalibrationConstant", "1.000000e+00")),
            _listing("calibrationVectorList", vectors),
        )
    )


def noise(
    grd: Grd,
    polarisation: str,
    image_number: str,
    range_lines: Array,
    range_pixels: Array,
    range_luts: Array,
    azimuth_lines: Array,
    azimuth_luts: Array,
) -> bytes:
    """Noise annotation of the form used since IPF 2.90, in squared digital numbers.

    ``range_luts`` is (range line, range pixel), ``azimuth_luts`` (sub-swath, azimuth line) without unit.
    """
    range_vectors = (
        element(
            "noiseRangeVector",
            element("azimuthTime", utc(_line_time(grd, line))),
            element("line", str(line)),
            _numbers("pixel", range_pixels, "d"),
            _numbers("noiseRangeLut", values, ".6e"),
        )
        for line, values in zip(range_lines, range_luts, strict=True)
    )
    azimuth_vectors = (
        element(
            "noiseAzimuthVector",
            element("swath", swath.name),
            *_bounds(grd, swath),
            _numbers("line", azimuth_lines, "d"),
            _numbers("noiseAzimuthLut", values, ".6e"),
        )
        for swath, values in zip(grd.swaths, azimuth_luts, strict=True)
    )
    return document(
        element(
            "noise",
            _header(grd, polarisation, image_number),
            _listing("noiseRangeVectorList", range_vectors),
            _listing("noiseAzimuthVectorList", azimuth_vectors),
        )
    )


def element(name: str, /, *content: Element | str, **attributes: str) -> Element:
    """Element with a text or children."""
    made = Element(name, attributes)
    for part in content:
        if isinstance(part, str):
            made.text = part
        else:
            made.append(part)
    return made


def utc(time: datetime) -> str:
    """Time as the products write it: microseconds always, no zone."""
    return time.isoformat(timespec="microseconds")


def _e15(value: float) -> str:
    return f"{value:.15e}"


def document(root: Element) -> bytes:
    """Bytes of an indented XML file."""
    ElementTree.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root) + b"\n"


def _listing(name: str, children: Iterable[Element]) -> Element:
    made = element(name, *children)
    made.set("count", str(len(made)))
    return made


def _numbers(name: str, values: Array, form: str) -> Element:
    return element(name, " ".join(format(value, form) for value in values.tolist()), count=str(len(values)))


def _line_time(grd: Grd, line: int) -> datetime:
    return grd.first_line + np.timedelta64(round(float(line) * grd.azimuth_interval_s * 1e6), "us").item()


def _header(grd: Grd, polarisation: str, image_number: str) -> Element:
    return element(
        "adsHeader",
        element("missionId", "S1A"),
        element("productType", "GRD"),
        element("polarisation", polarisation),
        element("mode", "IW"),
        element("swath", "IW"),
        element("startTime", utc(grd.first_line)),
        element("stopTime", utc(grd.last_line)),
        element("absoluteOrbitNumber", str(grd.absolute_orbit)),
        element("missionDataTakeId", str(grd.data_take)),
        element("imageNumber", image_number),
    )


def _orbits(grd: Grd) -> Iterable[Element]:
    for time, position, velocity in zip(grd.orbit_times, grd.positions_m, grd.velocities_m_s, strict=True):
        yield element(
            "orbit",
            element("time", utc(time)),
            element("frame", "Earth Fixed"),
            element("position", *(element(axis, _e15(v)) for axis, v in zip("xyz", position, strict=True))),
            element("velocity", *(element(axis, _e15(v)) for axis, v in zip("xyz", velocity, strict=True))),
        )


def _image_information(grd: Grd, mean: float, deviation: float) -> Element:
    return element(
        "imageInformation",
        element("productFirstLineUtcTime", utc(grd.first_line)),
        element("productLastLineUtcTime", utc(grd.last_line)),
        element("ascendingNodeTime", utc(grd.ascending_node)),
        element("anchorTime", utc(grd.first_line)),
        element("productComposition", "Individual"),
        element("sliceNumber", "0"),
        _listing("sliceList", []),
        element("slantRangeTime", _e15(grd.slant_range_time_s)),
        element("pixelValue", "Detected"),
        element("outputPixels", "16 bit Unsigned Integer"),
        element("rangePixelSpacing", f"{grd.range_spacing_m:.6e}"),
        element("azimuthPixelSpacing", f"{grd.azimuth_spacing_m:.6e}"),
        element("azimuthTimeInterval", _e15(grd.azimuth_interval_s)),
        element("azimuthFrequency", _e15(486.4863102995529)),
        element("numberOfSamples", str(grd.samples)),
        element("numberOfLines", str(grd.lines)),
        element("zeroDopMinusAcqTime", _e15(0.0)),
        element("incidenceAngleMidSwath", _e15(grd.incidence_mid_swath_deg)),
        element(
            "imageStatistics",
            *(
                element(name, element("re", f"{value:.6e}"), element("im", "0.000000e+00"))
                for name, value in (("outputDataMean", mean), ("outputDataStdDev", deviation))
            ),
        ),
    )


def _processing_information(grd: Grd) -> Element:
    flags = {
        "rawDataAnalysisUsed": "true",
        "orbitDataFileUsed": "false",
        "attitudeDataFileUsed": "false",
        "rxVariationCorrectionApplied": "true",
        "antennaElevationPatternApplied": "true",
        "antennaAzimuthPatternApplied": "true",
        "antennaAzimuthElementPatternApplied": "true",
        "dcMethod": "Data Analysis",
        "dcInputData": "Range Compressed",
        "rangeSpreadingLossCompensationApplied": "true",
        "srgrConversionApplied": "true",
        "detectionPerformed": "true",
        "thermalNoiseCorrectionPerformed": "false",
    }
    bands = {"rangeProcessing": (5.65e7, 1.41e7, 5), "azimuthProcessing": (3.27e2, 3.27e2, 1)}
    return element(
        "processingInformation",
        *(element(name, value) for name, value in flags.items()),
        _listing(
            "swathProcParamsList",
            (
                element(
                    "swathProcParams",
                    element("swath", swath.name),
                    *(
                        element(
                            name,
                            element("windowType", "Hamming"),
                            element("windowCoefficient", _e15(0.7)),
                            element("totalBandwidth", _e15(total)),
                            element("processingBandwidth", _e15(total)),
                            element("lookBandwidth", _e15(look)),
                            element("numberOfLooks", str(looks)),
                        )
                        for name, (total, look, looks) in bands.items()
                    ),
                )
                for swath in grd.swaths
            ),
        ),
        element("referenceRange", _e15(8e5)),
        element("ellipsoidName", "WGS84"),
        element("ellipsoidSemiMajorAxis", _e15(6378137.0)),
        element("ellipsoidSemiMinorAxis", _e15(6356752.314245)),
        element("bistaticDelayCorrectionApplied", "true"),
        element("topsFilterConvention", "Only Echo Lines"),
        element("orbitSource", "Downlink"),
        element("attitudeSource", "Downlink"),
    )


def _grid_points(grid: GridPoints) -> Iterable[Element]:
    for k, time in enumerate(grid.azimuth_time):
        yield element(
            "geolocationGridPoint",
            element("azimuthTime", utc(time)),
            element("slantRangeTime", _e15(grid.slant_range_time_s[k])),
            element("line", str(grid.line[k])),
            element("pixel", str(grid.pixel[k])),
            element("latitude", _e15(grid.latitude[k])),
            element("longitude", _e15(grid.longitude[k])),
            element("height", _e15(grid.height_m[k])),
            element("incidenceAngle", _e15(grid.incidence_deg[k])),
            element("elevationAngle", _e15(grid.elevation_deg[k])),
        )


def _conversions(grd: Grd) -> Iterable[Element]:
    for time, srgr, grsr in zip(grd.record_times, grd.srgr, grd.grsr, strict=True):
        yield element(
            "coordinateConversion",
            element("azimuthTime", utc(time)),
            element("slantRangeTime", _e15(grd.slant_range_time_s)),
            element("sr0", _e15(grd.near_range_m)),
            _numbers("srgrCoefficients", srgr, ".15e"),
            element("gr0", _e15(0.0)),
            _numbers("grsrCoefficients", grsr, ".15e"),
        )


def _bounds(grd: Grd, swath: Swath) -> list[Element]:
    return [
        element("firstAzimuthLine", "0"),
        element("firstRangeSample", str(swath.first_sample)),
        element("lastAzimuthLine", str(grd.lines - 1)),
        element("lastRangeSample", str(swath.last_sample)),
    ]


def _swath_merge(grd: Grd, swath: Swath) -> Element:
    bounds = element("swathBounds", element("azimuthTime", utc(grd.first_line)), *_bounds(grd, swath))
    return element("swathMerge", element("swath", swath.name), _listing("swathBoundsList", [bounds]))

"""A small Sentinel-1 product that the tests write themselves, its DEM and the closed form of its geometry."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import rasterio
from pyproj import Transformer
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

from covermap.grid import Grid
from covermap.sentinel1 import geocoding
from covermap.sentinel1.orbit import Orbit

# A satellite on a circle over the Greenwich meridian, northwards, over an Earth that stands still: the time of closest
# approach of a place (x, y, z) is where the circle's angle is atan2(z, x).
RADIUS_M, RATE = 7_070_000.0, 1.06e-3
LONGITUDE, LATITUDE = 2.6, 1.0
LINES, SAMPLES, INTERVAL_S = 240, 260, 1.47e-3
MANIFEST = (
    '<a xmlns:s="x"><s:software name="" version=""/><s:software name="Sentinel-1 IPF" version="003.40"/>'
    '<s:relativeOrbitNumber type="start">7</s:relativeOrbitNumber></a>'
)
SIGMA0 = {"VV": 3.0, "VH": 0.8}
GRID = Grid(crs="EPSG:32631", left=454_020, top=111_480, width=190, height=180)


def place(longitude: float, latitude: float, height_m: float) -> np.ndarray:
    return geocoding.geodetic_to_ecef(np.array(longitude), np.array(latitude), np.array(height_m))


def angle(xyz: np.ndarray) -> np.ndarray:
    return np.arctan2(xyz[..., 2], xyz[..., 0])


START = float(angle(place(LONGITUDE, LATITUDE, 0.0))) - LINES / 2 * INTERVAL_S * RATE  # at the first line


def circle(time_s: np.ndarray) -> np.ndarray:
    u = START + RATE * time_s
    return RADIUS_M * np.stack([np.cos(u), np.zeros_like(u), np.sin(u)], axis=-1)


def make_orbit() -> Orbit:
    times = np.arange(-80.0, 81.0, 10.0)
    u = START + RATE * times
    velocity = RADIUS_M * RATE * np.stack([-np.sin(u), np.zeros_like(u), np.cos(u)], axis=-1)
    return Orbit(times, circle(times), velocity)


MIDDLE_M = float(np.linalg.norm(place(LONGITUDE, LATITUDE, 0.0) - circle(np.array(LINES / 2 * INTERVAL_S))))
RECORDS_S = np.array([-0.3, 0.7])
RECORDS = np.array([[MIDDLE_M - 800, 0.6, 3e-7], [MIDDLE_M - 790, 0.599, 3.1e-7]])


def line_and_sample(longitude: float, latitude: float, height_m: float) -> tuple[float, float]:
    """Where a place lies in the image, in closed form and by tabulating the range polynomial."""
    xyz = place(longitude, latitude, height_m)
    time_s = (angle(xyz) - START) / RATE
    slant_m = np.linalg.norm(xyz - circle(time_s))
    coefficients = [np.interp(time_s, RECORDS_S, column) for column in RECORDS.T]
    ground_m = np.arange(-500.0, 4000.0)
    slants = sum(c * ground_m**k for k, c in enumerate(coefficients))
    return float(time_s / INTERVAL_S), float(np.interp(slant_m, slants, ground_m) / 10)


def height(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    return 150 + 60 * np.sin((longitude - LONGITUDE) * 200) * np.cos((latitude - LATITUDE) * 150)


def targets() -> list[tuple[float, float]]:
    return [(454_323.0 + 660.7 * i, 111_181.0 - 590.9 * j) for i in range(3) for j in range(3)]


def write_safe(folder: Path, dark: bool = False) -> Path:
    """A product in both polarisations: constant backscatter, nine bright targets, no data in the last 30 samples.

    ``dark``: a part of it lies below the thermal noise.
    """
    product = folder / "S1A_IW_GRDH_1SDV_20230501T000000_TEST.SAFE"
    (product / "annotation/calibration").mkdir(parents=True)
    (product / "measurement").mkdir()
    (product / "manifest.safe").write_text(MANIFEST)
    to_degrees = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True)
    line, sample = np.mgrid[:LINES, :SAMPLES].astype(float)
    lut = 400 + sample / 10 + line / 20
    noise = (200 + sample) * np.where(sample < 100, 1.0, 1.5 + line / 1000)
    for number, (name, sigma0) in enumerate(SIGMA0.items(), 1):
        power = np.full(line.shape, sigma0)
        for x, y in targets():
            longitude, latitude = to_degrees.transform(x, y)
            at_line, at_sample = line_and_sample(longitude, latitude, float(height(longitude, latitude)))
            power += 500 * sigma0 * np.exp(-((line - at_line) ** 2 + (sample - at_sample) ** 2) / (2 * 1.2**2))
        dn = np.sqrt(power * lut**2 + noise).round().astype("uint16")
        if dark:
            dn[100:160, 20:80] = np.sqrt(noise / 2)[100:160, 20:80]
        dn[:, -30:] = 0
        stem = f"s1a-iw-grd-{name.lower()}-20230501t000000-{number:03d}"
        (product / f"annotation/{stem}.xml").write_text(annotation(name))
        (product / f"annotation/calibration/calibration-{stem}.xml").write_text(calibration())
        (product / f"annotation/calibration/noise-{stem}.xml").write_text(noise_tables())
        write_tiff(product / f"measurement/{stem}.tiff", dn)
    return product


def write_tiff(path: Path, image: np.ndarray, **profile: object) -> None:
    bands = image if image.ndim == 3 else image[None]
    size = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype.name}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", **size, **profile) as raster:
            raster.write(bands)


def at(seconds: float) -> str:
    return str(np.datetime64("2023-05-01T00:00:00", "us") + np.timedelta64(round(seconds * 1e6), "us"))


def numbers(values: object) -> str:
    return " ".join(f"{value:.15e}" for value in np.ravel(values))


def annotation(polarisation: str) -> str:
    orbit = make_orbit()
    states = "".join(
        f"<orbit><time>{at(t)}</time>"
        + "".join(
            f"<{kind}>" + "".join(f"<{a}>{v:.9f}</{a}>" for a, v in zip("xyz", vector, strict=True)) + f"</{kind}>"
            for kind, vector in (("position", p), ("velocity", v))
        )
        + "</orbit>"
        for t, p, v in zip(orbit.time_s, orbit.position_m, orbit.velocity_m_s, strict=True)
    )
    records = "".join(
        f"<coordinateConversion><azimuthTime>{at(t)}</azimuthTime><gr0>0</gr0>"
        f"<grsrCoefficients>{numbers(c)}</grsrCoefficients></coordinateConversion>"
        for t, c in zip(RECORDS_S, RECORDS, strict=True)
    )
    points = "".join(
        f"<geolocationGridPoint><azimuthTime>{at(0)}</azimuthTime><slantRangeTime>0.005</slantRangeTime><line>0</line>"
        f"<pixel>0</pixel><latitude>{LATITUDE + i}</latitude><longitude>{LONGITUDE + j}</longitude><height>0</height>"
        "<incidenceAngle>30</incidenceAngle></geolocationGridPoint>"
        for i in (-0.012, 0.012)
        for j in (-0.012, 0.012)
    )
    return f"""<product><adsHeader><missionId>S1A</missionId><productType>GRD</productType>
<polarisation>{polarisation}</polarisation><mode>IW</mode><swath>IW</swath></adsHeader>
<generalAnnotation><productInformation><pass>Ascending</pass></productInformation><orbitList>{states}</orbitList>
</generalAnnotation><imageAnnotation><imageInformation><productFirstLineUtcTime>{at(0)}</productFirstLineUtcTime>
<azimuthTimeInterval>{INTERVAL_S}</azimuthTimeInterval><rangePixelSpacing>10</rangePixelSpacing>
<numberOfSamples>{SAMPLES}</numberOfSamples><numberOfLines>{LINES}</numberOfLines></imageInformation>
<processingInformation><thermalNoiseCorrectionPerformed>false</thermalNoiseCorrectionPerformed></processingInformation>
</imageAnnotation><coordinateConversion><coordinateConversionList>{records}</coordinateConversionList>
</coordinateConversion><geolocationGrid><geolocationGridPointList>{points}</geolocationGridPointList></geolocationGrid>
</product>"""


def calibration() -> str:
    pixel = np.array([0, 100, SAMPLES - 1])
    vectors = "".join(
        f"<calibrationVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><pixel>0 100 {SAMPLES - 1}</pixel>"
        f"<sigmaNought>{numbers(400 + pixel / 10 + line / 20)}</sigmaNought>"
        f"<betaNought>{numbers(300 + 0 * pixel)}</betaNought>"
        f"<gamma>{numbers(0.9 * (400 + pixel / 10 + line / 20))}</gamma></calibrationVector>"
        for line in (-40, 100, 300)
    )
    return f"<calibration><calibrationVectorList>{vectors}</calibrationVectorList></calibration>"


def noise_tables() -> str:
    pixel = np.array([0, 99, 100, SAMPLES - 1])
    pixels = " ".join(map(str, pixel))
    vectors = "".join(
        f"<noiseRangeVector><azimuthTime>{at(line * INTERVAL_S)}</azimuthTime><pixel>{pixels}</pixel>"
        f"<noiseRangeLut>{numbers(200 + pixel)}</noiseRangeLut></noiseRangeVector>"
        for line in (0, 120)
    )
    lines = np.array([0, LINES - 1])
    blocks = "".join(
        f"<noiseAzimuthVector><firstAzimuthLine>0</firstAzimuthLine><firstRangeSample>{first}</firstRangeSample>"
        f"<lastAzimuthLine>{LINES - 1}</lastAzimuthLine><lastRangeSample>{last}</lastRangeSample>"
        f"<line>{numbers(line)}</line><noiseAzimuthLut>{numbers(value)}</noiseAzimuthLut></noiseAzimuthVector>"
        for first, last, line, value in ((0, 99, [0], [1.0]), (100, SAMPLES - 1, lines, 1.5 + lines / 1000))
    )
    return f"""<noise><noiseRangeVectorList>{vectors}</noiseRangeVectorList>
<noiseAzimuthVectorList>{blocks}</noiseAzimuthVectorList></noise>"""


def write_dem(path: Path, crs: str | None = "EPSG:4979", shift_deg: float = 0.0, kind: str = "float32") -> Path:
    row, column = np.mgrid[:180, :180]
    left, top = LONGITUDE - 0.025 + shift_deg, LATITUDE + 0.025
    heights = height(left + (column + 0.5) / 3600, top - (row + 0.5) / 3600).astype(kind)
    write_tiff(path, heights, crs=crs, transform=from_origin(left, top, 1 / 3600, 1 / 3600), nodata=-9999)
    return path


def zipped(product: Path) -> Path:
    file = product.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(product.rglob("*")):
            archive.write(path, path.relative_to(product.parent).as_posix())
    return file


def read(path: Path) -> tuple[np.ndarray, SimpleNamespace]:
    with rasterio.open(path) as raster:
        about = SimpleNamespace(bounds=raster.bounds, descriptions=raster.descriptions, tags=raster.tags())
        return raster.read(), about


def write_eof(path: Path, kind: str = "AUX_POEORB", spacing_s: float = 10.0, fraction_s: float = 0.5) -> Path:
    """An orbit file of the circle: state vectors from 150 s before the first line to 150 s behind it."""
    time_s = np.arange(-150.0, 150.0 + spacing_s, spacing_s) + fraction_s
    u = START + RATE * time_s
    velocity = RADIUS_M * RATE * np.stack([-np.sin(u), np.zeros_like(u), np.cos(u)], axis=-1)
    vectors = "".join(
        f"<OSV><TAI>TAI={at(t + 37)}</TAI><UTC>UTC={at(t)}</UTC><UT1>UT1={at(t - 0.0025)}</UT1>"
        + "".join(f'<{axis} unit="m">{value:.6f}</{axis}>' for axis, value in zip("XYZ", p, strict=True))
        + "".join(f'<V{axis} unit="m/s">{value:.6f}</V{axis}>' for axis, value in zip("XYZ", v, strict=True))
        + "<Quality>NOMINAL</Quality></OSV>"
        for t, p, v in zip(time_s, circle(time_s), velocity, strict=True)
    )
    path.write_text(
        f"<Earth_Explorer_File><Earth_Explorer_Header><Fixed_Header><Mission>Sentinel-1A</Mission>"
        f"<File_Type>{kind}</File_Type></Fixed_Header><Variable_Header><Ref_Frame>EARTH_FIXED</Ref_Frame>"
        f"<Time_Reference>UTC</Time_Reference></Variable_Header></Earth_Explorer_Header>"
        f'<Data_Block type="xml"><List_of_OSVs>{vectors}</List_of_OSVs></Data_Block></Earth_Explorer_File>'
    )
    return path

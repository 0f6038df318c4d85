"""Settings of areas, of their scenes and of what becomes of them, and of the demo world."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    field_validator,
    model_validator,
)

from covermap.label_settings import Labels
from covermap.providers import PROVIDERS
from covermap.section import (
    ADDRESS,
    CRS,
    LANGUAGE,
    PATTERNS,
    Address,
    Band,
    File,
    Name,
    Polarisation,
    Section,
    Sensor,
    Sensors,
    Unique,
    is_number,
    on_disk,
)


def _address_or_file(value: Any) -> Any:
    if isinstance(value, str) and re.match(ADDRESS, value):
        return value.rstrip("/")
    if isinstance(value, str) and re.match("https?://", value):
        raise ValueError(f"expected {PATTERNS[ADDRESS]}")
    return Path(on_disk(value)) if isinstance(value, str) else value


def _without_slash(value: str) -> str:
    return value.rstrip("/")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("the window must have a centre: expected an odd number")
    return value


class Period(Section):
    """First and last day of what an area covers."""

    start: date = Field(description="first day")
    end: date = Field(description="last day, included")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end < self.start:
            raise ValueError(f"end is {self.end}, before start {self.start}, so the period is empty: give a later end")
        return self

    @property
    def months(self) -> list[str]:
        """Calendar months that the period touches, as YYYY-MM."""
        first, last = (day.year * 12 + day.month - 1 for day in (self.start, self.end))
        return [f"{month // 12}-{month % 12 + 1:02d}" for month in range(first, last + 1)]


class Sentinel1(Section):
    """Backscatter from Sentinel-1 GRD products, or from analysis-ready assets."""

    processor: Literal["auto", "snap", "native"] = Field(
        "native", description="native: the chain of our own; auto: SNAP where it is installed and can do the rest"
    )
    polarisations: Annotated[tuple[Polarisation, ...], Unique] = Field(
        ("VV", "VH"), min_length=1, description="in this order"
    )
    orbit_state: Literal["ascending", "descending"] | None = Field(
        None, description="scenes of this direction alone; none: all, which must then be of one"
    )
    relative_orbits: Annotated[tuple[Annotated[int, Field(ge=1, le=175)], ...], Unique] = Field(
        (), description="scenes of these tracks alone; none named: all"
    )
    convention: Literal["sigma0", "beta0", "gamma0", "gamma0_terrain"] = Field(
        "sigma0", description="on the ellipsoid; gamma0_terrain: flattened by the DEM (Small 2011)"
    )
    normalise_deg: float | None = Field(
        None,
        ge=20,
        le=46,
        description="bring backscatter to this incidence angle, for several tracks [degrees]",
    )
    units: Literal["linear", "dB"] = Field("linear", description="of the scene product")
    orbits: Literal["auto"] | File | None = Field(
        None,
        description="folder of orbit files (.EOF); auto: the best one of each scene is downloaded; none: the product's "
        "own state vectors",
    )
    negative_power: Literal["keep", "floor", "nodata"] = Field(
        "keep", description="what becomes of power that is not above the thermal noise"
    )
    floor_db: float = Field(-40, ge=-60, le=-10, description="lowest backscatter where a floor is asked for [dB]")
    speckle_filter: Literal["none", "lee", "refined_lee"] = Field(
        "lee", description="filter in radar geometry, in linear power"
    )
    window_pixels: int = Field(7, ge=3, le=21, description="lee: side of the window, odd; refined_lee has 7 [px]")
    looks: float = Field(4.4, gt=0, description="equivalent number of looks of the product; 4.4 for IW GRDH")
    geoid: Literal["egm96", "egm2008"] | Annotated[float, Field(ge=-120, le=100)] | Path | None = Field(
        None, description="what a DEM's heights refer to: a model by name, its grid file, or its undulation [m]"
    )
    dem_gaps: Literal["error", "sea"] = Field("error", description="sea: where the DEM has no height lies the geoid")
    ground_range: Literal["linear", "nearest"] = Field(
        "linear", description="between the records that convert slant to ground range"
    )
    bistatic: bool = Field(False, description="correct the azimuth shift that grows from near to far range")
    path_delay: bool = Field(False, description="correct the delay of the atmosphere in slant range, about 3 m")
    layers: Annotated[tuple[Literal["incidence_angle", "layover_shadow"], ...], Unique] = Field(
        ("layover_shadow",), description="bands beside the backscatter"
    )
    assets_unit: Literal["dB", "power"] = Field("dB", description="unit of analysis-ready backscatter assets")

    _odd = field_validator("window_pixels")(_odd)

    @field_validator("geoid", mode="before")
    @classmethod
    def _undulation(cls, value: Any) -> Any:
        if not isinstance(value, str | Path | None) and (not is_number(value) or not -120 <= value <= 100):
            raise ValueError("expected egm96, egm2008, the file of a grid, or an undulation from -120 to 100 m")
        return on_disk(value)

    @model_validator(mode="after")
    def _angle(self) -> Self:
        if self.normalise_deg is not None and self.convention not in ("sigma0", "gamma0"):
            raise ValueError(
                f"normalise_deg is {self.normalise_deg}, which is defined for sigma0 and gamma0, not for "
                f"{self.convention}: remove one of the two"
            )
        return self


class Sentinel2(Section):
    """Reflectance from Sentinel-2 products or assets: of the surface (L2A), or at the top of the atmosphere (L1C)."""

    level: Literal["L2A", "L1C"] = Field("L2A", description="L1C: top of atmosphere, as some published systems used it")
    processor: Literal["none", "sen2cor"] = Field(
        "none", description="sen2cor: Level-2A is made here, of Level-1C, by ESA's Sen2Cor, which you have installed"
    )
    sen2cor_program: File | None = Field(None, description="its L2A_Process; none: the one on the PATH")
    sen2cor_gipp: File | None = Field(None, description="its own settings, L2A_GIPP.xml; none: those it came with")
    bands: Annotated[tuple[Band, ...], Unique] = Field(
        ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
        min_length=1,
        description="bands of the stack, in order",
    )
    max_cloud: float = Field(60, ge=0, le=100, description="scenes cloudier than this are not used [%]")
    resampling: Literal["nearest", "bilinear", "cubic"] = Field(
        "nearest", description="how 20 and 60 m bands come to 10 m"
    )
    warp: Literal["bilinear", "cubic"] = Field(
        "bilinear",
        description="how scenes of another zone or lattice come onto the grid; SCL by nearest neighbour",
    )
    scl: Literal["required", "optional"] = Field(
        "required", description="optional: a scene without a scene classification or cloud mask counts as clear"
    )
    offsets: Literal["agreed", "declared", "baseline"] = Field(
        "agreed",
        description="agreed: an error where an item's own declaration contradicts its baseline; else which one counts",
    )
    cloud_model: Literal["none", "s2cloudless"] = Field(
        "none", description="L1C: a second opinion on clouds, by ten bands (extra 'clouds')"
    )
    cloud_probability: float = Field(0.4, gt=0, lt=1, description="what the second opinion calls cloud, from this on")

    @model_validator(mode="after")
    def _level(self) -> Self:
        if self.level == "L2A" and "B10" in self.bands:
            raise ValueError("bands has B10 (cirrus), which exists in Level-1C only: remove it, or set level to L1C")
        if self.level == "L2A" and self.cloud_model != "none":
            raise ValueError(
                f"cloud_model is {self.cloud_model}, which reads top-of-atmosphere reflectance: set level to L1C, or "
                "cloud_model to none"
            )
        if self.level == "L1C" and self.processor != "none":
            raise ValueError(
                f"processor is {self.processor}, which makes Level-2A, but level is L1C: set level to L2A, or "
                "processor to none"
            )
        return self

    @property
    def fetched_level(self) -> Literal["L2A", "L1C"]:
        """Level of the products that are searched and fetched."""
        return "L1C" if self.processor == "sen2cor" else self.level


class Masks(Section):
    """Which pixels of a Sentinel-2 scene count as clear."""

    classes: Annotated[tuple[Annotated[int, Field(ge=0, le=11)], ...], Unique] = Field(
        (0, 1, 3, 8, 9, 10, 11), description="SCL classes that are masked"
    )
    erode_m: float = Field(
        0, ge=0, le=200, description="masked areas narrower than twice this are dropped first: bright roofs, sand [m]"
    )
    dilate_m: float = Field(40, ge=0, le=2000, description="what is left of masked areas grows by this [m]")
    max_scene: float = Field(
        100, ge=0, le=100, description="scenes with a greater share of masked pixels in the area are left out [%]"
    )
    unmask_above: float = Field(
        90, ge=0, le=100, description="a pixel that is masked in more of its observations counts as never masked [%]"
    )
    unmask_from: int = Field(
        10, ge=1, description="fewest observations of a pixel that can tell this; with fewer, gaps stay gaps"
    )


class Composite(Section):
    """How several scenes become one."""

    sentinel1: Literal["mean", "median", "first"] = Field("mean", description="of a month, in linear power")
    directions: Literal["one", "apart", "together"] = Field(
        "one",
        description="one: two orbit directions are an error; apart: each has its own bands; together: they are mixed",
    )
    multitemporal: Literal["none", "quegan_yu"] = Field(
        "none", description="filter of all scenes of the period together, before the mean"
    )
    multitemporal_pixels: int = Field(7, ge=3, le=31, description="its window for local means, odd [px]")
    sentinel2: Literal["median", "mean", "medoid", "least_cloudy", "first"] = Field(
        "median", description="of the clear observations of a step"
    )
    every: Literal["period", "year", "quarter", "month", "scene"] = Field(
        "period", description="steps of Sentinel-2; scene: each day on which there is one"
    )
    dates: Annotated[tuple[date, ...], Unique] = Field((), description="steps are the scenes of these days alone")
    season: tuple[str, str] | None = Field(
        None, description="first and last day of each year that Sentinel-2 is taken from, as MM-DD"
    )
    fill: Literal["none", "nearest", "linear"] = Field(
        "none", description="what closes gaps of a step: nothing, the nearest step, or lines between steps"
    )
    layers: Annotated[tuple[Literal["elevation", "slope", "incidence_angle", "scl"], ...], Unique] = Field(
        (),
        description="what the ground and the radar's view are like, for models with the input terrain; scl: the scene "
        "class that most observations of Sentinel-2 have",
    )
    floor_db: float = Field(-35, ge=-60, le=0, description="lowest backscatter of the composite [dB]")

    _odd = field_validator("multitemporal_pixels")(_odd)

    @field_validator("season")
    @classmethod
    def _days(cls, season: tuple[str, str] | None) -> tuple[str, str] | None:
        for day in season or ():
            try:
                datetime.strptime(f"2000-{day}" if re.fullmatch(r"\d\d-\d\d", day) else "", "%Y-%m-%d")
            except ValueError:
                raise ValueError(f"{day!r} is no day of a year: expected MM-DD, such as '05-01'") from None
        return season

    @model_validator(mode="after")
    def _steps(self) -> Self:
        if self.dates and self.every != "period":
            raise ValueError(f"dates are given, but every is {self.every}: remove one of the two")
        if self.fill != "none" and self.every == "period" and not self.dates:
            raise ValueError(f"fill is {self.fill}, but there is one step alone: set every or dates, or fill to none")
        return self


class Registration(Section):
    """How far scenes lie from the composite of them all."""

    mode: Literal["off", "report", "correct"] = Field(
        "report", description="report: estimate the shift of every scene; correct: move scenes back by it too"
    )

    @field_validator("mode", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of off without quotes

    patch_pixels: int = Field(256, ge=64, le=1024, multiple_of=64, description="side of a compared patch [px]")
    patches: int = Field(64, ge=1, le=1024, description="compared patches of a scene")
    max_shift_pixels: float = Field(4, gt=0, le=32, description="patches that seem further off are mistaken [px]")


class Mirrors(Section):
    """Where heights, orbits, labels and weights are downloaded from; none but clms needs an account."""

    glo30: Address = Field("https://copernicus-dem-30m.s3.eu-central-1.amazonaws.com", description="Copernicus GLO-30")
    glo90: Address = Field(
        "https://copernicus-dem-90m.s3.eu-central-1.amazonaws.com",
        description="Copernicus GLO-90, for land that GLO-30 leaves out",
    )
    orbits: Address = Field("https://s1-orbits.s3.amazonaws.com", description="bucket of orbit files of Sentinel-1")
    mapbiomas: Address = Field("https://storage.googleapis.com/mapbiomas-public", description="maps of MapBiomas")
    clms: Address = Field("https://land.copernicus.eu/api", description="API of the portal that Urban Atlas comes from")
    geoid: Address = Field("https://cdn.proj.org", description="grids of PROJ, of which EGM2008 is one")
    weights: Address = Field("https://huggingface.co", description="weights of encoders, of timm and torchgeo")

    _no_slash = field_validator("*")(_without_slash)


class Provider(Section):
    """Where scenes come from, and how many of them."""

    name: Literal[tuple(PROVIDERS)] = Field(description="one of the providers")  # type: ignore[valid-type]
    catalog: Annotated[str | Path, BeforeValidator(_address_or_file)] | None = Field(
        None,
        description="stac: the address of a STAC API, or an ItemCollection or static catalogue on disk",
    )
    collections: Annotated[tuple[str, ...], Unique] = Field(
        (), description="stac: collections of the API to search; none named: those that covermap knows there"
    )
    url: Address | None = Field(
        None,
        description="cdse, sentinelhub: another address of the service; stac: of the one that signs addresses of files",
    )
    per_month: dict[Sensor, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="so many passes a month at most, of each track: the widest of Sentinel-1, the clearest of a "
        "Sentinel-2 tile",
    )
    on_missing: Literal["error", "skip"] = Field(
        "error", description="what happens where no scene covers a month or a part of the area; the report names it"
    )

    @model_validator(mode="after")
    def _fits_the_provider(self) -> Self:
        if self.name == "stac" and self.catalog is None:
            raise ValueError(
                "catalog is not set: provider stac needs the address of a STAC API, or the path of an ItemCollection "
                "or static catalogue"
            )
        if self.name != "stac" and self.catalog is not None:
            raise ValueError(f"catalog is {self.catalog}, which provider {self.name} does not read: remove it")
        if self.collections and not self.is_api:
            raise ValueError(f"collections has {self.collections[0]}, which no STAC API is asked for: remove it")
        if self.url is not None and self.is_local:
            raise ValueError(f"url is {self.url}, but scenes are searched on disk: remove it")
        return self

    @property
    def is_api(self) -> bool:
        """Whether scenes are searched by a STAC API."""
        return isinstance(self.catalog, str)

    @property
    def is_local(self) -> bool:
        """Whether scenes are searched on disk."""
        return self.name == "demo" or isinstance(self.catalog, Path)


class Aoi(Section):
    """An area and a period on one grid."""

    area: File | tuple[float, float, float, float] = Field(
        description="polygon file, or west, south, east, north [degrees]"
    )
    crs: str = Field(pattern=CRS, description="projected CRS of the map, in metres")
    period: Period
    provider: Provider
    scenes: File | None = Field(None, description="a pinned list of scenes instead of a search")
    sensors: Sensors = Field(("sentinel1", "sentinel2"), description="sensors of the stack")
    dem: Literal["glo30"] | File | None = Field(
        None,
        description="heights for the terrain correction of Sentinel-1 GRD products; glo30: those of Copernicus GLO-30 "
        "are downloaded",
    )
    labels: Labels | None = Field(None, description="for training and agreement; none: the area is mapped only")
    reference: Labels | None = Field(None, description="an independent map for evaluation, never used in training")
    model: Name = Field(description="the model of results/maps/{aoi}.tif")
    language: str = Field(
        "en", pattern=LANGUAGE, description="of the classes' names in maps and reports, where the legend has it"
    )
    block_pixels: int = Field(4096, ge=64, le=16384, multiple_of=64, description="side of a unit of work [px]")
    sentinel1: dict[str, Any] = Field({}, description="overrides of the section sentinel1")
    sentinel2: dict[str, Any] = Field({}, description="overrides of the section sentinel2")
    masks: dict[str, Any] = Field({}, description="overrides of the section masks")
    composite: dict[str, Any] = Field({}, description="overrides of the section composite")
    registration: dict[str, Any] = Field({}, description="overrides of the section registration")

    @field_validator("area", mode="before")
    @classmethod
    def _file_or_box(cls, value: Any) -> Any:
        four = isinstance(value, list | tuple) and len(value) == 4 and all(map(is_number, value))
        if not four and not isinstance(value, str | Path):
            raise ValueError("expected a polygon file, or four numbers: west, south, east, north in degrees")
        return value

    @model_validator(mode="after")
    def _whole_reference(self) -> Self:
        if self.reference is not None and self.reference.is_weak:
            raise ValueError("reference.weak is set, but maps are compared with the whole reference: remove it")
        return self

    @model_validator(mode="after")
    def _labels_of_the_time(self) -> Self:
        first, last = self.period.start.year, self.period.end.year
        agreeing = self.labels.weak.agree_with if self.labels else None
        maps = {"labels": self.labels, "labels.weak.agree_with": agreeing, "reference": self.reference}
        for key, labels in maps.items():
            if labels is None or labels.year is None or labels.other_year or first <= labels.year <= last:
                continue
            years = f"{first}" if first == last else f"{first} to {last}"
            raise ValueError(
                f"{key}.year is {labels.year}, but the period lies in {years}: take a map of that time, or set "
                f"{key}.other_year to true"
            )
        return self


class Simulator(Section):
    """The demo world."""

    pixels: int = Field(2048, ge=512, le=8192, multiple_of=256, description="side of the world at 10 m [px]")
    seed: int = Field(1, ge=0, description="another seed, another world")

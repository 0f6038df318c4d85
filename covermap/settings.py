"""The groups of settings: typed, bounded, described. Every step takes those that it needs, and no others."""

from __future__ import annotations

import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from covermap.errors import SettingError
from covermap.hubs import hub_file
from covermap.mapbiomas import why_not
from covermap.models import CLASS_WEIGHTS, INDICES, LOSSES, MODELS, OVERLAP_LOSSES
from covermap.models.options import ENCODER, OPTIONS, Options
from covermap.providers import PROVIDERS

NAME, CRS, ADDRESS = r"^[a-z][a-z0-9_]*$", r"^EPSG:\d+$", r"^https?://[^\s?#@]+$"
LANGUAGE = r"^[a-z]{2}$"
MIN_PIXELS = 100  # a class with less than a hectare says nothing about the mean over classes
START = r"^([a-z][a-z0-9_]*|timm/[A-Za-z0-9_.-]+(@[0-9a-f]{40})?|torchgeo/[A-Za-z0-9_.-]+)$"
PATTERNS = {
    ADDRESS: "the address of a service: https:// or http://, a host and a path, and no name, password or question",
    NAME: "a name of small letters, digits and underscores that begins with a letter",
    CRS: "EPSG: and a number, such as EPSG:32721",
    START: "the name of a model, or timm/ or torchgeo/ and the name of weights there",
    ENCODER: "the name of an encoder of timm: letters, digits, underscores, dots and dashes",
    LANGUAGE: "the two small letters of a language, such as en or pt",
}


def _on_disk(value: Any) -> Any:
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|/vsi", value):
        raise ValueError("covermap reads files on disk, and no address: download it and give its path")
    return value


def _address_or_file(value: Any) -> Any:
    if isinstance(value, str) and re.match(ADDRESS, value):
        return value.rstrip("/")
    if isinstance(value, str) and re.match("https?://", value):
        raise ValueError(f"expected {PATTERNS[ADDRESS]}")
    return Path(_on_disk(value)) if isinstance(value, str) else value


def _without_slash(value: str) -> str:
    return value.rstrip("/")


def _text(value: Any) -> Any:
    """YAML reads a collection such as 10 or 7.1 as a number."""
    return str(value) if _is_number(value) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there twice: keep each once")
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


PHRASES = {
    r"^Input should (be|have) ": "expected ",
    r"^(Tuple|List|Dictionary|String) should have ": "expected ",
    " after validation, not .*": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "a valid dictionary.*": "keys with values",
    "a valid (tuple|list)": "a list in brackets",
    "a valid string": "text in quotes",
}


SECRETS = {  # of an address: name and password, and what follows the path, up to the brackets around the address
    r"(://)\S*@": r"\1...@",
    r"(://[^\s?#]*[?#])\S*?(?=['\"]?[])},.:;]*(\s|$))": r"\1...",
}


def first_sentence(error: ValidationError) -> str:
    """The first fault of a validation as 'key: what is wrong (got value)', without the secrets of addresses.

    Messages of our own about a section begin with the setting that they are about, so they go on behind its key.
    """
    sentence = _first_fault(error)
    for pattern, shown in SECRETS.items():
        sentence = re.sub(pattern, shown, sentence)
    return sentence


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"] if not re.search(r"[\[(]", str(part)))
    message, given = fault["msg"].removeprefix("Value error, "), fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such setting; see config/schema.json for those there are"
    if fault["type"] == "missing":
        return f"{key} is missing: add it; see config/schema.json for what it is"
    if fault["type"] == "value_error" and isinstance(given, dict | BaseModel):
        return f"{key}.{message}" if key else message
    if fault["type"] == "string_pattern_mismatch":
        message = f"expected {PATTERNS[fault['ctx']['pattern']]}"
    for phrase, plain in PHRASES.items():
        message = re.sub(phrase, plain, message)
    return f"{key}: {message} (got {'nothing' if given is None else repr(given)})"


Name = Annotated[str, StringConstraints(pattern=NAME)]
File = Annotated[Path, BeforeValidator(_on_disk)]
Address = Annotated[str, StringConstraints(pattern=ADDRESS)]
Unique = AfterValidator(_unique)
Sensor = Literal["sentinel1", "sentinel2"]
Sensors = Annotated[tuple[Sensor, ...], Field(min_length=1), Unique]
Input = Literal["sentinel1", "sentinel2", "terrain"]
Index = Literal[tuple(INDICES)]  # type: ignore[valid-type]
Loss = Literal[tuple(LOSSES)]  # type: ignore[valid-type]
Polarisation = Literal["VV", "VH", "HH", "HV"]
Band = Literal["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        if not isinstance(value, str | Path | None) and (not _is_number(value) or not -120 <= value <= 100):
            raise ValueError("expected egm96, egm2008, the file of a grid, or an undulation from -120 to 100 m")
        return _on_disk(value)

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


class Shoreline(Section):
    """Where labelled water is not always water, by the NDWI of every clear date (Sefrin et al. 2021)."""

    water: Annotated[tuple[Name, ...], Unique] = Field(min_length=1, description="classes that are water")
    threshold: float = Field(0.0, ge=-1, le=1, description="water has an NDWI of at least this on every clear date")
    sweep: Annotated[tuple[Annotated[float, Field(ge=-1, le=1)], ...], Unique] = Field(
        (-0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6),
        min_length=2,
        description="thresholds of results/shorelines/{aoi}.csv, which says what each would exclude",
    )


URBAN_ATLAS_YEARS = (2006, 2012, 2018, 2021)
URBAN_ATLAS_LEGEND = "resources/legends/urban_atlas.csv"


class Polygons(Section):
    """How polygons become pixels."""

    layer: str | None = Field(None, description="the layer with the map, where a file has several")
    where: str | None = Field(
        None, min_length=1, description="only features of which this is true, in SQL, such as area_ha > 1"
    )
    priority: str | None = Field(
        None,
        description="which polygon has a pixel that several hold; none: the last in the file; legend: that of the "
        "class which stands first there; an attribute: that with the greatest number in it",
    )
    min_area_m2: float = Field(0, ge=0, description="smaller polygons are left out [m2]")
    all_touched: bool = Field(
        False, description="whether a polygon has all pixels that it touches, and not only those whose centre it holds"
    )


POLYGONS = Polygons()


class LabelMap(Section):
    """A map of what the ground was, and how it is read."""

    source: Literal["mapbiomas", "raster", "vector", "urban_atlas"] = Field(description="how the file is read")
    path: Literal["auto"] | File = Field(description="the file; auto: the area's part of a map is downloaded")
    collection: Annotated[str, BeforeValidator(_text)] | None = Field(
        None,
        description="auto: of MapBiomas, such as 10 or 10m-4, or the address of another map with {year} in it; a file: "
        "of MapBiomas or another edition, where codes of the legend depend on it",
    )
    year: int | None = Field(
        None,
        ge=1985,
        le=2100,
        description="year of the map; auto needs it; urban_atlas: its edition, where a file has several",
    )
    legend: File = Field(
        description=f"CSV of code, class, name, colour; urban_atlas: {URBAN_ATLAS_LEGEND} where none is named"
    )
    attribute: str | None = Field(None, description="vector: the attribute that holds the code")
    other_year: bool = Field(False, description="whether the year may lie outside the period of the area")
    polygons: Polygons = Field(POLYGONS, description="vector, urban_atlas: how polygons become pixels")

    @model_validator(mode="before")
    @classmethod
    def _own_legend(cls, given: Any) -> Any:
        own = isinstance(given, dict) and given.get("source") == "urban_atlas"
        return {"legend": URBAN_ATLAS_LEGEND, **given} if own else given

    @model_validator(mode="after")
    def _attribute(self) -> Self:
        if (self.source == "vector") != (self.attribute is not None):
            raise ValueError(
                f"attribute is {self.attribute or 'not set'}, but source is {self.source}: vector labels need the "
                "attribute that holds the code, the others have none"
            )
        return self

    @model_validator(mode="after")
    def _download(self) -> Self:
        if self.source == "urban_atlas":
            return self._of_urban_atlas()
        if self.path != "auto":
            return self
        if self.source == "vector":
            raise ValueError("path is auto, but source is vector: only maps of pixels are downloaded, so give the file")
        if self.collection is None or self.year is None:
            raise ValueError("path is auto, which needs collection and year: add both, such as 10 and 2022")
        if reason := why_not(self.collection, self.year):
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _polygons(self) -> Self:
        if not self.is_vector and self.polygons != POLYGONS:
            raise ValueError(f"polygons is set, but source is {self.source}, which has pixels: remove it")
        if self.source == "urban_atlas" and self.polygons.layer is not None:
            raise ValueError(
                f"polygons.layer is {self.polygons.layer}, but source is urban_atlas, which reads the layers of all "
                "cities: remove it, or set source to vector"
            )
        return self

    @model_validator(mode="after")
    def _other_year(self) -> Self:
        if self.other_year and self.year is None:
            raise ValueError("other_year is true, but year is not set, so there is none to allow: add it, or remove it")
        return self

    def _of_urban_atlas(self) -> Self:
        if self.collection is not None:
            raise ValueError(f"collection is {self.collection}, but Urban Atlas has editions by year: remove it")
        if self.path == "auto" and self.year not in URBAN_ATLAS_YEARS:
            raise ValueError(
                f"year is {self.year or 'not set'}, but Urban Atlas is to be downloaded: expected one of "
                f"{', '.join(map(str, URBAN_ATLAS_YEARS))}"
            )
        return self

    @property
    def code_attribute(self) -> str | None:
        """The attribute that holds the code; that of Urban Atlas has the year in its name, however it is spelt."""
        return f"code_{self.year}" if self.source == "urban_atlas" and self.year else self.attribute

    @property
    def map(self) -> tuple[Any, ...]:
        """What tells this map from another one."""
        return self.path, self.collection, self.year, self.attribute, self.polygons.layer

    @property
    def is_vector(self) -> bool:
        """Whether the file has polygons."""
        return self.source in ("vector", "urban_atlas")

    @property
    def is_ordered(self) -> bool:
        """Whether the file is ordered from the Copernicus Land Monitoring Service, which takes an account."""
        return self.source == "urban_atlas" and self.path == "auto"


Percent = Annotated[int, Field(ge=1, le=100)]


class Weak(Section):
    """Which labels are trusted less, when a model learns: maps are compared with all of them."""

    erode_pixels: int = Field(
        0,
        ge=0,
        le=10,
        description="so far from another class there is no label; in pixels of the label map, of the grid for polygons",
    )
    stable_with: Annotated[tuple[Annotated[int, Field(ge=1985, le=2100)] | File, ...], Unique] = Field(
        (),
        description="mapbiomas, raster: the same map of other years, by file, or by year where path is auto: where one "
        "has another class there is no label",
    )
    agree_with: LabelMap | None = Field(
        None, description="another map with the same classes: where it has another class there is no label"
    )
    ignore: Annotated[tuple[Name, ...], Unique] = Field((), description="classes that are excluded")
    class_weights: dict[Name, Percent] = Field({}, description="weight of the pixels of a class; others have 100 [%]")

    @model_validator(mode="after")
    def _once(self) -> Self:
        if both := [name for name in self.ignore if name in self.class_weights]:
            raise ValueError(f"class_weights has {both[0]}, which ignore leaves out: remove it from one of the two")
        if self.agree_with is not None and self.agree_with.is_ordered:
            raise ValueError("agree_with.path is auto, but Urban Atlas is ordered for labels alone: give the file")
        return self


class Labels(LabelMap):
    """A map of what the ground was, and which of it a model learns."""

    weak: Weak = Field(Weak(), description="labels that are trusted less; by default all are trusted")
    shoreline: Shoreline | None = Field(None, description="exclude water that comes and goes; none: keep all")

    @property
    def is_weak(self) -> bool:
        """Whether a model learns less than all labels."""
        return self.weak != Weak()

    @model_validator(mode="after")
    def _other_maps(self) -> Self:
        for other in self.weak.stable_with:
            if isinstance(other, int) != (self.path == "auto"):
                wanted = "years, since path is auto" if self.path == "auto" else "files, since path is one"
                raise ValueError(f"weak.stable_with has {other}: expected {wanted}")
            if isinstance(other, int):
                self._of_year(other)
            elif self.is_vector:
                raise ValueError(
                    f"weak.stable_with has {other}, but source is {self.source}, where the attribute with the code is "
                    "named after the year: set weak.agree_with to the map of the other year"
                )
            elif other == self.path:
                raise ValueError(f"weak.stable_with has {other}, which is path itself: name the map of another year")
        agreeing = self.weak.agree_with
        if agreeing is not None and agreeing.map == self.map:
            raise ValueError(f"weak.agree_with.path is {self.path}, which is path itself: name another map")
        return self

    def _of_year(self, year: int) -> None:
        """Refuse a map of another year that cannot be downloaded, or is that of ``labels.year``."""
        if self.source == "urban_atlas":
            raise ValueError(
                f"weak.stable_with has {year}, but editions of Urban Atlas are ordered one by one: set weak.agree_with "
                "to the file of another one"
            )
        if year == self.year:
            raise ValueError(f"weak.stable_with has {year}, which is year itself: name other years")
        if reason := why_not(str(self.collection), year):
            raise ValueError(f"weak.stable_with has {year}: {reason}")


class Images(Section):
    """What the images of a set of patches hold."""

    level: Literal["RGB8", "L1C", "L2A"] = Field(
        "RGB8",
        description="RGB8: pictures of 8 bits, whose values are no reflectance; else reflectance of 16 bits in steps "
        "of 0.0001",
    )
    bands: Annotated[tuple[Band, ...], Unique] = Field(
        ("B04", "B03", "B02"), min_length=1, description="those that are packed, in this order"
    )
    file_bands: Annotated[tuple[Band, ...], Unique] = Field(
        (), description="all bands of an image, in its order; none named: those that are packed"
    )
    on_broken: Literal["error", "skip"] = Field(
        "error", description="what happens to images that cannot be decoded; skip: they are left out and counted"
    )

    @property
    def places(self) -> list[int]:
        """Place of each packed band in an image."""
        return [(self.file_bands or self.bands).index(band) for band in self.bands]

    @model_validator(mode="after")
    def _bands(self) -> Self:
        if missing := [band for band in self.bands if self.file_bands and band not in self.file_bands]:
            raise ValueError(
                f"bands has {missing[0]}, but file_bands has only {', '.join(self.file_bands)}: remove it, or mend "
                "file_bands"
            )
        return self


class SplitLists(Section):
    """Text files with a name of an image a line, as data sets come with them."""

    train: File
    validation: File
    test: File


class Patches(Images):
    """A set of images of one class each: a folder a class, as EuroSAT has it."""

    path: File = Field(description="folder or zip with a folder of images for each class")
    legend: File = Field(description="CSV of code, class, name, colour; the codes are the folders' names")
    lists: SplitLists | None = Field(None, description="published splits, for models with the split lists")


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
        four = isinstance(value, list | tuple) and len(value) == 4 and all(map(_is_number, value))
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


class Tiles(Section):
    """Training samples and the spatial split."""

    pixels: int = Field(256, ge=32, le=1024, multiple_of=32, description="side of a tile [px]")
    stride_pixels: int | None = Field(
        None,
        ge=16,
        description="distance of neighbouring tiles: below pixels they overlap, above it a gap is left; none: pixels "
        "[px]",
    )
    split: Literal["blocks", "stratified", "random", "lists"] = Field(
        "blocks",
        description="blocks: cells by their place alone; stratified: cells, so that every split has its share of every "
        "class; random: tile by tile, as published systems did, which leaks; lists: of patches, as published",
    )
    cell_pixels: int = Field(1024, ge=32, description="side of a cell of the spatial split [px]")
    buffer_pixels: int = Field(64, ge=0, description="rim of a held-out cell that is left out [px]")
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the cells, or of the tiles of a random split")
    test: float = Field(0.15, gt=0, lt=0.5, description="likewise; with folds, the share of one fold")
    seed: int | None = Field(
        None, ge=0, le=2**31, description="of the split; none: that of the model, so that another seed is another split"
    )
    folds: int | None = Field(
        None, ge=2, le=20, description="so many models between them test every cell once, each of another fold"
    )
    fold: int = Field(0, ge=0, description="the fold that this model is tested on, from 0 on")
    incomplete: Literal["keep", "drop"] = Field(
        "keep",
        description="tiles of which a pixel has no label or was never observed: drop them, or keep them, where such "
        "pixels have no weight",
    )
    min_labelled: float = Field(0.5, ge=0, le=1, description="tiles with a smaller share of labelled pixels are left")
    max_empty: float = Field(
        100, ge=0, le=100, description="tiles with a greater share of pixels that were never observed are left [%]"
    )
    max_cloud: float | None = Field(
        None,
        ge=0,
        le=100,
        description="tiles of which a greater share of what Sentinel-2 saw was never clear are left; none: 15, but no "
        "limit beside radar, which sees through clouds [%]",
    )
    balance: Literal["none", "inverse", "inverse_sqrt"] = Field(
        "none", description="how often training draws tiles of rare classes: as often as others, or by training pixels"
    )

    @property
    def spacing_pixels(self) -> int:
        """Distance of neighbouring tiles."""
        return self.stride_pixels or self.pixels

    @property
    def count_gaps(self) -> bool:
        """Whether it matters where no scene observed anything."""
        return self.incomplete == "drop" or self.max_empty < 100

    @model_validator(mode="after")
    def _folds(self) -> Self:
        if self.folds is None:
            if self.fold:
                raise ValueError(f"fold is {self.fold}, but folds is not set: set the number of folds, or remove fold")
            return self
        if self.fold >= self.folds:
            raise ValueError(f"fold is {self.fold}: expected 0 to {self.folds - 1}, since folds is {self.folds}")
        if self.test not in (Tiles.model_fields["test"].default, 1 / self.folds):
            raise ValueError(
                f"test is {self.test}, but folds is {self.folds}, so that a fold has 1/{self.folds} of the cells: "
                "remove one of the two"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.split != "random" and self.pixels > self.cell_pixels - 2 * self.buffer_pixels:
            raise ValueError(
                f"pixels is {self.pixels}: a tile of {self.pixels} px does not fit into a held-out cell of "
                f"{self.cell_pixels} px less a buffer of {self.buffer_pixels} px on each side: enlarge cell_pixels or "
                "lessen buffer_pixels"
            )
        test = 1 / self.folds if self.folds else self.test
        if self.validation + test >= 0.8:
            raise ValueError(
                f"test is {test:g} beside validation {self.validation}: expected less than 0.8 together, so that "
                "cells are left to learn from"
            )
        return self


class Augment(Section):
    """How training varies its tiles, anew in every step; what is 0 is off."""

    symmetries: bool = Field(True, description="turn and mirror tiles, in all eight ways")
    rotate_deg: float = Field(
        0, ge=0, le=45, description="besides, turn each tile by up to this, what is turned in being no data [degrees]"
    )
    crop: float = Field(
        1, gt=0, le=1, description="of patches: the least share of an image that is cut out and enlarged again"
    )
    reflectance_gain: float = Field(
        0, ge=0, le=0.5, description="each step of Sentinel-2 is brightened or darkened by up to this share"
    )
    reflectance_offset: float = Field(
        0, ge=0, le=0.1, description="to each step of Sentinel-2 up to this is added or taken from it [reflectance]"
    )
    reflectance_noise: float = Field(
        0, ge=0, le=0.05, description="standard deviation of noise in Sentinel-2 [reflectance]"
    )
    backscatter_shift_db: float = Field(
        0, ge=0, le=6, description="each step of Sentinel-1 is raised or lowered by up to this [dB]"
    )
    backscatter_noise_db: float = Field(0, ge=0, le=3, description="standard deviation of noise in Sentinel-1 [dB]")
    drop_dates: float = Field(
        0, ge=0, le=0.9, description="share of the steps that a tile is shown without; of each sensor one always stays"
    )
    drop_sensors: float = Field(
        0, ge=0, le=0.9, description="share of the tiles that are shown without one of the two sensors"
    )


class Training(Section):
    """The training recipe."""

    epochs: int = Field(30, ge=1, description="passes over the training tiles")
    steps: int | None = Field(
        None, ge=1, description="steps of an epoch; none: as many as it takes to see every training tile once"
    )
    batch: int = Field(16, ge=1, description="tiles a step, on all devices together")
    optimiser: Literal["adamw", "adam", "sgd"] = Field("adamw", description="sgd: with a momentum of 0.9")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="highest rate")
    schedule: Literal["cosine", "plateau", "exponential", "constant"] = Field(
        "cosine",
        description="of the learning rate after warm-up; cosine: half a cosine to zero; plateau: halved where five "
        "epochs brought nothing; exponential: from the twelfth epoch on less by a tenth each, as Sefrin et al. (2021)",
    )
    warm_up: float = Field(0.05, ge=0, lt=1, description="share of the first steps in which the rate grows from zero")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW; of the others an L2 penalty")
    clip: float | None = Field(1.0, gt=0, description="highest norm of the gradient; none: any")
    average: float = Field(
        0, ge=0, lt=1, description="decay of the moving average of the weights that is validated and kept; 0: none"
    )
    patience: int | None = Field(
        None, ge=1, description="epochs without a better macro F1 on validation tiles after which training stops"
    )
    min_gain: float = Field(0, ge=0, lt=1, description="how much better the macro F1 must be to count for patience")
    loss: Annotated[dict[Loss, Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(  # type: ignore[valid-type]
        {"cross_entropy": 1.0}, description="shares of the losses that are added up"
    )
    focal_gamma: float = Field(2.0, gt=0, le=10, description="of the focal loss: how little easy pixels count")
    robust_q: float = Field(
        0.7, gt=0, le=0.95, description="of the generalised cross-entropy: higher values forgive more wrong labels"
    )
    normalise: Literal["weight", "pixels"] = Field(
        "weight",
        description="weight: the loss is a mean over what labels weigh; pixels: over all pixels, labelled or not, as "
        "published",
    )
    class_weights: Literal[tuple(CLASS_WEIGHTS)] | None = Field(  # type: ignore[valid-type]
        None, description="by training pixels; none given: inverse_sqrt, or none where tiles.balance is set"
    )
    weight_cap: float = Field(20, ge=1, description="highest ratio of two class weights")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label given to all classes")
    min_pixels: int | None = Field(
        None,
        ge=1,
        description="validation pixels without which a class does not count in the macro F1; none: 100, or one patch",
    )
    order: Literal["tiles", "shards"] = Field(
        "tiles", description="tiles: at random; shards: eight blocks in turn, for stores larger than memory"
    )
    augment: Augment = Augment()
    precision: Literal["auto", "float32"] = Field(
        "auto", description="auto: bfloat16 where the hardware multiplies it, with weights in float32"
    )
    compile: bool = Field(False, description="torch.compile: a slow first step, then faster ones")
    threads: int = Field(2, ge=1, le=64, description="torch threads: results are identical at one number of threads")

    @property
    def of_overlap_alone(self) -> bool:
        """Whether each class counts alike in the loss, however many pixels it has."""
        return {*self.loss} <= {*OVERLAP_LOSSES}

    @model_validator(mode="after")
    def _has_patience(self) -> Self:
        if self.min_gain and self.patience is None:
            raise ValueError(f"min_gain is {self.min_gain}, but patience is not set: set it, or remove min_gain")
        return self

    @model_validator(mode="after")
    def _suits_the_loss(self) -> Self:
        for name, losses in OF_LOSSES.items():
            default, value = Training.model_fields[name].default, getattr(self, name)
            if value not in (default, "none") and not {*losses} & {*self.loss}:
                raise ValueError(
                    f"{name} is {value}, which the loss {' + '.join(self.loss)} does not know: remove it, or add "
                    f"{' or '.join(losses)} to loss"
                )
        return self


class Prediction(Section):
    """How a network covers a map."""

    window_pixels: int = Field(256, ge=32, le=2048, multiple_of=32, description="pixels predicted at once, a side")
    overlap: float = Field(0.5, ge=0, lt=0.9, description="share of a window that its neighbour sees too")
    batch: int = Field(4, ge=1, description="windows at once")
    threads: int = Field(1, ge=1, le=64, description="torch threads of one block: results are identical at one number")


OF_LOSSES = {  # what settings of Training belong to some losses alone
    "focal_gamma": ("focal",),
    "robust_q": ("robust",),
    "label_smoothing": ("cross_entropy", "focal"),
    "normalise": ("cross_entropy", "focal", "robust"),
    "class_weights": ("cross_entropy", "focal", "robust"),
}
AUGMENTED = {  # what the settings of Augment change, by how their names begin
    "reflectance": ("sentinel2",),
    "backscatter": ("sentinel1",),
    "drop_sensors": ("sentinel1", "sentinel2"),
}


def _or_weights(schema: dict[str, Any]) -> None:
    """What a model must set, it need not where it applies others' weights."""
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": ["weights"]}]


class Model(Section):
    """A network, what it learns from and how it is applied."""

    model_config = ConfigDict(json_schema_extra=_or_weights)

    network: Literal[tuple(MODELS)] = Field(description="one of the networks")  # type: ignore[valid-type]
    options: dict[str, Any] = Field(
        {},
        description="keywords of the network",
        json_schema_extra={"anyOf": [options.model_json_schema() for options in OPTIONS.values()]},
    )
    train_on: Annotated[tuple[Name, ...], Unique] = Field(
        min_length=1, description="areas whose labels it learns from, or one set of patches"
    )
    test_on: Annotated[tuple[Name, ...], Unique] = Field(
        (), description="labelled areas that are held out whole: another place, or the same place at another time"
    )
    sensors: Annotated[tuple[Input, ...], Field(min_length=1), Unique] = Field(
        ("sentinel1", "sentinel2"), description="inputs; terrain: the layers of the areas' composites"
    )
    indices: Annotated[tuple[Index, ...], Unique] = Field(  # type: ignore[valid-type]
        (), description="further input bands, computed from the others on the device"
    )
    months: Annotated[tuple[Annotated[int, Field(ge=1, le=12)], ...], Unique] = Field(
        (), description="of Sentinel-1's months those that the model sees; none named: all"
    )
    dates: Annotated[tuple[date, ...], Unique] = Field(
        (), description="of Sentinel-2's steps those that begin on these days, which the model sees; none named: all"
    )
    start_from: str | None = Field(
        None,
        pattern=START,
        description="weights that training starts from: another model's, by its name, or an encoder's of a hub, such "
        "as timm/resnet50.a1_in1k or torchgeo/resnet50_sentinel2_all_moco; of timm's, @ and a commit pin the file",
    )
    weights: Annotated[
        tuple[Name, ...], BeforeValidator(_one_or_more, json_schema_input_type=str | list[str]), Unique
    ] = Field(
        (),
        description="models whose weights are applied, their probabilities averaged: this one is not trained, and what "
        "it does not set is as in the first of them",
    )
    seed: int = Field(0, ge=0, le=2**31, description="of the split, the weights and the order of tiles")
    tiles: Tiles = Tiles()
    tiles_of: Name | None = Field(
        None,
        description="a model whose tiles and split this one learns from, so that they are made once; its own `tiles` "
        "then has balance alone, and what both see is alike",
    )
    training: Training = Training()
    prediction: Prediction = Prediction()

    @field_validator("start_from")
    @classmethod
    def _is_in_the_hub(cls, name: str | None) -> str | None:
        try:
            if name is not None and "/" in name:
                hub_file(name)
        except SettingError as error:
            raise ValueError(str(error)) from None
        return name

    @model_validator(mode="after")
    def _suits_the_sensors(self) -> Self:
        for name, value in self.training.augment:
            needed = next((sensors for prefix, sensors in AUGMENTED.items() if name.startswith(prefix)), ())
            missing = [sensor for sensor in needed if sensor not in self.sensors]
            if value and missing:
                raise ValueError(
                    f"training.augment.{name} is {value}, but sensors are {', '.join(self.sensors)}: set it to 0, or "
                    f"add {missing[0]}"
                )
        return self

    @model_validator(mode="after")
    def _sampler_or_weights(self) -> Self:
        rule, balance = self.training.class_weights, self.tiles.balance
        if rule not in (None, "none") and balance != "none":
            raise ValueError(
                f"training.class_weights is {rule}, but tiles.balance is {balance}, so rare classes would count twice: "
                "set one of the two to none"
            )
        cap = self.training.weight_cap
        if self.class_weights == "none" and cap != Training.model_fields["weight_cap"].default:
            raise ValueError(
                f"training.weight_cap is {cap}, but no class weighs more than another: remove it, or set "
                "training.class_weights"
            )
        return self

    @property
    def class_weights(self) -> str:
        """The rule of the class weights: none beside a sampler, or where the loss has no use for them."""
        without = self.tiles.balance != "none" or self.training.of_overlap_alone
        return self.training.class_weights or ("none" if without else "inverse_sqrt")

    @property
    def min_pixels(self) -> int:
        """Validation pixels, or patches, without which a class does not count in the macro F1."""
        return self.training.min_pixels or (1 if OPTIONS[self.network].of_patches else MIN_PIXELS)

    @model_validator(mode="after")
    def _chooses_of_what_it_sees(self) -> Self:
        for key, sensor in (("months", "sentinel1"), ("dates", "sentinel2")):
            if getattr(self, key) and sensor not in self.sensors:
                raise ValueError(f"{key} is set, but sensors lacks {sensor}, whose steps it chooses: remove it")
        return self

    @property
    def network_options(self) -> Options:
        """What is set of the network, and what follows from it."""
        return OPTIONS[self.network](**self.options)

    @property
    def split_seed(self) -> int:
        """Seed of the split into training, validation and test."""
        return self.seed if self.tiles.seed is None else self.tiles.seed

    @model_validator(mode="after")
    def _suits_the_network(self) -> Self:
        try:
            multiple = self.network_options.multiple
        except ValidationError as error:
            known = ", ".join(OPTIONS[self.network].model_fields)
            raise ValueError(f"options.{first_sentence(error)} (network {self.network} has {known})") from None
        takes, needs = OPTIONS[self.network].takes, OPTIONS[self.network].needs
        if others := [sensor for sensor in self.sensors if sensor not in takes]:
            raise ValueError(
                f"sensors has {others[0]}, but network {self.network} takes {', '.join(takes)} alone: remove it"
            )
        if missing := [sensor for sensor in needs if sensor not in self.sensors]:
            raise ValueError(f"sensors lacks {missing[0]}, which network {self.network} needs: add it")
        self._must_have_the_encoder()
        sides = {"tiles.pixels": self.tiles.pixels, "prediction.window_pixels": self.prediction.window_pixels}
        for key, side in sides.items():
            if side % multiple:
                raise ValueError(
                    f"{key} is {side}: expected a multiple of {multiple}, which network {self.network} with options "
                    f"{self.options} needs"
                )
        return self

    def _must_have_the_encoder(self) -> None:
        """Refuse weights of a hub that are of no encoder of the network, by their name."""
        hub, _, name = (self.start_from or "").partition("/")
        if not name:
            return
        encoder = getattr(self.network_options, "encoder", None)
        if encoder is None:
            raise ValueError(
                f"start_from is {self.start_from}, weights of an encoder, which network {self.network} has not: take "
                "network segmenter or classifier, or start from another model"
            )
        bare = encoder.partition(".")[0]
        if not (name.partition("@")[0].partition(".")[0] == bare if hub == "timm" else name.startswith(f"{bare}_")):
            raise ValueError(
                f"start_from is {self.start_from}, but options.encoder is {encoder}: take the encoder that the weights "
                "are of"
            )


class Simulator(Section):
    """The demo world."""

    pixels: int = Field(2048, ge=512, le=8192, multiple_of=256, description="side of the world at 10 m [px]")
    seed: int = Field(1, ge=0, description="another seed, another world")

"""What a person may set: typed, bounded, described; checked once, when the workflow is read.

An error names the key, the value and what was expected. `config/schema.json` is generated from these classes
(``python -m covermap.config``), so an editor can complete and check ``config/config.yaml``.
"""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from covermap.errors import SettingError
from covermap.legend import Legend, read_legend
from covermap.models import MODELS
from covermap.providers import PROVIDERS

NAME = r"[a-z][a-z0-9_]*"
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$")]
Sensor = Literal["sentinel1", "sentinel2"]
Band = Literal["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
            raise ValueError(f"period {self.start} to {self.end} is empty: end must not come before start")
        return self

    @property
    def months(self) -> list[str]:
        """Calendar months that the period touches, as YYYY-MM."""
        first, last = (day.year * 12 + day.month - 1 for day in (self.start, self.end))
        return [f"{month // 12}-{month % 12 + 1:02d}" for month in range(first, last + 1)]


class Sentinel1(Section):
    """Backscatter from Sentinel-1 GRD products, or from analysis-ready assets."""

    processor: Literal["auto", "snap", "native"] = Field(
        "auto", description="auto: SNAP where it is installed, the chain of our own elsewhere"
    )
    polarisations: tuple[Literal["VV", "VH", "HH", "HV"], ...] = Field(
        ("VV", "VH"), min_length=1, description="in this order"
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
    orbits: Path | None = Field(None, description="folder of orbit files (.EOF); none: the product's own state vectors")
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
    layers: tuple[Literal["incidence_angle", "layover_shadow"], ...] = Field(
        ("layover_shadow",), description="bands beside the backscatter"
    )
    assets_unit: Literal["dB", "power"] = Field("dB", description="unit of analysis-ready backscatter assets")

    _odd = field_validator("window_pixels")(_odd)

    @model_validator(mode="after")
    def _angle(self) -> Self:
        if self.normalise_deg is not None and self.convention not in ("sigma0", "gamma0"):
            raise ValueError(
                f"normalise_deg is {self.normalise_deg}, which is defined for sigma0 and gamma0, not for "
                f"{self.convention}: remove one of the two"
            )
        return self


class Sentinel2(Section):
    """Surface reflectance from Sentinel-2 L2A products or assets."""

    bands: tuple[Band, ...] = Field(
        ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
        min_length=1,
        description="bands of the stack, in order",
    )
    max_cloud: float = Field(60, ge=0, le=100, description="scenes cloudier than this are not used [%]")
    resampling: Literal["nearest", "bilinear", "cubic"] = Field(
        "nearest", description="how 20 and 60 m bands come to 10 m, and scenes of another zone onto the grid"
    )
    scl: Literal["required", "optional"] = Field(
        "required", description="optional: a scene without a scene classification counts as clear"
    )


class Masks(Section):
    """Which pixels of a Sentinel-2 scene count as clear."""

    classes: tuple[int, ...] = Field((0, 1, 3, 8, 9, 10, 11), description="SCL classes that are masked")
    dilate_m: float = Field(40, ge=0, le=2000, description="masked areas grow by this [m]")


class Composite(Section):
    """How several scenes become one."""

    sentinel1: Literal["mean", "median"] = Field("mean", description="of a month, in linear power")
    multitemporal: Literal["none", "quegan_yu"] = Field(
        "none", description="filter of all scenes of the period together, before the mean"
    )
    multitemporal_pixels: int = Field(7, ge=3, le=31, description="its window for local means, odd [px]")
    sentinel2: Literal["median", "mean"] = Field("median", description="of the period's clear observations")
    floor_db: float = Field(-35, ge=-60, le=0, description="lowest backscatter of the composite [dB]")

    _odd = field_validator("multitemporal_pixels")(_odd)


class Labels(Section):
    """A map of what the ground was."""

    source: Literal["mapbiomas", "raster", "vector"] = Field(description="how the file is read")
    path: Path = Field(description="the file")
    legend: Path = Field(description="CSV of code, class, name, colour")
    attribute: str | None = Field(None, description="vector: the attribute that holds the code")

    @model_validator(mode="after")
    def _attribute(self) -> Self:
        if (self.source == "vector") != (self.attribute is not None):
            raise ValueError(f"attribute is {self.attribute!r}: a vector source needs one, a raster source has none")
        return self


class Provider(Section):
    """Where scenes come from."""

    name: Literal[tuple(PROVIDERS)] = Field(description="one of the providers")  # type: ignore[valid-type]
    catalog: Path | None = Field(None, description="stac: an ItemCollection or a static catalogue on disk")

    @model_validator(mode="after")
    def _catalog(self) -> Self:
        if (self.name == "stac") != (self.catalog is not None):
            raise ValueError(f"catalog is {self.catalog}: stac needs one, {self.name!r} has none of its own")
        return self


class Aoi(Section):
    """An area and a period on one grid."""

    area: Path | tuple[float, float, float, float] = Field(
        description="polygon file, or west, south, east, north [degrees]"
    )
    crs: str = Field(pattern=r"^EPSG:\d+$", description="projected CRS of the map, in metres")
    period: Period
    provider: Provider
    scenes: Path | None = Field(None, description="a pinned list of scenes instead of a search")
    sensors: tuple[Sensor, ...] = Field(("sentinel1", "sentinel2"), min_length=1, description="sensors of the stack")
    dem: Path | None = Field(None, description="heights for the terrain correction of Sentinel-1 GRD products")
    labels: Labels | None = Field(None, description="for training and agreement; none: the area is mapped only")
    reference: Labels | None = Field(None, description="an independent map for evaluation, never used in training")
    model: Name = Field(description="the model of results/maps/{aoi}.tif")
    block_pixels: int = Field(4096, ge=64, le=16384, multiple_of=64, description="side of a unit of work [px]")
    sentinel1: dict[str, Any] = Field({}, description="overrides of the section sentinel1")
    sentinel2: dict[str, Any] = Field({}, description="overrides of the section sentinel2")
    masks: dict[str, Any] = Field({}, description="overrides of the section masks")
    composite: dict[str, Any] = Field({}, description="overrides of the section composite")


class Tiles(Section):
    """Training samples and the spatial split."""

    pixels: int = Field(256, ge=32, le=1024, multiple_of=32, description="side of a tile [px]")
    stride_pixels: int = Field(256, ge=16, description="distance of neighbouring tiles [px]")
    cell_pixels: int = Field(1024, ge=32, description="side of a cell of the spatial split [px]")
    buffer_pixels: int = Field(64, ge=0, description="rim of a held-out cell that is left out [px]")
    validation: float = Field(0.15, gt=0, lt=0.5, description="share of the cells")
    test: float = Field(0.15, gt=0, lt=0.5, description="share of the cells")
    min_labelled: float = Field(0.5, ge=0, le=1, description="tiles with a smaller share of labelled pixels are left")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pixels > self.cell_pixels - 2 * self.buffer_pixels:
            raise ValueError(
                f"a tile of {self.pixels} px does not fit into a held-out cell of {self.cell_pixels} px less a buffer "
                f"of {self.buffer_pixels} px on each side: enlarge cell_pixels or lessen buffer_pixels"
            )
        return self


class Training(Section):
    """The training recipe."""

    epochs: int = Field(30, ge=1, description="passes over the training tiles")
    batch: int = Field(16, ge=1, description="tiles a step")
    learning_rate: float = Field(2e-3, gt=0, lt=1, description="highest rate; warm-up, then cosine")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW's weight decay")
    class_weights: Literal["none", "inverse_sqrt", "inverse"] = Field("inverse_sqrt", description="by training pixels")
    weight_cap: float = Field(20, ge=1, description="highest ratio of two class weights")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label given to all classes")
    threads: int = Field(2, ge=1, le=64, description="torch threads: results are identical at one number of threads")


class Prediction(Section):
    """How a network covers a map."""

    window_pixels: int = Field(256, ge=32, le=2048, multiple_of=32, description="pixels predicted at once, a side")
    overlap: float = Field(0.5, ge=0, lt=0.9, description="share of a window that its neighbour sees too")
    batch: int = Field(4, ge=1, description="windows at once")
    threads: int = Field(1, ge=1, le=64, description="torch threads of one block: results are identical at one number")


class Model(Section):
    """A network, what it learns from and how it is applied."""

    network: Literal[tuple(MODELS)] = Field(description="one of the networks")  # type: ignore[valid-type]
    options: dict[str, int | float | str | bool] = Field({}, description="keywords of the network")
    train_on: tuple[Name, ...] = Field(min_length=1, description="areas whose labels it learns from")
    sensors: tuple[Sensor, ...] = Field(("sentinel1", "sentinel2"), min_length=1, description="inputs")
    seed: int = Field(0, ge=0, description="of the split, the weights and the order of tiles")
    tiles: Tiles = Tiles()
    training: Training = Training()
    prediction: Prediction = Prediction()


class Simulator(Section):
    """The demo world."""

    pixels: int = Field(2048, ge=512, le=8192, multiple_of=256, description="side of the world at 10 m [px]")
    seed: int = Field(1, ge=0, description="another seed, another world")


SENSOR_SECTIONS = ("sentinel1", "sentinel2", "masks", "composite")


class Config(Section):
    """The whole of config/config.yaml."""

    targets: tuple[Name, ...] = Field(("demo",), min_length=1, description="areas that `snakemake` maps")
    aois: dict[Name, Aoi] = Field(min_length=1)
    models: dict[Name, Model] = Field(min_length=1)
    sentinel1: Sentinel1 = Sentinel1()
    sentinel2: Sentinel2 = Sentinel2()
    masks: Masks = Masks()
    composite: Composite = Composite()
    simulator: Simulator = Simulator()

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        for target in self.targets:
            _must_know("targets", target, self.aois)
        for name, aoi in self.aois.items():
            _must_know(f"aois.{name}.model", aoi.model, self.models)
            for section in SENSOR_SECTIONS:
                self.section(section, name)
        for name, model in self.models.items():
            for area in model.train_on:
                _must_know(f"models.{name}.train_on", area, self.aois)
                if self.aois[area].labels is None:
                    raise ValueError(f"models.{name}.train_on names {area!r}, which has no labels: give it some")
                if self.aois[area].block_pixels % model.tiles.cell_pixels:
                    raise ValueError(
                        f"models.{name}.tiles.cell_pixels is {model.tiles.cell_pixels}: expected a divisor of "
                        f"aois.{area}.block_pixels, which is {self.aois[area].block_pixels}"
                    )
        return self

    @model_validator(mode="after")
    def _inputs_exist(self) -> Self:
        for name, model in self.models.items():
            users = {*model.train_on, *(aoi for aoi, settings in self.aois.items() if settings.model == name)}
            for user in sorted(users):
                missing = set(model.sensors) - set(self.aois[user].sensors)
                if missing:
                    raise ValueError(f"models.{name}.sensors wants {sorted(missing)}, which aois.{user}.sensors lacks")
        return self

    def section(self, name: str, aoi: str) -> Section:
        """A sensor's settings for one area: the common ones with the area's overrides."""
        common: Section = getattr(self, name)
        overrides = getattr(self.aois[aoi], name)
        try:
            return type(common)(**{**common.model_dump(), **overrides})
        except ValidationError as error:
            raise ValueError(f"aois.{aoi}.{name}: {first_sentence(error)}") from None


def _must_know(key: str, value: str, known: dict[str, Any]) -> None:
    if value not in known:
        raise ValueError(f"{key} is {value!r}, but there is only {', '.join(map(repr, known))}")


def first_sentence(error: ValidationError) -> str:
    """The first fault of a validation as 'key: what is wrong (got value)'."""
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such setting; see config/schema.json for those there are"
    given = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
    return f"{key}: {message}{given}" if key else message


def load(settings: dict[str, Any]) -> Config:
    """Validated configuration, or a SettingError that names the first fault."""
    try:
        config = Config(**settings)
    except ValidationError as error:
        raise SettingError(f"config: {first_sentence(error)}") from None
    for name, aoi in config.aois.items():
        for labels in filter(None, (aoi.labels, aoi.reference)):
            try:
                check_classes(config, aoi.model, labels)
            except SettingError as error:
                raise SettingError(f"config: aois.{name}: {error}") from None
    for name, model in config.models.items():
        for taught in (config.aois[area].labels for area in model.train_on):
            assert taught is not None  # _known_names
            check_classes(config, name, taught)
    return config


def model_legend(config: Config, model: str) -> Legend:
    """Legend of what a model maps: that of the labels it learns from."""
    labels = config.aois[config.models[model].train_on[0]].labels
    assert labels is not None  # _known_names
    return read_legend(labels.legend)


def check_classes(config: Config, model: str, labels: Labels) -> None:
    """Refuse labels whose classes are not those of a model: their ids would mean different things."""
    legends = read_legend(labels.legend), model_legend(config, model)
    found, wanted = ([entry.key for entry in legend.classes] for legend in legends)
    if found != wanted:
        raise SettingError(
            f"legend {labels.legend} has the classes {', '.join(found)}, but model {model!r} maps {', '.join(wanted)}: "
            "give both one legend, or the area another model"
        )


def schema() -> str:
    """JSON schema of config/config.yaml."""
    return json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path("config/schema.json").write_text(schema())

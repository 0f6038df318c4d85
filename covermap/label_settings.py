"""Settings of labels: maps, polygons and images of one class each."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    model_validator,
)

from covermap.mapbiomas import why_not
from covermap.section import Band, File, Name, Section, Unique, text_of


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
    collection: Annotated[str, BeforeValidator(text_of)] | None = Field(
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
    white: float = Field(
        0.275,
        gt=0,
        le=1,
        description="of pictures (RGB8): what is white in them, so that an area can be shown like them; 0.275 in "
        "EuroSAT's [reflectance]",
    )

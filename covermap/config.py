"""What a person may set: typed, bounded, described; checked once, when the workflow is read.

An error names the key, the value and what was expected. `config/schema.json` is generated from these classes
(``python -m covermap.config``), so an editor can complete and check ``config/config.yaml``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    ValidationError,
    model_validator,
)

from covermap.area_settings import Aoi, Composite, Masks, Mirrors, Period, Registration, Sentinel1, Sentinel2, Simulator
from covermap.dates import Step, step_names, steps_of
from covermap.errors import SettingError
from covermap.grid import PIXEL_M
from covermap.label_settings import LabelMap, Labels, Patches
from covermap.legend import Legend, read_legend
from covermap.model_settings import Model, Tiles, halo_pixels
from covermap.models import INDICES
from covermap.models.options import OPTIONS
from covermap.section import Name, Section, Unique, first_sentence
from covermap.sen2cor import find_sen2cor

# Settings of tiles that mean nothing where each image is a tile, where names split them, and where lists do
NOT_OF_PATCHES = ("stride_pixels", "min_labelled", "max_cloud")
NOT_OF_NAMES = ("pixels", "cell_pixels", "buffer_pixels")
NOT_OF_LISTS = ("validation", "test", "folds", "fold")
# Networks that take weights of another kind of network, and what options of the two must be alike
PARTS = {"fcn_lstm": ("fcn",)}
SIZES = ("width", "depth", "encoder", "branch", "as_published")
MANY = 12  # names, of which an error shows those alone that are like the wrong one
# What a model that applies others' weights may set: all else is what these were taught with
OF_APPLIED = ("weights", "months", "dates", "test_on", "prediction", "postprocess")
# What decides which tiles there are, and what they hold, besides `tiles` itself
OF_TILES = ("train_on", "test_on", "sensors", "months", "dates")
SENSOR_SECTIONS = ("sentinel1", "sentinel2", "masks", "composite", "registration")


class Config(Section):
    """The whole of config/config.yaml."""

    targets: Annotated[tuple[Name, ...], Unique] = Field(
        ("demo",), min_length=1, description="areas that `snakemake` maps"
    )
    aois: dict[Name, Aoi] = Field(min_length=1)
    patches: dict[Name, Patches] = Field({}, description="sets of images of one class each")
    models: dict[Name, Model] = Field(min_length=1)
    sentinel1: Sentinel1 = Sentinel1()
    sentinel2: Sentinel2 = Sentinel2()
    masks: Masks = Masks()
    composite: Composite = Composite()
    registration: Registration = Registration()
    mirrors: Mirrors = Mirrors()
    simulator: Simulator = Simulator()

    @model_validator(mode="before")
    @classmethod
    def _as_taught(cls, given: Any) -> Any:
        models = given.get("models") if isinstance(given, dict) else None
        if not isinstance(models, dict):
            return given
        cut = {name: _with_tiles(name, model, models) for name, model in models.items()}
        return {**given, "models": {name: _with_weights(name, model, cut) for name, model in cut.items()}}

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        if both := sorted({*self.patches} & {*self.aois}):
            raise ValueError(f"patches and aois both have {both[0]!r}: give one of the two another name")
        for target in self.targets:
            _must_know("targets", target, self.aois)
        for name, aoi in self.aois.items():
            _must_know(f"aois.{name}.model", aoi.model, self.models)
            if aoi.model in self.classifiers:
                raise ValueError(
                    f"aois.{name}.model is {aoi.model!r}, which learns from patches, while the map of an area is "
                    f"compared with labels of its own: name a model that learns from areas, and ask for "
                    f"results/maps/{name}/{aoi.model}.tif beside it"
                )
            for section in SENSOR_SECTIONS:
                self.section(section, name)
        for name, model in self.mappers.items():
            used = [("train_on", area) for area in model.train_on] + [("test_on", area) for area in model.test_on]
            for key, area in used:
                _must_know(f"models.{name}.{key}", area, {**self.aois, **(self.patches if key == "train_on" else {})})
                if model.tiles.split == "lists":
                    raise ValueError(
                        f"models.{name}.tiles.split is lists, but {area} is an area: expected blocks, stratified or "
                        "random"
                    )
                if self.aois[area].labels is None:
                    raise ValueError(f"models.{name}.{key} names {area!r}, which has no labels: give it some")
                if self.aois[area].block_pixels % model.tiles.cell_pixels:
                    raise ValueError(
                        f"models.{name}.tiles.cell_pixels is {model.tiles.cell_pixels}: expected a divisor of "
                        f"aois.{area}.block_pixels, which is {self.aois[area].block_pixels}"
                    )
            if both := [area for area in model.test_on if area in model.train_on]:
                raise ValueError(
                    f"models.{name}.test_on names {both[0]!r}, which train_on names too, and what is learnt from tests "
                    "nothing: remove it from one of the two"
                )
        return self

    @model_validator(mode="after")
    def _tiles_serve_both(self) -> Self:
        for name, model in self.models.items():
            if model.tiles_of is None:
                continue
            other = self.models[model.tiles_of]
            for key in OF_TILES:
                if getattr(model, key) != getattr(other, key):
                    mine, its = (_told(getattr(one, key)) or "not set" for one in (model, other))
                    raise ValueError(
                        f"models.{name}.tiles_of is {model.tiles_of!r}, but {key} is {mine} here and {its} there: make "
                        "them alike, or remove tiles_of"
                    )
        return self

    @model_validator(mode="after")
    def _weights_have_their_models(self) -> Self:
        for name, model in self.models.items():
            for other in model.weights:
                self._must_go_together(name, model.weights[0], other)
            for one in model.weights or (name,):
                for other in ([one] if model.weights else []) + self._starts(one):
                    self._must_not_leak(name, one, other)
        return self

    def _must_go_together(self, name: str, first: str, other: str) -> None:
        """Refuse to average a mapper and a classifier, and windows that a network cannot take."""
        if (first in self.classifiers) != (other in self.classifiers):
            raise ValueError(
                f"models.{name}.weights names {first!r} and {other!r}, but only one of them learns from patches: "
                "average models of one kind"
            )
        side = self.models[name].prediction.window_pixels
        multiple = self.models[other].network_options.multiple
        if side % multiple:
            raise ValueError(
                f"models.{name}.prediction.window_pixels is {side}: expected a multiple of {multiple}, which {other} "
                "needs"
            )

    def _must_not_leak(self, name: str, one: str, other: str) -> None:
        """Refuse weights that learned what a model is tested on.

        ``one`` are weights that the model applies, or the model itself; ``other`` are the same, or what ``one`` began
        with. ASSUME: areas of one CRS may meet, unless both are boxes that lie apart; areas of two do not.
        """
        model, its = self.models[name], self.models[other]
        if tested := [area for area in model.test_on if area in its.train_on]:
            of = f"{other!r} of its weights" if one == other else f"{other!r}, which {one} starts from,"
            raise ValueError(f"models.{name}.test_on names {tested[0]!r}, which {of} learned from: remove it")
        first = model.weights[0] if model.weights else name
        if self._have_common_ground(first, other) and self._held_out(first) != self._held_out(other):
            key = f"models.{name}.{'weights names' if model.weights else 'start_from leads from'}"
            raise ValueError(
                f"{key} {first!r} {'and' if model.weights else 'to'} {other!r}, whose tiles differ, so that one "
                "learned what the other is tested on: give both the same tiles, with the same tiles.seed where their "
                "seeds differ"
            )

    def _have_common_ground(self, one: str, other: str) -> bool:
        """Whether two models may learn from the same ground, or from the same images."""
        return any(
            self._may_meet(mine, its) for mine in self.models[one].train_on for its in self.models[other].train_on
        )

    def _held_out(self, name: str) -> tuple[Any, ...]:
        """What decides which tiles of an area, or images of a set of patches, a model is not taught with."""
        model = self.models[name]
        by_place = model.tiles.split == "blocks" or name in self.classifiers
        others = () if by_place else tuple(getattr(model, key) for key in OF_TILES)
        return model.tiles.model_dump(exclude={"balance", "seed"}), model.split_seed, *others

    def _may_meet(self, one: str, other: str) -> bool:
        """Whether two areas or sets of patches may have ground or images in common."""
        if one == other or one not in self.aois or other not in self.aois:
            return one == other
        boxes = [self.aois[area].area for area in (one, other)]
        apart = all(isinstance(box, tuple) for box in boxes) and _lie_apart(*boxes)
        return self.aois[one].crs == self.aois[other].crs and not apart

    def _starts(self, name: str) -> list[str]:
        """Models from which training begins, one after the other; refused where there is none, or not by then."""
        chain = [name]
        while (start := self.models[chain[-1]].start_from) is not None and "/" not in start:
            key = f"models.{chain[-1]}.start_from"
            _must_know(key, start, self.models)
            if start in chain:
                told = " from ".join([*chain, start])
                raise ValueError(f"{key} is {start!r}, and so none can begin: {told}; remove one of them")
            if self.models[start].weights:
                raise ValueError(
                    f"{key} is {start!r}, which applies the weights of {', '.join(self.models[start].weights)}: name "
                    "one of these"
                )
            self._must_fit(chain[-1], start)
            chain.append(start)
        return chain[1:]

    def _must_fit(self, name: str, start: str) -> None:
        """Refuse to begin with weights of a network of another kind or size."""
        one, other = self.models[name], self.models[start]
        key = f"models.{name}.start_from is {start!r}"
        if other.network not in (one.network, *PARTS.get(one.network, ())):
            raise ValueError(
                f"{key}, whose network is {other.network}, but that of {name} is {one.network}: start from weights of "
                f"{' or '.join((one.network, *PARTS.get(one.network, ())))}"
            )
        for size in SIZES:
            mine, its = (getattr(model.network_options, size, None) for model in (one, other))
            if mine != its and None not in (mine, its):
                raise ValueError(f"{key}, whose options.{size} is {its}, but that of {name} is {mine}: make them alike")

    @model_validator(mode="after")
    def _directions_have_a_meaning(self) -> Self:
        for name in self.aois:
            composite, radar = self.composite_of(name), self.radar_of(name)
            if composite.directions == "one":
                continue
            if radar.orbit_state is not None:
                raise ValueError(
                    f"composite.directions is {composite.directions} for aois.{name}, but sentinel1.orbit_state leaves "
                    f"{radar.orbit_state} alone: remove one of the two"
                )
            if "incidence_angle" in composite.layers:
                raise ValueError(
                    f"composite.layers has incidence_angle, but composite.directions is {composite.directions} for "
                    f"aois.{name}, and two directions have no angle in common: remove one of the two"
                )
        return self

    @model_validator(mode="after")
    def _layers_have_their_sources(self) -> Self:
        for name, aoi in self.aois.items():
            layers, radar = self.composite_of(name).layers, self.radar_of(name)
            ground = [layer for layer in layers if layer in ("elevation", "slope")]
            if ground and aoi.dem is None:
                raise ValueError(f"aois.{name}.dem is not set, but composite.layers has {ground[0]}: give heights")
            if "scl" in layers and "sentinel2" not in aoi.sensors:
                raise ValueError(
                    f"composite.layers has scl, which is Sentinel-2's, but aois.{name}.sensors lacks it: add sentinel2 "
                    "there, or remove scl"
                )
            if "scl" in layers and self.optics_of(name).level == "L1C":
                raise ValueError(
                    f"composite.layers has scl, but sentinel2.level is L1C for aois.{name}, which has no scene "
                    "classification: remove one of the two"
                )
            if "incidence_angle" in layers and not ("sentinel1" in aoi.sensors and "incidence_angle" in radar.layers):
                raise ValueError(
                    f"composite.layers has incidence_angle, which the scenes of aois.{name} do not bring: add it to "
                    f"sentinel1.layers, and sentinel1 to aois.{name}.sensors"
                )
        return self

    @model_validator(mode="after")
    def _heights_have_one_geoid(self) -> Self:
        for name, aoi in self.aois.items():
            radar = self.radar_of(name)
            if aoi.dem == "glo30" and radar.geoid == "egm96":
                raise ValueError(
                    f"sentinel1.geoid is egm96, but the heights of aois.{name}.dem, glo30, count from EGM2008: remove "
                    "it, or give the file of a grid"
                )
        return self

    @model_validator(mode="after")
    def _backscatter_has_its_unit(self) -> Self:
        for name, aoi in self.aois.items():
            radar = self.radar_of(name)
            if aoi.provider.name == "sentinelhub" and "sentinel1" in aoi.sensors and radar.assets_unit != "dB":
                raise ValueError(
                    f"sentinel1.assets_unit is {radar.assets_unit} for aois.{name}, but provider sentinelhub delivers "
                    "dB: set it to dB"
                )
        return self

    @model_validator(mode="after")
    def _sen2cor_gets_products(self) -> Self:
        for name, aoi in self.aois.items():
            optics = self.optics_of(name)
            if optics.processor == "sen2cor" and aoi.provider.name == "sentinelhub" and "sentinel2" in aoi.sensors:
                raise ValueError(
                    f"sentinel2.processor is sen2cor for aois.{name}, but provider sentinelhub delivers no whole "
                    "products, which Sen2Cor needs: take provider cdse, or set sentinel2.processor to none"
                )
        return self

    @model_validator(mode="after")
    def _areas_suit_their_models(self) -> Self:
        for name, model in self.mappers.items():
            self._must_see(name)
            mapped = [area for area, settings in self.aois.items() if settings.model == name]
            cut = [] if model.weights else [*model.train_on, *model.test_on]  # into tiles
            for user in dict.fromkeys([*cut, *mapped]):
                missing = sorted({*model.sensors} - {*self.aois[user].sensors, "terrain"})
                if missing:
                    raise ValueError(
                        f"models.{name}.sensors wants {', '.join(missing)}, which aois.{user}.sensors lacks: add it "
                        "there, or take it from the model"
                    )
                if "terrain" in model.sensors and not self.composite_of(user).layers:
                    raise ValueError(
                        f"models.{name}.sensors wants terrain, but composite.layers is empty for aois.{user}: name "
                        "its layers there, or take terrain from the model"
                    )
                self._must_have_bands(name, user)
                self.must_have_steps(name, user)
            for area in cut:
                self._must_have_enough_steps(name, area)
            taught = [(one, area) for one in model.weights or (name,) for area in self.models[one].train_on]
            free = self._free_steps(name)
            for area in [*cut, *mapped]:
                self._must_agree(taught[0], (name, area), () if area in cut else free)
            for other in taught[1:]:
                self._must_agree(taught[0], other, free if model.weights else ())
        return self

    @model_validator(mode="after")
    def _networks_suit_what_they_learn_from(self) -> Self:
        for name, model in self.models.items():
            given, of_patches = f"models.{name}", OPTIONS[model.network].of_patches
            if name in self.classifiers and not of_patches:
                others = ", ".join(network for network, options in OPTIONS.items() if options.of_patches)
                raise ValueError(
                    f"{given}.network is {model.network}, which gives a class to each pixel, but {model.train_on[0]} "
                    f"is a set of patches, which have one each: expected {others}, or areas to learn from"
                )
            if of_patches and name not in self.classifiers:
                raise ValueError(
                    f"{given}.network is {model.network}, which gives a class to a whole patch, but "
                    f"{model.train_on[0]} is an area: let it learn from patches, or take another network"
                )
            if model.training.augment.crop < 1 and not of_patches:
                raise ValueError(
                    f"{given}.training.augment.crop is {model.training.augment.crop}, but only a patch keeps its class "
                    "when it is cropped: remove it"
                )
        return self

    @model_validator(mode="after")
    def _patches_suit_their_models(self) -> Self:
        for name, model in self.classifiers.items():
            given, own = f"models.{name}", next(area for area in model.train_on if area in self.patches)
            if len(model.train_on) > 1 or model.test_on:
                raise ValueError(
                    f"{given}.train_on names {own!r}, a set of patches, which is learnt alone: remove the other names "
                    "there and in test_on"
                )
            if chosen := [key for key in ("months", "dates") if getattr(model, key)]:
                raise ValueError(
                    f"{given}.{chosen[0]} is set, but an image of a set of patches has no dates: remove it"
                )
            if model.training.augment.drop_dates:
                raise ValueError(
                    f"{given}.training.augment.drop_dates is {model.training.augment.drop_dates}, but an image of a "
                    "set of patches has no dates: set it to 0"
                )
            if model.sensors != ("sentinel2",):
                raise ValueError(
                    f"{given}.sensors is {', '.join(model.sensors)}, but patches hold bands of sentinel2: set it to "
                    "[sentinel2]"
                )
            bands = self.patches[own].bands
            for index in model.indices:
                if missing := [band for band in INDICES[index][1:] if band not in bands]:
                    raise ValueError(
                        f"{given}.indices has {index}, which needs {missing[0]}, but patches.{own}.bands has "
                        f"{', '.join(bands)}: add it there, or remove the index"
                    )
            self._must_split(name, model.tiles, own)
        return self

    def _must_split(self, name: str, tiles: Tiles, own: str) -> None:
        """Refuse splits that patches do not have, and settings of tiles that do nothing for them."""
        if tiles.split == "stratified":
            raise ValueError(
                f"models.{name}.tiles.split is stratified, but it learns from patches, of which random takes about "
                "the same share of every class: expected random, lists, or blocks where they are georeferenced"
            )
        if tiles.split == "lists" and self.patches[own].lists is None:
            raise ValueError(
                f"models.{name}.tiles.split is lists, but patches.{own}.lists is not set: name its lists there, or "
                "set the split to random"
            )
        vain = NOT_OF_PATCHES + NOT_OF_NAMES * (tiles.split != "blocks") + NOT_OF_LISTS * (tiles.split == "lists")
        if idle := [key for key in vain if key in tiles.model_fields_set]:
            raise ValueError(
                f"models.{name}.tiles.{idle[0]} does nothing for patches that are split by {tiles.split}: remove it"
            )

    @property
    def classifiers(self) -> dict[str, Model]:
        """Models that learn from patches."""
        return {name: model for name, model in self.models.items() if {*model.train_on} & {*self.patches}}

    @property
    def mappers(self) -> dict[str, Model]:
        """Models that learn from areas, and map them."""
        return {name: model for name, model in self.models.items() if name not in self.classifiers}

    def _must_see(self, model: str) -> None:
        """Refuse a model without a satellite, and an index of an input that the model does not have."""
        sensors = self.models[model].sensors
        if sensors == ("terrain",):
            raise ValueError(
                f"models.{model}.sensors is terrain alone, and nothing is mapped that no satellite saw: add sentinel1 "
                "or sentinel2"
            )
        for index in self.models[model].indices:
            if (sensor := INDICES[index][0]) not in sensors:
                raise ValueError(
                    f"models.{model}.indices has {index}, which comes from {sensor}: add it to models.{model}.sensors, "
                    "or remove the index"
                )

    def _must_have_bands(self, model: str, aoi: str) -> None:
        """Refuse an index whose bands an area does not have."""
        radar, optics = self.radar_of(aoi), self.optics_of(aoi)
        given: dict[str, tuple[str, tuple[str, ...]]] = {
            "sentinel1": ("polarisations", radar.polarisations),
            "sentinel2": ("bands", optics.bands),
        }
        for index in self.models[model].indices:
            sensor, *bands = INDICES[index]
            setting, names = given[sensor]
            if missing := [band for band in bands if band not in names]:
                raise ValueError(
                    f"models.{model}.indices has {index}, which needs {missing[0]}, but {sensor}.{setting} of "
                    f"aois.{aoi} has {', '.join(names)}: add it there, or remove the index"
                )

    def must_have_steps(self, model: str, aoi: str) -> None:
        """Refuse months and dates that an area does not have; those of single scenes, only its stacks can tell."""
        chosen, period = self.models[model], self.aois[aoi].period
        months = sorted({int(month[5:]) for month in period.months})
        firsts = [first for first, _ in self._all_steps(aoi)] if chosen.dates else []
        for key, wanted, there in (("months", chosen.months, months), ("dates", chosen.dates, firsts)):
            missing = [each for each in wanted if each not in there]
            if missing and there:
                raise ValueError(
                    f"models.{model}.{key} has {missing[0]}, but aois.{aoi} has only {', '.join(map(str, there))}: "
                    "remove it there, or give it to the area"
                )

    def _free_steps(self, name: str) -> set[str]:
        """Inputs of which all networks that a model applies take any number of steps."""
        networks = [self.models[one].network for one in self.models[name].weights or (name,)]
        return set.intersection(*({*OPTIONS[network].any_steps} for network in networks))

    def _must_have_enough_steps(self, model: str, aoi: str) -> None:
        """Refuse to draw more dates than there are, and to leave out some of one; of scenes, only stacks can tell."""
        chosen = self.models[model]
        dates, months = self._steps(aoi, chosen.dates), chosen.months or self.aois[aoi].period.months
        draw = getattr(chosen.network_options, "draw", None)
        if draw and dates and draw > len(dates):
            raise ValueError(
                f"models.{model}.options.draw is {draw}, but aois.{aoi} has only {len(dates)} of its dates: draw fewer"
            )
        counts = {"sentinel1": len(months), "sentinel2": len(dates) or 2, "terrain": 1}
        drop = chosen.training.augment.drop_dates
        if drop and max(counts[sensor] for sensor in chosen.sensors) == 1:
            raise ValueError(
                f"models.{model}.training.augment.drop_dates is {drop}, but it sees a single step of aois.{aoi}: set "
                "it to 0"
            )

    def _must_agree(self, one: tuple[str, str], other: tuple[str, str], any_steps: Collection[str] = ()) -> None:
        """Refuse two areas, each with a model, that share weights and whose inputs would mean different things."""
        for (key, first), (_, second) in zip(
            self._inputs(*one, any_steps), self._inputs(*other, any_steps), strict=True
        ):
            if first != second:
                raise ValueError(
                    f"models.{other[0]} cannot serve both aois.{one[1]} and aois.{other[1]}, since their {key} differ, "
                    f"{_told(first)} and {_told(second)}: make them alike, or give one area another model"
                )

    def _inputs(self, model: str, aoi: str, any_steps: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
        """What the numbers that a model sees of an area mean, by setting; the steps of some inputs may be any."""
        radar, optics, chosen = self.radar_of(aoi), self.optics_of(aoi), self.models[model]
        if "sentinel1" in self.models[model].sensors:
            yield "sentinel1.polarisations", radar.polarisations
            yield "sentinel1.convention", radar.convention
            yield "composite.directions", self.composite_of(aoi).directions
            months = (month[5:] for month in self.aois[aoi].period.months)
            yield (
                "calendar months of the period",
                tuple(month for month in months if not chosen.months or int(month) in chosen.months),
            )
        if "sentinel2" in self.models[model].sensors:
            yield "sentinel2.level", optics.level
            yield "sentinel2.bands", optics.bands
            yield "composite.every", self.composite_of(aoi).every
            if "s2" not in any_steps:
                yield "Sentinel-2 steps of the period", self._steps(aoi, chosen.dates)
            yield "composite.fill", self.composite_of(aoi).fill
        if "terrain" in self.models[model].sensors:
            yield "composite.layers", self.composite_of(aoi).layers

    def _steps(self, aoi: str, dates: Collection[date]) -> tuple[str, ...]:
        """What the Sentinel-2 steps of an area mean, of which only ``dates`` count where there are any."""
        firsts = [first for first, _ in self._all_steps(aoi) if not dates or first in dates]
        return tuple(step_names(self.composite_of(aoi).every, firsts))

    def _all_steps(self, aoi: str) -> list[Step]:
        """The Sentinel-2 steps of an area; none where each is a scene, which only its stacks can tell."""
        composite = self.composite_of(aoi)
        return [] if composite.every == "scene" else steps_of(self.aois[aoi].period, composite, composite.dates)

    def section(self, name: str, aoi: str) -> Section:
        """A sensor's settings for one area: the common ones with the area's overrides."""
        common: Section = getattr(self, name)
        overrides = getattr(self.aois[aoi], name)
        try:
            return type(common)(**{**common.model_dump(), **overrides})
        except ValidationError as error:
            raise ValueError(f"aois.{aoi}.{name}.{first_sentence(error)}") from None

    def radar_of(self, aoi: str) -> Sentinel1:
        """Section ``sentinel1`` of an area."""
        radar = self.section("sentinel1", aoi)
        assert isinstance(radar, Sentinel1)
        return radar

    def optics_of(self, aoi: str) -> Sentinel2:
        """Section ``sentinel2`` of an area."""
        optics = self.section("sentinel2", aoi)
        assert isinstance(optics, Sentinel2)
        return optics

    def composite_of(self, aoi: str) -> Composite:
        """Section ``composite`` of an area."""
        composite = self.section("composite", aoi)
        assert isinstance(composite, Composite)
        return composite


def _lie_apart(one: Any, other: Any) -> bool:
    """Whether two boxes (west, south, east, north) have no point in common."""
    return any(a[k + 2] < b[k] for a, b in ((one, other), (other, one)) for k in (0, 1))


def _must_know(key: str, value: str, known: dict[str, Any]) -> None:
    if value in known:
        return
    if len(known) > MANY:
        near = get_close_matches(value, map(str, known), 3, 0)
        raise ValueError(
            f"{key} is {value!r}, which there is not: expected a name such as {', '.join(map(repr, near))}"
        )
    raise ValueError(f"{key} is {value!r}, but there is only {', '.join(map(repr, known))}")


def _with_weights(name: str, model: Any, models: dict[Any, Any]) -> Any:
    """Settings of a model; where it applies others' weights, those that it lacks are as in the first of these.

    Raises
    ------
    ValueError
        There is no such model, or it applies others' weights itself, or a setting would do nothing.
    """
    if isinstance(model, dict) and model.get("weights", 0) in ([], (), "") and "network" not in model:
        raise ValueError(f"models.{name}.weights is empty: name the models whose weights it applies")
    weights = model.get("weights") if isinstance(model, dict) else None
    weights = [weights] if isinstance(weights, str) else weights
    if not weights or not isinstance(weights, list | tuple) or not all(isinstance(one, str) for one in weights):
        return model
    key = f"models.{name}.weights"
    for other in weights:
        known = [one for one, settings in models.items() if isinstance(settings, dict) and not settings.get("weights")]
        if other in models and other not in known:
            raise ValueError(f"{key} names {other!r}, which is not trained itself: name one of {', '.join(known)}")
        _must_know(key, other, models)
    first = models[weights[0]]
    idle = [
        one for one in model if one in Model.model_fields and one not in OF_APPLIED and model[one] != first.get(one)
    ]
    if idle:
        raise ValueError(
            f"models.{name}.{idle[0]} does nothing, since {key} is set, and it is as in {weights[0]}: remove it"
        )
    others = any(key in model for key in OF_TILES)
    shared = {} if others else {"tiles_of": first.get("tiles_of", weights[0])}
    return {key: value for key, value in first.items() if key not in ("start_from", "tiles_of")} | shared | model


def _with_tiles(name: str, model: Any, models: dict[Any, Any]) -> Any:
    """Settings of a model; where it learns from another's tiles, with the settings of these.

    Raises
    ------
    ValueError
        There is no such model, or its tiles are another's, or the model has settings of tiles that would do nothing.
    """
    other = model.get("tiles_of") if isinstance(model, dict) else None
    if not isinstance(other, str) or model.get("weights"):
        return model
    key = f"models.{name}.tiles_of"
    if other == name:
        raise ValueError(f"{key} is the model itself: remove it")
    _must_know(key, other, models)
    its, own = models[other], model.get("tiles", {})
    if not all(isinstance(part, dict) for part in (its, own, its.get("tiles", {}))):
        return model
    if cut := its.get("tiles_of") or its.get("weights"):
        cut = cut if isinstance(cut, str) else cut[0]
        raise ValueError(f"{key} is {other!r}, which has the tiles of {cut!r}: name {cut!r}")
    tiles = {one: value for one, value in its.get("tiles", {}).items() if one != "balance"}
    if tiles.get("seed") is None:
        tiles["seed"] = its.get("seed", 0)
    if idle := [one for one in own if one != "balance" and own[one] != tiles.get(one)]:
        raise ValueError(
            f"models.{name}.tiles.{idle[0]} does nothing, since tiles are those of {other}: remove it, or tiles_of"
        )
    return model | {"tiles": tiles | own}


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load(settings: dict[str, Any]) -> Config:
    """Validated configuration, or a SettingError that names the first fault."""
    try:
        config = Config(**settings)
        _check_models(config)
    except ValidationError as error:
        raise SettingError(f"config: {first_sentence(error)}") from None
    except SettingError as error:
        raise SettingError(f"config: {error}") from None
    return config


def _check_models(config: Config) -> None:
    """Refuse areas that the model of their map does not fit, and labels that a model cannot learn together."""
    for name, aoi in config.aois.items():
        check_window(config, name, aoi.model)
        check_shoreline(config, name)
        check_weak(config, name)
        if aoi.labels is not None:
            held_out_area(config, name, aoi.model)
        for key, labels in (("labels", aoi.labels), ("reference", aoi.reference)):
            if labels is not None:
                try:
                    check_classes(config, aoi.model, labels)
                except SettingError as error:
                    raise SettingError(f"aois.{name}.{key}.legend: {error}") from None
    for name, model in config.models.items():
        try:
            halo_pixels(model.postprocess, PIXEL_M)
        except SettingError as error:
            raise SettingError(f"models.{name}.{error}") from None
        if name in config.classifiers and model.postprocess.crf:
            raise SettingError(
                f"models.{name}.postprocess.crf is set, but the network gives one class to a window, not to each "
                "pixel: remove it"
            )
    for name in config.classifiers:
        model_legend(config, name)
    for name, model in config.models.items():
        keys = [[entry.key for entry in model_legend(config, one).classes] for one in model.weights]
        for other, found in zip(model.weights, keys, strict=True):
            if found != keys[0]:
                raise SettingError(
                    f"models.{name}.weights names {model.weights[0]}, which maps {', '.join(keys[0])}, and {other}, "
                    f"which maps {', '.join(found)}: average models of one legend"
                )
    for name, model in config.mappers.items():
        for labels in (config.aois[area].labels for area in (*model.train_on, *model.test_on)):
            assert labels is not None  # _known_names
            check_classes(config, name, labels)


def labels_legend(labels: LabelMap, language: str = "en") -> Legend:
    """Legend of a map of labels: the codes of its collection or edition, and names in a language."""
    edition = str(labels.year) if labels.source == "urban_atlas" and labels.year else labels.collection
    return read_legend(labels.legend, edition, language)


def model_legend(config: Config, model: str, language: str = "en") -> Legend:
    """Legend of what a model maps: that of the labels or patches it learns from."""
    if model in config.classifiers:
        return read_legend(config.patches[config.models[model].train_on[0]].legend, language=language)
    labels = config.aois[config.models[model].train_on[0]].labels
    assert labels is not None  # _known_names
    return labels_legend(labels, language)


def check_classes(config: Config, model: str, labels: Labels) -> None:
    """Refuse labels whose classes are not those of a model: their ids would mean different things."""
    legends = labels_legend(labels), model_legend(config, model)
    found, wanted = ([entry.key for entry in legend.classes] for legend in legends)
    if found != wanted:
        raise SettingError(
            f"legend {labels.legend} has the classes {', '.join(found)}, but model {model!r} maps {', '.join(wanted)}: "
            "give both one legend, or the area another model"
        )


def contemporaries(config: Config, model: str) -> dict[str, list[str]]:
    """Areas that a model is tested on, each with those that it learns from whose period meets its own."""
    settings, aois = config.models[model], config.aois

    def meet(one: Period, other: Period) -> bool:
        return one.start <= other.end and other.start <= one.end

    return {
        tested: [area for area in settings.train_on if meet(aois[area].period, aois[tested].period)]
        for tested in settings.test_on
    }


def held_out_area(config: Config, aoi: str, model: str) -> str | None:
    """The area, where its test tiles tell what is held out; None: cells do, in any area of their CRS alike.

    Cells of another CRS are of another lattice: training tiles may lie on its test cells.

    Raises
    ------
    SettingError
        Tiles tell it, but the model has none of this area.
    """
    settings, crs = config.models[model], config.aois[aoi].crs
    if aoi in settings.test_on:
        return aoi
    if others := [area for area in settings.train_on if config.aois[area].crs != crs]:
        why = f"models.{model} learns from {others[0]} in {config.aois[others[0]].crs}, but aois.{aoi}.crs is {crs}"
        mend = "choose one CRS for both"
    elif settings.tiles.split == "blocks":
        return None
    else:
        why, mend = f"models.{model}.tiles.split is {settings.tiles.split}", "set the split to blocks"
    if aoi not in settings.train_on:
        raise SettingError(
            f"{why}, which does not tell what is held out of aois.{aoi}: add {aoi} to models.{model}.test_on, or {mend}"
        )
    return aoi


def check_maps(config: Config, aoi: str, model: str) -> None:
    """Refuse to map an area with a classifier of patches whose inputs it does not have."""
    if model not in config.classifiers:
        return
    patches, optics = config.patches[config.models[model].train_on[0]], config.optics_of(aoi)
    given = f"models.{model} learns from patches of one step"
    if "sentinel2" not in config.aois[aoi].sensors:
        raise SettingError(f"{given} of sentinel2, which aois.{aoi}.sensors lacks: add it there")
    if missing := [band for band in patches.bands if band not in optics.bands]:
        raise SettingError(
            f"{given} with band {missing[0]}, but sentinel2.bands of aois.{aoi} has {', '.join(optics.bands)}: add it "
            "there"
        )
    if patches.level not in ("RGB8", optics.level):
        raise SettingError(
            f"{given} of {patches.level}, but sentinel2.level of aois.{aoi} is {optics.level}: give the area this level"
        )
    composite = config.composite_of(aoi)
    if composite.every != "period" or len(composite.dates) > 1:
        raise SettingError(
            f"{given}, but composite.every of aois.{aoi} is {composite.every} with {len(composite.dates)} dates: set "
            "it to period, without dates"
        )
    if "window_pixels" not in config.models[model].prediction.model_fields_set:
        raise SettingError(
            f"{given}, but models.{model}.prediction.window_pixels is not set: set it to the side of its images, such "
            "as 64"
        )


def check_tiles(config: Config, model: str) -> None:
    """Refuse tiles of months or dates that the areas which they are cut from do not have.

    Such a model may apply weights to other dates; it is then not tested on the areas that these were taught on.
    """
    settings = config.models[model]
    for area in () if model in config.classifiers else (*settings.train_on, *settings.test_on):
        try:
            config.must_have_steps(model, area)
        except ValueError as error:
            raise SettingError(f"{error}; its map needs no tiles") from None


def check_window(config: Config, aoi: str, model: str) -> None:
    """Refuse windows that reach further than the blocks around a block, whose stacks alone are read."""
    window, block = config.models[model].prediction.window_pixels, config.aois[aoi].block_pixels
    bayes = config.models[model].postprocess.bayes
    halo = bayes.pixels // 2 if bayes else 0
    if window + halo > block:
        beside = f", less the {halo} of postprocess.bayes" if halo else ""
        raise SettingError(
            f"models.{model}.prediction.window_pixels is {window}: expected at most aois.{aoi}.block_pixels, which is "
            f"{block}{beside}, so lessen the window or enlarge the blocks"
        )


def check_shoreline(config: Config, aoi: str) -> None:
    """Refuse a shoreline without the bands of its NDWI, of classes that are unknown, or of a reference map.

    ASSUME: maps are compared with the whole reference and the whole labels, so that no threshold makes a map look
    better; hence a reference has no shoreline.
    """
    settings, optics = config.aois[aoi], config.optics_of(aoi)
    if settings.reference is not None and settings.reference.shoreline is not None:
        raise SettingError(
            f"aois.{aoi}.reference.shoreline is set, but maps are compared with the whole reference: remove it"
        )
    if settings.labels is None or settings.labels.shoreline is None:
        return
    key = f"aois.{aoi}.labels.shoreline"
    if "sentinel2" not in settings.sensors:
        raise SettingError(f"{key} needs Sentinel-2: add it to aois.{aoi}.sensors, or remove the shoreline")
    if missing := [band for band in INDICES["ndwi"][1:] if band not in optics.bands]:
        raise SettingError(f"{key} needs the band {missing[0]}: add it to sentinel2.bands, or remove the shoreline")
    known = [entry.key for entry in labels_legend(settings.labels).classes]
    for name in settings.labels.shoreline.water:
        if name not in known:
            raise SettingError(
                f"{key}.water has {name!r}, which is no class of {settings.labels.legend}: it has {', '.join(known)}"
            )


def check_weak(config: Config, aoi: str) -> None:
    """Refuse weak labels with classes that their legend lacks, or compared with a map of other classes.

    Raises
    ------
    SettingError
        Names the setting and the class, or both legends.
    """
    labels = config.aois[aoi].labels
    if labels is None or not labels.is_weak:
        return
    known = [entry.key for entry in labels_legend(labels).classes]
    for key, names in (("ignore", labels.weak.ignore), ("class_weights", labels.weak.class_weights)):
        for name in names:
            if name not in known:
                raise SettingError(
                    f"aois.{aoi}.labels.weak.{key} has {name!r}, which is no class of {labels.legend}: it has "
                    f"{', '.join(known)}"
                )
    if labels.weak.agree_with is None:
        return
    found = [entry.key for entry in labels_legend(labels.weak.agree_with).classes]
    if found != known:
        raise SettingError(
            f"aois.{aoi}.labels.weak.agree_with.legend {labels.weak.agree_with.legend} has the classes "
            f"{', '.join(found)}, but {labels.legend} has {', '.join(known)}: give both maps legends with the same "
            "classes in the same order"
        )


def check_files(config: Config, aoi: str, made: Collection[Path] = ()) -> None:
    """Refuse an area whose settings name a file or program that is not there and that is not ``made`` by a rule.

    Raises
    ------
    SettingError
        Names the setting and the path; or Sen2Cor, which is to make Level-2A, is not installed.
    """
    for key, path in missing_files(config, aoi, made).items():
        raise SettingError(f"{key} is {path}, which does not exist: mend the path or bring the file")
    optics = config.optics_of(aoi)
    if "sentinel2" in config.aois[aoi].sensors and optics.processor == "sen2cor":
        find_sen2cor(optics.sen2cor_program)


def missing_files(config: Config, aoi: str, made: Collection[Path] = ()) -> dict[str, Path]:
    """Files that the settings of an area name, by setting, that are not there and that are not ``made`` by a rule."""
    return {key: path for key, path in _files(config, aoi) if path not in made and not path.exists()}


def _files(config: Config, aoi: str) -> Iterator[tuple[str, Path]]:
    """Every file or folder that the settings of an area name, with the key of the setting."""
    settings = config.aois[aoi]
    radar, optics = config.radar_of(aoi), config.optics_of(aoi)
    named: dict[str, Any] = {"area": settings.area, "scenes": settings.scenes, "dem": settings.dem}
    if settings.scenes is None:
        named["provider.catalog"] = settings.provider.catalog
    for key, labels in (("labels", settings.labels), ("reference", settings.reference)):
        if labels is not None:
            named |= {f"{key}.path": labels.path, f"{key}.legend": labels.legend}
    if settings.labels is not None:
        weak = settings.labels.weak
        named |= {f"labels.weak.stable_with.{number}": path for number, path in enumerate(weak.stable_with)}
        if weak.agree_with is not None:
            named |= {f"labels.weak.agree_with.{name}": getattr(weak.agree_with, name) for name in ("path", "legend")}
    if "sentinel1" in settings.sensors:
        named |= {"sentinel1.orbits": radar.orbits, "sentinel1.geoid": radar.geoid}
    if "sentinel2" in settings.sensors and optics.processor == "sen2cor":
        named |= {f"sentinel2.{name}": getattr(optics, name) for name in ("sen2cor_program", "sen2cor_gipp")}
    for key, path in named.items():
        if isinstance(path, Path):
            section, _, name = key.rpartition(".")
            common = section in SENSOR_SECTIONS and name not in getattr(settings, section)
            yield (key if common else f"aois.{aoi}.{key}"), path


def schema() -> str:
    """JSON schema of config/config.yaml."""
    return json.dumps(Config.model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    Path("config/schema.json").write_text(schema())

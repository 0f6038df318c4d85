"""Settings of models: their tiles, their training and how they are applied."""

from __future__ import annotations

import math
from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from covermap.errors import SettingError
from covermap.hubs import hub_file
from covermap.models import CLASS_WEIGHTS, INDICES, LOSSES, MODELS, OVERLAP_LOSSES
from covermap.models.options import OPTIONS, Options
from covermap.section import START, Name, Section, Unique, first_sentence

MIN_PIXELS = 100  # a class with less than a hectare says nothing about the mean over classes


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Input = Literal["sentinel1", "sentinel2", "terrain"]
Index = Literal[tuple(INDICES)]  # type: ignore[valid-type]
Loss = Literal[tuple(LOSSES)]  # type: ignore[valid-type]
Layer = Literal["margin", "entropy", "probabilities"]


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
    overlap: float = Field(0.5, ge=0, lt=0.95, description="share of a window that its neighbour sees too")
    blend: Literal["hann", "none", "centre"] = Field(
        "hann",
        description="what a pixel of a window weighs beside those of its neighbours; hann: the less the farther from "
        "the centre; none: all alike; centre: the middle alone, as published systems cut it out",
    )
    symmetries: bool = Field(False, description="each window turned and mirrored in all eight ways, for eight times")
    calibrate: bool = Field(
        True, description="probabilities are sharpened or flattened until they suit the validation tiles"
    )
    layers: Annotated[tuple[Layer, ...], Unique] = Field(
        (),
        description="what is kept beside class and confidence; margin: to the second class; entropy: 100 where all "
        "classes are alike; probabilities: of every class",
    )
    batch: int = Field(4, ge=1, description="windows at once")
    threads: int = Field(1, ge=1, le=64, description="batches of one block at once; their number changes no byte")

    @property
    def step_pixels(self) -> int:
        """Distance of neighbouring windows."""
        return self.window_pixels - int(round(self.window_pixels * self.overlap, 6))

    @model_validator(mode="after")
    def _blends_what_overlaps(self) -> Self:
        if self.step_pixels == self.window_pixels and self.blend == "centre":
            raise ValueError(
                f"blend is centre, but overlap is {self.overlap}, so that nothing is cut off: set the overlap, or none"
            )
        return self


class Crf(Section):
    """A conditional random field: neighbours of like look are drawn to one class, in each window by itself."""

    iterations: int = Field(5, ge=1, le=20, description="of the mean field")
    radius_pixels: int = Field(3, ge=1, le=15, description="how far a neighbour counts, along rows and columns [px]")
    smoothness: float = Field(0.0, ge=0, le=100, description="weight of all neighbours together, whatever their look")
    likeness: float = Field(10.0, ge=0, le=100, description="weight of all neighbours together, if they look alike")
    distance_pixels: float = Field(3.0, ge=0.1, le=15, description="standard deviation of the distance [px]")
    contrast: float = Field(
        0.3,
        ge=0.01,
        le=10,
        description="difference in look, in the mean of the bands, at which a neighbour counts less "
        "[standard deviations]",
    )

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.smoothness + self.likeness:
            raise ValueError("smoothness and likeness are 0, so that nothing changes: set one of them, or remove crf")
        return self


class Bayes(Section):
    """Probabilities moved to the mean of the likeliest of a neighbourhood, the more the less sure they are (sits)."""

    pixels: int = Field(5, ge=3, le=15, description="side of the neighbourhood, odd [px]")
    share: float = Field(0.75, gt=0, le=1, description="of the neighbours, the highest, that count for a class")
    smoothness: float = Field(10.0, gt=0, le=1000, description="variance to which a pixel's own log-odds are known")

    @field_validator("pixels")
    @classmethod
    def _is_odd(cls, pixels: int) -> int:
        return _odd(pixels)


class Tidy(Section):
    """What is done to the finished classes while the map is put together."""

    majority_pixels: int | None = Field(
        None, ge=3, le=31, description="each pixel takes the class of most within a square of this side, odd [px]"
    )
    min_unit_ha: float | None = Field(
        None, gt=0, le=100, description="smaller patches join the neighbour with the longest common border [ha]"
    )

    @field_validator("majority_pixels")
    @classmethod
    def _is_odd(cls, pixels: int | None) -> int | None:
        return None if pixels is None else _odd(pixels)


ROUNDS = 4  # in which small patches join their neighbours; each may reach one patch farther
MOST_HALO_PIXELS = 2048  # about a block: beyond it most of the work would be on pixels of others


def unit_pixels(tidy: Tidy, pixel_m: float) -> int:
    """Pixels of the minimum mapping unit, 0 where there is none.

    Raises
    ------
    SettingError
        Blocks cannot be put together as if the map were one, since the unit is too large.
    """
    pixel_ha = pixel_m**2 / 10_000
    pixels = math.ceil(round((tidy.min_unit_ha or 0) / pixel_ha, 6))
    if tidy.min_unit_ha and pixels < 2:
        raise SettingError(
            f"postprocess.min_unit_ha is {tidy.min_unit_ha}, not more than one pixel of {pixel_m:g} m, so that nothing "
            f"changes: expected more than {pixel_ha:g}, or remove it"
        )
    most = MOST_HALO_PIXELS // (ROUNDS + 1)
    if pixels > most:
        raise SettingError(
            f"postprocess.min_unit_ha is {tidy.min_unit_ha}, which is {pixels} pixels of {pixel_m:g} m: expected at "
            f"most {most * pixel_ha:g} ha, beyond which blocks would have to be larger than memory"
        )
    return pixels


def halo_pixels(tidy: Tidy, pixel_m: float) -> int:
    """How far a pixel's class depends on others once it is found, errors as of ``unit_pixels``."""
    return (tidy.majority_pixels or 0) // 2 + (ROUNDS + 1) * unit_pixels(tidy, pixel_m)


class Postprocess(Tidy):
    """What follows the network; none of it unless it is set."""

    crf: Crf | None = Field(None, description="conditional random field")
    bayes: Bayes | None = Field(None, description="Bayesian smoothing")
    polygons: bool = Field(False, description="the map as polygons too, for `snakemake` and in the map's STAC item")
    simplify_m: float | None = Field(
        20, gt=0, le=1000, description="corners of the map's polygons are cut up to about this side; none: none [m]"
    )


def _odd(pixels: int) -> int:
    if pixels % 2 == 0:
        raise ValueError("expected an odd number, so that the square has a middle")
    return pixels


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
    postprocess: Postprocess = Postprocess()

    @field_validator("options")
    @classmethod
    def _in_one_order(cls, options: dict[str, Any]) -> dict[str, Any]:
        return dict(sorted(options.items()))  # so that another order in the file trains nothing again

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

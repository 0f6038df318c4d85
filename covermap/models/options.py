"""What may be set of each network: typed and bounded, checked when the workflow is read, without importing torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

ENCODER = r"^[A-Za-z0-9_.-]+$"  # no address, which timm would download from


class Options(BaseModel):
    """Keywords of a network; its defaults and names are those of the network's class."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    takes: ClassVar[tuple[str, ...]] = ("sentinel1", "sentinel2", "terrain")  # inputs that it can have
    needs: ClassVar[tuple[str, ...]] = ()  # those that it cannot do without
    any_steps: ClassVar[tuple[str, ...]] = ()  # inputs of which it takes any number of steps, all alike
    of_patches: ClassVar[bool] = False  # whether it gives a class to a patch, not to each pixel
    halvings: ClassVar[int] = 0  # of the side, on the way to its lowest level
    reach_pixels: ClassVar[int] = 0  # by way of the lowest level, where the way is longest; whatever the width

    @property
    def multiple(self) -> int:
        """What a side of the network's input must be a multiple of [px]."""
        return 2**self.halvings

    @property
    def margin_pixels(self) -> int:
        """How far from a pixel lies the last input that its class depends on, but for means over a window [px]."""
        return self.reach_pixels


class UnetOptions(Options):
    """See :class:`covermap.models.unet.Unet`."""

    width: int = Field(32, ge=8, le=256, multiple_of=8, description="channels of the first level")
    depth: int = Field(3, ge=1, le=6, description="number of times that the resolution is halved")

    @property
    def multiple(self) -> int:
        """Each level halves the side."""
        return 2**self.depth

    @property
    def margin_pixels(self) -> int:
        """Four 3 x 3 convolutions a level and two at the lowest, and up to a pixel at each halving and doubling."""
        return 8 * 2**self.depth - 6


class DeepForestOptions(Options):
    """See :mod:`covermap.models.deepforest`."""

    halvings: ClassVar[int] = 5
    reach_pixels: ClassVar[int] = 284

    width: int = Field(
        64, ge=8, le=128, multiple_of=8, description="channels that all others are in proportion to; 64 as published"
    )
    as_published: bool = Field(False, description="with the quirks of the published code, for comparison")


class DeepForest1bOptions(DeepForestOptions):
    """See :class:`covermap.models.deepforest.DeepForest1b`."""

    reach_pixels: ClassVar[int] = 278


class DeepForest1cOptions(DeepForestOptions):
    """See :class:`covermap.models.deepforest.DeepForest1c`."""

    reach_pixels: ClassVar[int] = 313


class WideUnetOptions(DeepForestOptions):
    """See :class:`covermap.models.deepforest_peers.WideUnet`."""

    reach_pixels: ClassVar[int] = 785


class DeepLabOptions(DeepForestOptions):
    """See :class:`covermap.models.deepforest_peers.DeepLab`."""

    halvings: ClassVar[int] = 3
    reach_pixels: ClassVar[int] = 588


class DeepForest2Options(DeepForestOptions):
    """See :class:`covermap.models.deepforest.DeepForest2a`."""

    reach_pixels: ClassVar[int] = 785  # that of the U-Net
    needs: ClassVar[tuple[str, ...]] = ("sentinel1", "sentinel2")
    takes: ClassVar[tuple[str, ...]] = ("sentinel1", "sentinel2")


class DeepForest2bOptions(DeepForest2Options):
    """See :class:`covermap.models.deepforest.DeepForest2b`."""

    branch: Literal["1a", "1b"] = Field(
        "1b", description="of Sentinel-2: as the paper's text says (1b), or as the published code has it (1a)"
    )

    @property
    def margin_pixels(self) -> int:
        """That of the network of the branch."""
        return {"1a": DeepForestOptions, "1b": DeepForest1bOptions}[self.branch].reach_pixels


class DatesOptions(Options):
    """What the networks of :mod:`covermap.models.fcn_lstm` have in common."""

    takes: ClassVar[tuple[str, ...]] = ("sentinel2",)
    needs: ClassVar[tuple[str, ...]] = ("sentinel2",)
    any_steps: ClassVar[tuple[str, ...]] = ("s2",)
    halvings: ClassVar[int] = 5
    reach_pixels: ClassVar[int] = 307

    width: int = Field(64, ge=8, le=128, multiple_of=8, description="channels of the first level of the encoder")
    as_published: bool = Field(False, description="with the quirks of the published code, for comparison")


class FcnOptions(DatesOptions):
    """See :class:`covermap.models.fcn_lstm.Fcn`."""

    voting: Literal["mean", "majority"] = Field(
        "mean", description="of the dates: by the mean of their probabilities, or each by its best class"
    )


class FcnLstmOptions(DatesOptions):
    """See :class:`covermap.models.fcn_lstm.FcnLstm`."""

    draw: int | None = Field(
        None, ge=1, description="so many dates are drawn for each training step, in their order; none: all are seen"
    )

    @property
    def margin_pixels(self) -> int:
        """A pixel further for every date. ASSUME: two dozen, where none are drawn; the number is the area's."""
        return self.reach_pixels + (self.draw or 24)


class SegmenterOptions(Options):
    """See :class:`covermap.models.zoo.Segmenter`."""

    halvings: ClassVar[int] = 5
    reach_pixels: ClassVar[int] = 1024  # the largest tile: deep encoders, and attention, see the whole of any tile

    architecture: Literal["unet", "unetplusplus", "deeplabv3plus", "fpn", "segformer", "upernet", "dpt"] = Field(
        "unet", description="what is built on the encoder"
    )
    encoder: str = Field("resnet34", pattern=ENCODER, description="an encoder of timm, by its name there")


class ClassifierOptions(Options):
    """See :class:`covermap.models.zoo.Classifier`."""

    of_patches: ClassVar[bool] = True

    encoder: str = Field("resnet50", pattern=ENCODER, description="an encoder of timm, by its name there")


OPTIONS: dict[str, type[Options]] = {
    "unet": UnetOptions,
    "deepforest_1a": DeepForestOptions,
    "deepforest_1b": DeepForest1bOptions,
    "deepforest_1c": DeepForest1cOptions,
    "deepforest_2a": DeepForest2Options,
    "deepforest_2b": DeepForest2bOptions,
    "deepforest_unet": WideUnetOptions,
    "deepforest_deeplab": DeepLabOptions,
    "fcn": FcnOptions,
    "fcn_lstm": FcnLstmOptions,
    "segmenter": SegmenterOptions,
    "classifier": ClassifierOptions,
}

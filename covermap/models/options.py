"""What may be set of each network: typed and bounded, checked when the workflow is read, without importing torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Keywords of a network; its defaults and names are those of the network's class."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def multiple(self) -> int:
        """What a side of the network's input must be a multiple of [px]."""
        return 1

    @property
    def margin_pixels(self) -> int:
        """How far from a pixel lies the last input that its class depends on, but for means over a window [px]."""
        return 0


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
        """Four 3 x 3 convolutions a level and two at the lowest, and up to a pixel at each halving."""
        return 7 * 2**self.depth - 5


OPTIONS: dict[str, type[Options]] = {
    "unet": UnetOptions,
}

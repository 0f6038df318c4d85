"""Any encoder of timm, in any architecture of segmentation_models_pytorch, or alone for patches.

Neither of the two libraries downloads anything here: weights to start from come as a file of rule download_weights.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from covermap.errors import ModelError
from covermap.models.blocks import layout, stacked

# Architectures by their classes in segmentation_models_pytorch:
# Ronneberger et al. 2015, doi:10.1007/978-3-319-24574-4_28; Zhou et al. 2018, doi:10.1007/978-3-030-00889-5_1;
# Chen et al. 2018, doi:10.1007/978-3-030-01234-2_49; Kirillov et al. 2019, doi:10.1109/CVPR.2019.00656;
# Xie et al. 2021, arXiv:2105.15203; Xiao et al. 2018, doi:10.1007/978-3-030-01228-1_26; Ranftl et al. 2021,
# doi:10.1109/ICCV48922.2021.01196.
ARCHITECTURES = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "deeplabv3plus": "DeepLabV3Plus",
    "fpn": "FPN",
    "segformer": "Segformer",
    "upernet": "UPerNet",
    "dpt": "DPT",
}
# What an encoder is built with where it knows the word: sides that differ from those of its training, and blocks that
# begin with a say of their own, so that every weight learns from the first step on.
ANY_SIDE = {"dynamic_img_size": True, "dynamic_img_pad": True, "strict_img_size": False}
WHERE_KNOWN = {**ANY_SIDE, "zero_init_last": False}
OPERATORS = ("nms", "qnms")

_DECLARED: list[torch.library.Library] = []  # what is declared ends with its library


class Segmenter(nn.Module):
    """Per-pixel logits from the stacked steps, bands and masks of every input.

    Parameters
    ----------
    shapes
        Steps and bands of each input, such as ``{"s1": (12, 2), "s2": (1, 10)}``.
    classes
        Number of classes K.
    architecture
        A key of ``ARCHITECTURES``.
    encoder
        Name of a model of timm.

    Raises
    ------
    ModelError
        timm does not have the encoder, or the architecture cannot be built on it.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, int]], classes: int, architecture: str = "unet", encoder: str = "resnet34"
    ) -> None:
        super().__init__()
        self.multiple = 32
        self.layout = layout(shapes, masks=True)
        self.net = _segmenter(architecture, encoder, len(self.layout), classes)

    @property
    def encoder(self) -> nn.Module:
        """The model of timm, which weights of a hub go into."""
        return self.net.get_submodule("encoder.model")

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """Logits (B, K, H, W) from inputs (B, T, C, H, W), 0 where not valid, and valid (B, T, H, W), 0 to 1."""
        return _even_of_one(self.net, stacked(inputs, valid, masks=True))


class Classifier(nn.Module):
    """Logits of whole patches from the stacked steps, bands and masks of every input.

    Parameters, errors: as of :class:`Segmenter`.
    """

    def __init__(self, shapes: dict[str, tuple[int, int]], classes: int, encoder: str = "resnet50") -> None:
        super().__init__()
        self.layout = layout(shapes, masks=True)
        _must_know(encoder)
        what = f"a classifier cannot be built on encoder {encoder}"
        extras = _extras(encoder, what)
        self.encoder: nn.Module = _built(
            what, _timm().create_model, encoder, in_chans=len(self.layout), num_classes=classes, **extras
        )

    def forward(self, inputs: dict[str, Tensor], valid: dict[str, Tensor]) -> Tensor:
        """Logits (B, K) from inputs (B, T, C, H, W), 0 where not valid, and valid (B, T, H, W), 0 to 1."""
        return _even_of_one(self.encoder, stacked(inputs, valid, masks=True))


def _even_of_one(net: nn.Module, image: Tensor) -> Tensor:
    """What ``net`` says of images (B, C, H, W), also in training of a single one.

    Batch normalisation has no spread where a channel has one value, as behind a mean over the image, and refuses it. A
    second copy gives it one, of 0.
    """
    logits: Tensor = net(image.expand(2, -1, -1, -1))[:1] if net.training and len(image) == 1 else net(image)
    return logits


def _segmenter(architecture: str, encoder: str, channels: int, classes: int) -> nn.Module:
    if architecture not in ARCHITECTURES:
        raise ModelError(f"architecture {architecture} is not known: expected one of {', '.join(ARCHITECTURES)}")
    _must_know(encoder)
    what = f"architecture {architecture} cannot be built on encoder {encoder}"
    extras = _extras(encoder, what)
    make = getattr(_smp(), ARCHITECTURES[architecture])
    net = _built(what, make, f"tu-{encoder}", encoder_weights=None, in_channels=channels, classes=classes, **extras)
    if architecture == "dpt":
        _prepare_dpt(net, what)
    return net


def _prepare_dpt(net: nn.Module, what: str) -> None:
    """Refuse what its decoder cannot put together, and drop what it does not read."""
    encoder: Any = net.encoder
    if any(stride & (stride - 1) for stride in encoder.output_strides):
        raise ModelError(f"{what}: its patches are {encoder.output_strides[0]} px wide, so take one of 8, 16 or 32 px")
    encoder.model.prune_intermediate_layers(encoder._output_indices, prune_norm=True, prune_head=True)


def _extras(encoder: str, what: str) -> dict[str, bool]:
    """Those of ``WHERE_KNOWN`` that the encoder's class has; it is built without memory to see which class it is."""
    with torch.device("meta"):
        model = _built(what, _timm().create_model, encoder)
    known = inspect.signature(type(model)).parameters
    told: Any = model.pretrained_cfg
    if told.get("fixed_input_size") and not ANY_SIDE.keys() & known:
        raise ModelError(f"{what}: it takes images of {told['input_size'][-1]} px alone, so take another")
    return {key: value for key, value in WHERE_KNOWN.items() if key in known}


def _built(what: str, make: Callable[..., nn.Module], *args: Any, **options: Any) -> nn.Module:
    """Another library's network; of what it raises one sentence, which begins with ``what``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they advise those who call the library
            return make(*args, **options)
    except Exception as error:  # these libraries raise whatever their parts do
        raise ModelError(f"{what} ({error or type(error).__name__}): take another encoder or network") from error


def _must_know(encoder: str) -> None:
    timm = _timm()
    if not timm.is_model(encoder):
        near = get_close_matches(encoder, timm.list_models(), 3, 0)
        raise ModelError(f"encoder {encoder} is not in timm: expected a name such as {', '.join(near)}")


def _timm() -> Any:
    declare_missing_operators()
    return import_module("timm")


def _smp() -> Any:
    declare_missing_operators()
    return import_module("segmentation_models_pytorch")


def declare_missing_operators() -> None:
    """Let torchvision, which timm and segmentation_models_pytorch import, be imported where its operators are missing.

    Its build for a GPU cannot be loaded beside a torch for the CPU alone. It then ends at the import with "operator
    torchvision::nms does not exist", since it adds to two operators that its compiled part would have declared. None
    of them is used here, so that their declaration is enough. Where the compiled part can be loaded nothing is done.
    """
    found = find_spec("torchvision")
    if found is None or found.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    for compiled in Path(found.origin).parent.glob("_C*"):
        with suppress(OSError):
            torch.ops.load_library(compiled)
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)

"""Encoders of timm under every architecture, alone for patches, and nothing fetched behind our back."""

import socket
import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError

from covermap.errors import ModelError
from covermap.models import zoo
from covermap.models.blocks import Channel, layout, stacked
from covermap.models.options import OPTIONS
from covermap.models.unet import Unet
from covermap.models.zoo import ARCHITECTURES, Classifier, Segmenter

SHAPES = {"s1": (3, 2), "s2": (2, 4), "terrain": (1, 1)}
TINY = {**dict.fromkeys(ARCHITECTURES, "test_resnet"), "dpt": "test_vit"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*words):
        raise AssertionError("something was asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.manual_seed(0)


def inputs(count=2, height=64, width=96):
    values = {key: torch.randn(count, steps, bands, height, width) for key, (steps, bands) in SHAPES.items()}
    return values, {key: torch.ones(count, steps, height, width) for key, (steps, _) in SHAPES.items()}


def unreached(network):
    network(*inputs()).square().mean().backward()
    return [name for name, values in network.named_parameters() if values.grad is None or not values.grad.any()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_scores_every_pixel_and_learns_in_every_weight(architecture):
    network = Segmenter(SHAPES, 5, architecture, TINY[architecture]).train()
    assert network(*inputs()).shape == (2, 5, 64, 96)
    assert unreached(network) == []
    assert network.eval()(*inputs(3, 96, 32)).shape == (3, 5, 96, 32)


@pytest.mark.parametrize("encoder", ["test_efficientnet", "test_convnext", "pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_encoders_of_each_kind_work_at_other_sides_than_their_own(encoder):
    network = Segmenter(SHAPES, 3, "unet", encoder).train()
    assert unreached(network) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "encoder"),
    [
        *[("unet", encoder) for encoder in ("resnet34", "resnet50", "efficientnet_b0", "convnext_tiny", "vgg19")],
        *[("segformer", "pvt_v2_b2"), ("upernet", "convnext_tiny"), ("deeplabv3plus", "resnet50")],
        *[("dpt", encoder) for encoder in ("vit_small_patch16_224", "vit_small_patch8_224", "resnet34")],
    ],
)
def test_encoders_of_full_size(architecture, encoder):
    assert unreached(Segmenter(SHAPES, 3, architecture, encoder).train()) == []


@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet", "test_vit", "vit_tiny_patch16_224"])
def test_a_patch_has_one_class(encoder):
    network = Classifier(SHAPES, 5, encoder).train()
    assert network(*inputs(2, 64, 64)).shape == (2, 5)
    assert unreached(network) == []


@pytest.mark.parametrize("architecture", ["unet", "deeplabv3plus", "upernet"])
def test_a_single_small_tile_can_be_learned_from(architecture):
    """Where the lowest level, or a mean over the image, is one pixel."""
    network = Segmenter(SHAPES, 5, architecture, "test_resnet").train()
    logits = network(*inputs(1, 32, 32))
    assert logits.shape == (1, 5, 32, 32)
    logits.square().mean().backward()
    assert all(values.isfinite().all() for values in network.state_dict().values())


def test_channels_are_stacked_as_the_layout_tells():
    values, valid = inputs(1, 4, 4)
    valid = {key: torch.rand_like(mask) for key, mask in valid.items()}
    image, channels = stacked(values, valid, masks=True), layout(SHAPES, masks=True)
    assert image.shape[1] == len(channels) == 6 + 1 + 8 + 2 + 1 + 1
    for number, (key, step, band) in enumerate(channels):
        if band is not None:
            expected = values[key][:, step, band]
        else:
            expected = valid[key].mean(1) if key == "s1" else valid[key][:, step]
        torch.testing.assert_close(image[:, number], expected)
    assert channels[:3] == [Channel("s1", 0, 0), Channel("s1", 0, 1), Channel("s1", 1, 0)]
    assert layout(SHAPES, masks=False) == [channel for channel in channels if channel.band is not None]
    assert Unet(SHAPES, 2).enter.in_channels == len(channels)


REFUSED = {
    "no such encoder": (("unet", "resnet35"), r"^encoder resnet35 is not in timm: expected a name such as resnet\w+, "),
    "no such architecture": (("pspnet", "resnet34"), "architecture pspnet is not known: expected one of unet, "),
    "no levels": (("unet", "test_vit"), r"architecture unet cannot be built on encoder test_vit \(.+\): take another"),
    "not dilated": (("deeplabv3plus", "pvt_v2_b0"), r"deeplabv3plus cannot be built on encoder pvt_v2_b0 \(.*stride"),
    "odd patches": (("dpt", "vit_small_patch14_dinov2"), "its patches are 14 px wide, so take one of 8, 16 or 32 px"),
    "one side": (("unet", "beit_base_patch16_224"), "it takes images of 224 px alone, so take another"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_built_is_one_sentence(case):
    (architecture, encoder), message = REFUSED[case]
    with pytest.raises(ModelError, match=message):
        Segmenter(SHAPES, 5, architecture, encoder)


def test_a_classifier_of_no_encoder_is_one_sentence():
    with pytest.raises(ModelError, match="encoder resnet5 is not in timm: expected a name such as "):
        Classifier(SHAPES, 5, "resnet5")


@pytest.mark.parametrize("name", ["segmenter", "classifier"])
@pytest.mark.parametrize("encoder", ["hf-hub:someone/resnet50", "local-dir:/etc", "https://a/b", ""])
def test_an_encoder_is_a_name_and_no_address(name, encoder):
    with pytest.raises(ValidationError):
        OPTIONS[name](encoder=encoder)


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(Segmenter(SHAPES, 5, "fpn", "test_convnext").state_dict())
    assert all(torch.equal(values, states[1][key]) for key, values in states[0].items())


IMPORTS = (
    "from covermap.models.zoo import declare_missing_operators as declare; declare(); declare(); import torchvision"
)


def test_torchvision_is_imported_whether_or_not_its_operators_are_there():
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=120)


def test_operators_that_are_there_are_left_alone(monkeypatch):
    zoo.declare_missing_operators()
    before = list(zoo._DECLARED)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("loaded again"))
    zoo.declare_missing_operators()
    assert before == zoo._DECLARED


def test_the_network_works_in_reduced_precision_and_channels_last():
    network = Segmenter(SHAPES, 5, "unet", "test_resnet").to(memory_format=torch.channels_last).eval()
    given = inputs()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        coarse = network(*given).float()
    with torch.inference_mode():
        assert (coarse - network(*given)).abs().mean() < 0.05

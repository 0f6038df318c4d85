"""Weights of hubs: fetched whole, checked, read as tensors alone, and put where they belong."""

import hashlib
import logging
import os
import pickle

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save, save_file

from covermap.errors import DownloadError, ModelError, SettingError
from covermap.hubs import RGB, TOA, TORCHGEO, HubFile, Scale, hub_file
from covermap.model_settings import Model
from covermap.models.zoo import declare_missing_operators
from covermap.trained import build, save_weights
from covermap.weights import Entry, download_weights, entries, first_layer, read_tensors, start_weights
from tests.servers.hub import hub

declare_missing_operators()
import timm  # noqa: E402

NAME = "timm/resnet0.here"
PLACE = "timm/resnet0.here", "main", "model.safetensors"
CONTENT = save({"conv1.weight": torch.arange(60_000.0)})
BANDS = ["B02", "B03", "B04"]
COLOURS = {"s2": {"band": BANDS}}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "store").mkdir()
    with hub(tmp_path / "store") as running:
        running.put(*PLACE, CONTENT)
        yield running


def test_weights_come_whole_over_a_redirect_and_without_credentials(server, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(
        "machine 127.0.0.1 login me password secret\nmachine localhost login me password s\n"
    )
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    download_weights(tmp_path / "timm" / "resnet0.here", NAME, server.url)
    assert (tmp_path / "timm" / "resnet0.here").read_bytes() == CONTENT
    kinds = [path.split("/")[3] for path, _ in server.asked]
    assert kinds == ["raw", "resolve"] and server.store.paths == ["/timm/resnet0.here/main/model.safetensors"]
    assert not any("Authorization" in headers for _, headers in server.asked)


def test_a_transfer_that_was_cut_goes_on(server, tmp_path):
    faults = ["cut"]
    server.store.fault = lambda path: faults.pop() if faults else ""
    download_weights(tmp_path / "weights", NAME, server.url)
    assert (tmp_path / "weights").read_bytes() == CONTENT
    assert server.store.sent_bytes == len(CONTENT)


FAULTS = {
    "other bytes": (
        lambda shop: shop.digests.update({"/".join(PLACE): "0" * 64}),
        r"has the sha256 \w{64}, not 0{64} of the catalogue, 3 times in a row",
    ),
    "no pointer": (
        lambda shop: shop.pointers.update({"/".join(PLACE): b"<html>Welcome</html>"}),
        r"raw/main/model\.safetensors tells no size and SHA-256 of the file: check mirrors\.weights",
    ),
    "no weights": (
        lambda shop: (shop.store.folder / "/".join(PLACE)).unlink(),
        r"answered 401 \(Unauthorized\): .*; so there are no weights timm/resnet0\.here: check start_from",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_whole_is_no_file(fault, server, tmp_path):
    spoil, message = FAULTS[fault]
    spoil(server)
    with pytest.raises(DownloadError, match=message):
        download_weights(tmp_path / "out" / "weights", NAME, server.url)
    assert not (tmp_path / "out" / "weights").exists()


def test_torchgeos_come_from_their_commit_and_are_what_their_name_promises(server, tmp_path, monkeypatch):
    name = "torchgeo/resnet18_sentinel2_all_moco"
    file = hub_file(name)
    assert (file.revision, file.digest) == ("5b8cddc9a14f3844350b7f40b85bcd32aed75918", "59bfdff9")
    server.put(file.repository, file.revision, file.file, CONTENT)
    with pytest.raises(DownloadError, match=r"its name promises 59bfdff9\.\.\.: check mirrors\.weights"):
        download_weights(tmp_path / "weights", name, server.url)
    assert not (tmp_path / "weights").exists()
    promised = file._replace(digest=hashlib.sha256(CONTENT).hexdigest()[:8])
    monkeypatch.setitem(TORCHGEO, name.partition("/")[2], promised)
    download_weights(tmp_path / "weights", name, server.url)
    assert (tmp_path / "weights").read_bytes() == CONTENT


def test_a_commit_pins_a_file_of_timms(server, tmp_path):
    commit = "0a" * 20
    server.put("timm/resnet0.here", commit, "model.safetensors", CONTENT[::-1])
    download_weights(tmp_path / "pinned", f"{NAME}@{commit}", server.url)
    assert (tmp_path / "pinned").read_bytes() == CONTENT[::-1]
    assert model("segmenter", options={"encoder": "resnet0"}, start_from=f"{NAME}@{commit}").start_from.endswith(commit)


def test_names_that_torchgeo_does_not_have_are_told_when_settings_are_read():
    near = (
        r"torchgeo has no weights resnet50_sentinel2_all_mocco: expected a name such as resnet50_sentinel2_all_moco, "
    )
    with pytest.raises(SettingError, match=near):
        hub_file("torchgeo/resnet50_sentinel2_all_mocco")
    with pytest.raises(ValidationError, match=near):
        model("segmenter", start_from="torchgeo/resnet50_sentinel2_all_mocco")


@pytest.mark.parametrize("name", TORCHGEO)
def test_each_of_torchgeos_says_what_its_bands_and_scales_are(name):
    file = TORCHGEO[name]
    assert len(file.revision) == 40 and set(file.bands) <= {*TOA, "VV", "VH"}
    assert ("sentinel1" in name) == (file.bands == ("VV", "VH"))
    assert file.scale is None or len(file.scale.offset) == len(file.scale.divisor) == len(file.bands)
    assert not file.digest or file.file.endswith(f"-{file.digest}.pth")


# --- where they go ---------------------------------------------------------------------------------------------------


def model(network, **more):
    return Model(network=network, train_on=["here"], sensors=["sentinel2"], **more)


def net_of(network, meaning=COLOURS, steps=1, classes=3, **options):
    torch.manual_seed(7)
    bands = len(meaning["s2"]["band"])
    return build(model(network, options=options), {"s2": (steps, bands)}, classes, meaning)


def write_timm(path, encoder, channels=3):
    torch.manual_seed(1)
    net = timm.create_model(encoder, in_chans=channels)
    for values in net.state_dict().values():
        if values.is_floating_point():
            values.add_(0.02 * torch.randn_like(values))
    save_file({key: values.contiguous() for key, values in net.state_dict().items()}, path)
    return path


ENCODERS = ["test_resnet", "test_efficientnet", "test_convnext", "pvt_v2_b0", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_sees_what_timms_own_sees(encoder, tmp_path):
    """Its levels are equal to those of timm's own loader, though our bands have another order and a mask beside."""
    path = write_timm(tmp_path / "weights.safetensors", encoder)
    net = net_of("segmenter", encoder=encoder)
    count = start_weights(net, path, f"timm/{encoder}.here")
    assert count == len(net.network.encoder.state_dict())
    beside = {"file": str(path)}
    side = {"strict_img_size": False} if encoder.startswith("swin") else {}
    peer = timm.create_model(encoder, features_only=True, pretrained=True, pretrained_cfg_overlay=beside, **side).eval()
    image = torch.randn(1, 3, 64, 64)
    ours = torch.cat([image.flip(1), torch.ones(1, 1, 64, 64)], 1)  # B02, B03, B04 and a mask for red, green, blue
    with torch.inference_mode():
        for mine, other in zip(net.eval().network.encoder(ours)[-3:], peer(image)[-3:], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_a_vision_transformer_under_dpt_and_a_classifier_start_too(tmp_path):
    path = write_timm(tmp_path / "weights.safetensors", "test_vit")
    state = read_tensors(path)
    for net in (net_of("segmenter", architecture="dpt", encoder="test_vit"), net_of("classifier", encoder="test_vit")):
        start_weights(net, path, "timm/test_vit.here")
        torch.testing.assert_close(net.network.encoder.state_dict()["pos_embed"], state["pos_embed"])
        torch.testing.assert_close(net.network.encoder.patch_embed.proj.bias, state["patch_embed.proj.bias"])
    assert net.network.encoder.head.weight.shape[0] == 3  # our classes


def test_the_same_start_gives_the_same_bytes(tmp_path):
    path = write_timm(tmp_path / "weights.safetensors", "test_resnet")
    written = []
    for number in range(2):
        net = net_of("segmenter", encoder="test_resnet", steps=3)
        start_weights(net, path, "timm/test_resnet.here")
        save_weights(tmp_path / f"{number}.safetensors", net, model("segmenter"), ["a", "b", "c"])
        written.append((tmp_path / f"{number}.safetensors").read_bytes())
    assert written[0] == written[1]


def test_the_first_layer_says_of_our_bands_what_it_said_of_its_own():
    """Of integers it makes the same, though the hub divides by 10,000 and we by each band's own deviation."""
    torch.manual_seed(0)
    file = HubFile("a/b", "c", "d", ("B04", "B08", "B02"), Scale((0.0, 5.0, 1.0), (10_000.0, 300.0, 200.0)))
    kernel, integers = torch.randn(6, 3, 3, 3), torch.randint(1, 5000, (2, 3, 9, 9)).float()
    means, stds = torch.tensor([900.0, 2000.0, 500.0]), torch.tensor([300.0, 700.0, 150.0])
    ours = [Entry(band, float(m), float(s)) for band, m, s in zip(("B02", "B04", "B08"), means, stds, strict=True)]
    weight, shift = first_layer(kernel, file, [*ours, None])
    offset, divisor = (torch.tensor(part)[:, None, None] for part in file.scale)
    theirs = torch.nn.functional.conv2d((integers - offset) / divisor, kernel)
    values = (integers[:, [2, 0, 1]] - means[:, None, None]) / stds[:, None, None]
    mine = torch.nn.functional.conv2d(torch.cat([values, torch.ones(2, 1, 9, 9)], 1), weight, shift)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)


def test_shared_and_foreign_bands_of_the_first_layer_by_hand():
    """Red 6 is shared by three steps; blue 12 and green 0 are missing, so that two others share two mean kernels."""
    kernel = torch.tensor([6.0, 0.0, 12.0]).view(1, 3, 1, 1)
    red, other = Entry("B04", 0.0, 1.0), Entry("B11", 0.0, 1.0)
    weight, shift = first_layer(kernel, HubFile("a/b", "c", "d", RGB), [red, red, red, other, Entry("", 0, 1), None])
    assert weight.flatten().tolist() == [2, 2, 2, 6, 6, 0]
    assert shift.tolist() == [0]
    weight, _ = first_layer(kernel, HubFile("a/b", "c", "d", RGB), [Entry("B02", 0, 1), Entry("B03", 0, 1), red, other])
    assert weight.flatten().tolist() == [12, 0, 6, 6]  # none is missing: once


def test_channels_are_known_by_name_and_normalisation():
    meaning = {
        "s1": {"month": ["01"], "polarisation": ["VV ascending", "VH ascending"]},
        "s2": {"band": ["B04", "B08"], "step": ["Q1", "Q2"]},
        "terrain": {"layer": ["slope"]},
    }
    entry = Model(
        network="segmenter",
        train_on=["here"],
        sensors=["sentinel1", "sentinel2", "terrain"],
        indices=["ndvi"],
        options={"encoder": "test_resnet"},
    )
    net = build(entry, {"s1": (1, 2), "s2": (2, 2), "terrain": (1, 1)}, 2, meaning)
    net.s2_mean[1, 0], net.s2_std[1, 0] = 900, 30
    found = entries(net)
    names = [one.band if one else None for one in found]
    assert names == ["VV", "VH", None, "B04", "B08", "", "B04", "B08", "", None, None, "", None]
    assert found[6] == Entry("B04", 900, 30)


def test_another_models_weights_go_where_they_fit(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = net_of("unet", classes=4, width=8, depth=2)
    save_weights(tmp_path / "other.safetensors", other, model("unet"), list("abcd"))
    net = net_of("unet", classes=3, width=8, depth=2)
    for values in net.parameters():
        values.data.zero_()
    count = start_weights(net, tmp_path / "other.safetensors", "unet_other")
    assert count == len(net.network.state_dict()) - 2
    assert "start from unet_other; not: head.bias, head.weight" in caplog.text
    for key, values in net.network.state_dict().items():
        assert torch.equal(values, other.network.state_dict()[key]) or key.startswith("head"), key


def test_an_fcn_fills_its_part_of_an_fcn_with_lstm_and_that_one_all_of_another(tmp_path):
    other = net_of("fcn", width=8)
    save_weights(tmp_path / "fcn.safetensors", other, model("fcn"), list("abc"))
    net = net_of("fcn_lstm", width=8)
    for values in net.parameters():
        values.data.zero_()
    assert start_weights(net, tmp_path / "fcn.safetensors", "fcn") == len(other.network.state_dict())
    part = net.network.get_submodule(net.network.starts).state_dict()
    assert all(torch.equal(values, part[key]) for key, values in other.network.state_dict().items())
    save_weights(tmp_path / "lstm.safetensors", net, model("fcn_lstm"), list("abc"))
    assert start_weights(net, tmp_path / "lstm.safetensors", "lstm") == len(net.network.state_dict())


@pytest.mark.parametrize(("network", "options"), [("unet", {"width": 16}), ("fcn", {"width": 8})])
def test_weights_of_another_model_are_refused(network, options, tmp_path):
    """Though the bias of the last layer fits."""
    save_weights(tmp_path / "other", net_of(network, **options), model(network, options=options), list("abc"))
    net = net_of("unet", width=8)
    before = {key: values.clone() for key, values in net.state_dict().items()}
    with pytest.raises(
        ModelError, match=r"^start_from other has the weights of another model: of \d+ tensors of .* on"
    ):
        start_weights(net, tmp_path / "other", "other")
    assert all(torch.equal(values, before[key]) for key, values in net.state_dict().items())


def test_weights_for_as_many_other_bands_are_refused_and_for_more_they_fit_behind_the_entrance(tmp_path):
    for name, bands in {"same": BANDS, "turned": BANDS[::-1], "more": [*BANDS, "B08"]}.items():
        net = net_of("unet", {"s2": {"band": bands}}, width=8)
        save_weights(tmp_path / name, net, model("unet", options={"width": 8}), list("abc"))
    net = net_of("unet", width=8)
    tensors = len(net.network.state_dict())
    assert start_weights(net, tmp_path / "same", "same") == tensors
    assert start_weights(net, tmp_path / "more", "more") == tensors - 1
    with pytest.raises(ModelError, match="learned from band B04, B03, B02 of s2, this model sees B02, B03, B04: give"):
        start_weights(net, tmp_path / "turned", "turned")


def test_an_encoder_goes_from_one_architecture_to_another(tmp_path):
    options = {"encoder": "resnet18"}
    save_weights(tmp_path / "unet", net_of("segmenter", **options), model("segmenter", options=options), list("abc"))
    net = net_of("segmenter", architecture="fpn", **options)
    start_weights(net, tmp_path / "unet", "unet")
    found, started = read_tensors(tmp_path / "unet"), net.network.state_dict()
    encoder = [key for key in started if "encoder" in key]
    assert encoder and all(torch.equal(started[key], found[f"network.{key}"]) for key in encoder)


def test_what_is_no_file_of_a_trained_model_starts_none(tmp_path):
    (tmp_path / "other").write_bytes(pickle.dumps({"a": Payload(tmp_path / "ran")}))
    for name in ("other", "absent"):
        with pytest.raises(ModelError, match=rf"^weights .*{name} cannot be read .*: expected a file that rule train"):
            start_weights(net_of("unet", width=8), tmp_path / name, "other")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("encoder", "channels"), [("test_convnext", 3), ("test_resnet", 4)])
def test_weights_of_another_encoder_or_of_other_channels_are_refused(encoder, channels, tmp_path):
    path = write_timm(tmp_path / "weights.safetensors", encoder, channels)
    net = net_of("segmenter", encoder="test_resnet")
    before = {key: values.clone() for key, values in net.state_dict().items()}
    with pytest.raises(ModelError, match=r"has the weights of another model: \d+ of the encoder's \d+ tensors are in"):
        start_weights(net, path, f"timm/{encoder}.here")
    assert all(torch.equal(values, before[key]) for key, values in net.state_dict().items())


def test_a_network_without_an_encoder_of_timm_is_told(tmp_path):
    path = write_timm(tmp_path / "weights.safetensors", "test_resnet")
    with pytest.raises(ModelError, match="which this network has not: take network segmenter or classifier, or start"):
        start_weights(net_of("unet", width=8, depth=1), path, "timm/test_resnet.here")


class Payload:
    """What runs a program when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "bare"])
def test_a_pickled_payload_is_refused_and_never_run(kind, tmp_path):
    content = {"conv1.weight": torch.ones(3), "more": Payload(tmp_path / "ran")}
    if kind == "zip":
        torch.save(content, tmp_path / "weights")
    else:
        (tmp_path / "weights").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ModelError, match="hold more than tensors, such as code, which is never run: take others"):
        read_tensors(tmp_path / "weights")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", CONTENT[:90], CONTENT[:-5], b"\x80\x02}", b"hello" * 100])
def test_broken_weights_are_one_sentence(content, tmp_path):
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ModelError, match=r"^weights .* (cannot be read|are broken)") as caught:
        read_tensors(tmp_path / "weights")
    assert "\n" not in str(caught.value)


def test_tensors_of_torch_are_read(tmp_path):
    torch.save({"conv1.weight": torch.ones(3), "epoch": 4}, tmp_path / "weights")
    assert list(read_tensors(tmp_path / "weights")) == ["conv1.weight"]
    torch.save([torch.ones(3)], tmp_path / "list")
    with pytest.raises(ModelError, match="are no table of tensors by their names"):
        read_tensors(tmp_path / "list")

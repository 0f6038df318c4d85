"""Zips that could do harm are refused wherever one from outside is opened."""

import stat
import struct
import zipfile
from contextlib import nullcontext

import pytest

from covermap import archives
from covermap.archives import safe_members
from covermap.area_settings import Provider
from covermap.errors import ProductError
from covermap.providers import cdse_files, stac
from covermap.providers.cdse_files import SafeFile, unpack
from covermap.sentinel1.safe import open_product
from covermap.sentinel2.product import open_files

NAME = "S2A_MSIL2A_20210810T100000_N0500_R022_T32UPB_20210810T120000"
LINK = stat.S_IFLNK | 0o777
HARMFUL = {
    "upwards": ("a.SAFE/../../evil", b"x", 0, "leads out"),
    "upwards for another system": ("a.SAFE\\..\\evil", b"x", 0, "leads out"),
    "absolute": ("/etc/evil", b"x", 0, "leads out"),
    "a drive": ("C:/evil", b"x", 0, "leads out"),
    "a link": ("a.SAFE/link", b"/etc/passwd", LINK, "a link or another special file"),
    "a pipe": ("a.SAFE/pipe", b"", stat.S_IFIFO | 0o600, "a link or another special file"),
    "a bomb": ("a.SAFE/bomb.jp2", bytes(2**20), 0, "would unpack to 1048576 bytes, as a bomb does"),
    "one name in another way": ("a.SAFE/./manifest.safe", b"x", 0, "can be written in another way"),
    "one name with two slashes": ("a.SAFE//manifest.safe", b"x", 0, "can be written in another way"),
    "a file in a file": ("a.SAFE/manifest.safe/x", b"x", 0, "'a.SAFE/manifest.safe', a file and a folder at once"),
    "a folder of a file's name": ("a.SAFE/manifest.safe/", b"", 0, "a file and a folder at once"),
    "one name twice": ("a.SAFE/manifest.safe", b"x", 0, "two members of one name"),
}


def write_zip(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in (("a.SAFE/manifest.safe", b"<x/>", 0), *members):
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def by_stac(path):
    assets = {"product": {"href": str(path), "roles": ["data"], "type": "application/zip"}}
    item = {"id": NAME, "collection": "sentinel-2-l2a", "properties": {}, "assets": assets}
    try:
        stac.fetch(item, path.with_name("product.zip"), Provider(name="stac", catalog=path), ("B02",), None)
    finally:
        assert not path.with_name("product.zip").exists()


def by_cdse(path):
    unpack(path, path.with_name("a.SAFE"), [SafeFile("manifest.safe", 4, ("md5", "00"))])


READERS = {"stac": by_stac, "cdse": by_cdse, "sentinel1": open_product, "sentinel2": open_files}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", HARMFUL)
def test_harmful_members_are_refused_wherever_a_zip_is_opened(tmp_path, monkeypatch, reader, kind):
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 2**19)
    name, content, mode, words = HARMFUL[kind]
    path = write_zip(tmp_path / "a.zip", (name, content, mode))
    with pytest.raises(ProductError, match=words):
        READERS[reader](path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zip"]


def test_a_member_larger_than_its_manifest_says_is_not_unpacked(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", ("a.SAFE/b.xml", bytes(1000), 0))
    monkeypatch.setattr(cdse_files.shutil, "copyfileobj", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ProductError, match=r"b\.xml that is not as its manifest says"):
        unpack(path, tmp_path / "a.SAFE", [SafeFile("b.xml", 4, ("md5", "00"))])


def test_a_plain_zip_is_read_in_order(tmp_path):
    path = write_zip(tmp_path / "a.zip", ("a.SAFE/GRANULE/", b"", 0), ("a.SAFE/b.xml", b"<a/>" * 1000, 0o100644))
    assert [member.filename for member in safe_members(path)] == ["a.SAFE/manifest.safe", "a.SAFE/b.xml"]


def forged(path, size):
    """The zip whose list says that its last member unpacks to ``size`` bytes."""
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02") + 24
    data[place : place + 4] = struct.pack("<I", size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("size", "refused"), [(2**28, False), (2**28 + 1, True)])
def test_the_limit_of_a_bomb(tmp_path, size, refused):
    """Up to 256 MiB anything may be, beyond it 100 times its packed size at most."""
    path = forged(write_zip(tmp_path / "a.zip", ("a.SAFE/b.xml", b"<a/>", 0)), size - 4)  # the manifest has 4
    with pytest.raises(ProductError, match="as a bomb does") if refused else nullcontext():
        safe_members(path)


def test_members_that_lie_upon_each_other_are_a_bomb(tmp_path, monkeypatch):
    """Each grows little, and all together a hundred times: they share their packed bytes."""
    monkeypatch.setattr(archives, "HARMLESS_BYTES", 2**10)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.SAFE/0", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(1, 200):
            member = zipfile.ZipInfo(f"a.SAFE/{number}")
            member.header_offset, member.CRC = first.header_offset, first.CRC
            member.file_size = member.compress_size = first.file_size
            archive.filelist.append(member)
            archive.NameToInfo[member.filename] = member
        archive._didModify = True
    with pytest.raises(ProductError, match="would unpack to 20000000 bytes, as a bomb does"):
        safe_members(path)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + b"\xff" * 18, b"PK\x05\x06" + b"\0" * 10])
def test_what_is_no_zip_is_one_sentence(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(ProductError, match=r"a\.zip is no whole zip \(.*\): bring it again") as caught:
        safe_members(tmp_path / "a.zip", "bring it again")
    assert "\n" not in str(caught.value)

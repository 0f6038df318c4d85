"""Provider stac against a STAC API on loopback: search, windows of remote rasters, whole files, signatures."""

import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform_geom
from shapely.geometry import box, mapping

from covermap.area_settings import Composite, Period, Provider, Sentinel2
from covermap.download import JP2_START, download_scene, search_scenes
from covermap.errors import CoverageError, DownloadError, ProductError, SettingError
from covermap.grid import area_grid
from covermap.providers import Query, stac, stac_api
from covermap.scenes import read_listing
from covermap.sentinel2 import clip_s2
from tests.servers.stac import serve_stac

CRS, LEFT, TOP, SIDE_M = "EPSG:32632", 600_000, 5_600_040, 12_000
AREA = box(10.46, 50.475, 10.485, 50.49)  # 2 km, well inside
GRID = area_grid(AREA, CRS)
AUGUST = Period(start="2021-08-01", end="2021-08-31")
NAME = "S2A_MSIL2A_20210810T100000_N0500_R022_T32UPB_20210810T120000"


def write_cog(path, pixel_m, seed, dtype="uint16", blocksize=128, **more):
    side = SIDE_M // pixel_m
    pixels = np.random.default_rng(seed).integers(1, 12, (1, side, side)).astype(dtype)
    place = {"crs": CRS, "transform": Affine(pixel_m, 0, LEFT, 0, -pixel_m, TOP), "width": side, "height": side}
    options = {"driver": "COG", "count": 1, "dtype": dtype, "blocksize": blocksize, "compress": "deflate", **more}
    with rasterio.open(path, "w", **place, **options) as raster:
        raster.write(pixels)
    return {"href": path.name, "type": "image/tiff; application=geotiff; profile=cloud-optimized", "gsd": pixel_m}


def optical(folder, name=NAME, time="2021-08-10T10:00:00Z", cloud=3.0):
    """An item of four bands, of which one comes twice, with a picture."""
    outline = transform_geom(CRS, "EPSG:4326", mapping(box(LEFT, TOP - SIDE_M, LEFT + SIDE_M, TOP)))
    bands = {"blue": 10, "red": 10, "swir16": 20, "scl": 20}
    assets = {key: write_cog(folder / f"{key}.tif", pixel, len(key)) for key, pixel in bands.items()}
    for asset in assets.values():
        shape = [SIDE_M // asset["gsd"]] * 2
        transform = [asset["gsd"], 0, LEFT, 0, -asset["gsd"], TOP]
        asset |= {"raster:bands": [{"scale": 0.0001, "offset": -0.1}], "proj:shape": shape, "proj:transform": transform}
        asset["file:size"] = (folder / asset["href"]).stat().st_size
    assets["visual"] = {"href": "visual.tif", "type": "image/tiff", "roles": ["visual"]}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "geometry": outline,
        "bbox": list(box(10, 50, 11, 51).bounds),
        "properties": {"datetime": time, "platform": "sentinel-2a", "eo:cloud_cover": cloud, "proj:epsg": 32632},
        "links": [],
        "assets": assets,
    }


@pytest.fixture
def files(tmp_path, monkeypatch):
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return folder


def api(server, **more):
    return Provider(name="stac", catalog=server.url, **more)


def listing_of(server, path, period=AUGUST, **more):
    search_scenes(
        Path(path),
        area=AREA.wkt,
        period=period,
        sensors=("sentinel2",),
        provider=api(server, **more),
        level="L2A",
        max_cloud=60,
        orbit_state=None,
        relative_orbits=(),
        polarisations=("VV", "VH"),
        composite=Composite(),
        catalog=None,
        pinned=None,
        labels=None,
    )
    return read_listing(Path(path))


def many(folder, count):
    first = optical(folder)
    days = range(1, count + 1)
    return [{**first, "id": f"scene_{day}", "properties": {**first["properties"], **_at(day)}} for day in days]


def _at(day):
    return {"datetime": f"2021-08-{day:02d}T10:00:00Z", "s2:mgrs_tile": "32UPB"}


def test_all_pages_are_read_and_the_same_answer_gives_the_same_bytes(files, monkeypatch):
    monkeypatch.setattr(stac_api, "PAGE", 4)
    with serve_stac(many(files, 10), files) as server:
        found = listing_of(server, "one.json")
        server.items.reverse()
        listing_of(server, "two.json")
    assert sorted(found) == sorted(f"scene_{day}" for day in range(1, 11))
    assert Path("one.json").read_bytes() == Path("two.json").read_bytes()
    assert not {"created", "updated"} & set(found["scene_1"]["properties"])
    assert len(server.searches) == 6
    assert server.searches[0]["collections"] == ["sentinel-2-l2a"]
    assert server.searches[0]["datetime"] == "2021-08-01T00:00:00Z/2021-08-31T23:59:59.999Z"


def test_named_collections_are_asked_for(files):
    item = {**optical(files), "collection": "my-scenes"}
    with serve_stac([item], files) as server:
        with pytest.raises(CoverageError, match="the service knows none, so check the area and the period"):
            listing_of(server, "one.json")
        assert list(listing_of(server, "one.json", collections=["my-scenes"])) == [NAME]


def test_a_year_before_level_2a_was_routine_is_explained(files):
    with (
        serve_stac([], files) as server,
        pytest.raises(CoverageError, match=r"none \(Level-2A was made everywhere from"),
    ):
        listing_of(server, "one.json", period=Period(start="2017-08-01", end="2017-08-31"))


def test_a_busy_api_is_asked_again_and_a_broken_one_is_an_error(files, monkeypatch):
    with serve_stac([optical(files)], files, failures=[503, 429]) as server:
        assert list(listing_of(server, "one.json")) == [NAME]
        server.failures.append(400)
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+ cannot be searched for sentinel-2-l2a \(HTTP 400\)"):
            listing_of(server, "two.json")
    assert not Path("two.json").exists()


def test_why_an_api_was_not_searched_is_told(files, monkeypatch):
    monkeypatch.setattr("urllib3.util.Retry.sleep", lambda *_: None)
    with (
        serve_stac([], files, failures=[503] * 9) as server,
        pytest.raises(DownloadError, match=r"for sentinel-2-l2a \(too many 503 error responses\): check"),
    ):
        listing_of(server, "two.json")
    with pytest.raises(DownloadError, match=r"for sentinel-2-l2a \(.*the connection failed \(Connection refused\)\):"):
        listing_of(server, "two.json")


def test_a_page_that_is_no_api(files):
    (files / "catalog.json").write_text("<html>")
    with serve_stac([], files) as server:
        provider = Provider(name="stac", catalog=f"{server.url}/files/catalog.json")
        with pytest.raises(DownloadError, match="cannot be searched"):
            stac.search(Query(AREA, AUGUST, ("sentinel2",)), provider)


SETTINGS = Sentinel2(bands=("B02", "B04", "B11"))
WANTED = ("B02", "B04", "B11", "SCL")


def clip(product, item, path):
    clip_s2(product, path, item, GRID, SETTINGS, 1)
    with rasterio.open(path) as raster:
        return raster.read(), raster.bounds


def test_windows_of_remote_rasters_give_the_clip_of_the_whole_files(files):
    """Only the area's part is read, and what follows cannot tell the difference."""
    local = optical(files)
    (files / "items.json").write_text(json.dumps(local))
    with serve_stac([optical(files)], files) as server:
        (item,) = listing_of(server, "one.json").values()
        download_scene(Path("window.zip"), item, api(server), WANTED, GRID)
        sent = sum(server.read.values())
    on_disk = Provider(name="stac", catalog=files / "items.json")
    (whole,) = stac.search(Query(AREA, AUGUST, ("sentinel2",)), on_disk)
    download_scene(Path("whole.zip"), whole, on_disk, WANTED, GRID)
    one, other = clip(Path("window.zip"), item, Path("a.tif")), clip(Path("whole.zip"), whole, Path("b.tif"))
    assert np.array_equal(one[0], other[0]) and one[1] == other[1]
    assert one[0].all() and np.unique(one[0][3]).size == 11
    assert sent < 0.5 * sum(path.stat().st_size for path in files.glob("*.tif"))
    assert Path("window.zip").stat().st_size < 0.2 * Path("whole.zip").stat().st_size
    with zipfile.ZipFile("window.zip") as archive:
        assert sorted(archive.namelist()) == ["blue.tif", "item.json", "red.tif", "scl.tif", "swir16.tif"]
        assert "proj:shape" not in json.loads(archive.read("item.json"))["assets"]["blue"]


def test_the_same_window_gives_the_same_bytes_and_a_retry_takes_what_is_there(files):
    with serve_stac([optical(files)], files) as server:
        (item,) = listing_of(server, "one.json").values()
        (files / "scl.tif").rename(files / "gone.tif")
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+/files/scl\.tif cannot be read"):
            download_scene(Path("two.zip"), item, api(server), ("B02", "SCL"), GRID)
        assert not Path("two.zip").exists()
        (files / "gone.tif").rename(files / "scl.tif")
        (files / "blue.tif").rename(files / "gone.tif")
        download_scene(Path("two.zip"), item, api(server), ("B02", "SCL"), GRID)
        (files / "gone.tif").rename(files / "blue.tif")
        download_scene(Path("one.zip"), item, api(server), ("B02", "SCL"), GRID)
    assert Path("one.zip").read_bytes() == Path("two.zip").read_bytes()
    assert not list(Path().glob(".two*"))


def test_an_area_that_covers_most_of_a_raster_takes_it_whole(files):
    with serve_stac([optical(files)], files) as server:
        (item,) = listing_of(server, "one.json").values()
        large = GRID.model_copy(update={"left": LEFT, "top": TOP, "width": 1200, "height": 1000})
        download_scene(Path("one.zip"), item, api(server), ("B02",), large)
    with zipfile.ZipFile("one.zip") as archive:
        assert archive.read("blue.tif") == (files / "blue.tif").read_bytes()


def test_an_area_beside_the_raster_is_refused(files):
    with serve_stac([optical(files)], files) as server:
        (item,) = listing_of(server, "one.json").values()
        beside = GRID.model_copy(update={"left": GRID.left + 200_000})
        with pytest.raises(CoverageError, match=r"/files/blue\.tif does not meet the area"):
            download_scene(Path("one.zip"), item, api(server), ("B02",), beside)


def test_signed_files_take_a_token_of_their_collection_that_is_told_nowhere(files, caplog):
    caplog.set_level(logging.INFO)  # of the jobs
    with serve_stac([optical(files)], files, signed=True) as server:
        (item,) = listing_of(server, "one.json").values()
        with pytest.raises(DownloadError, match="cannot be read"):
            download_scene(Path("one.zip"), item, api(server), WANTED, GRID)
        download_scene(Path("one.zip"), item, api(server, url=f"{server.url}/token"), WANTED, GRID)
        assert list(server.tokens) == ["sentinel-2-l2a 0"]
        (files / "scl.tif").unlink()
        with pytest.raises(DownloadError) as error:
            download_scene(Path("two.zip"), item, api(server, url=f"{server.url}/token"), WANTED, GRID)
    assert "secret" not in caplog.text + str(error.value)
    assert not any(b"secret" in path.read_bytes() for path in Path().rglob("*") if path.is_file())


def signed_access(server, files):
    item = optical(files)
    return stac_api.access_of(item, api(server, url=f"{server.url}/token")), f"{server.url}/files/blue.tif"


def test_a_token_that_is_refused_is_asked_for_again(files):
    with serve_stac([], files, signed=True) as server:
        access, url = signed_access(server, files)
        access.sign(url)
        server.tokens = {name: (token, 0) for name, (token, _) in server.tokens.items()}
        assert stac_api.copy_window(url, Path("a.tif"), GRID, access)
        assert len(server.tokens) == 2


def test_a_file_that_stays_refused_is_asked_for_twice(files, monkeypatch):
    monkeypatch.setattr("tests.servers.stac._is_signed", lambda *_: False)
    with serve_stac([], files, signed=True) as server:
        access, url = signed_access(server, files)
        with pytest.raises(DownloadError, match=r"/files/blue\.tif cannot be read .*: check its address") as error:
            stac_api.patiently(stac_api.copy_window, url, Path("a.tif"), GRID, access)
        assert (len(server.tokens), error.value.status) == (2, 403)


def test_a_raster_that_is_not_compressed_comes_whole(files):
    """GDAL does not look whether an answer is of the range that it asked for; packed bytes of another place show it."""
    with serve_stac([optical(files)], files) as server:
        (item,) = listing_of(server, "one.json").values()
        write_cog(files / "blue.tif", 10, 4, compress="none")
        item["assets"]["blue"]["file:size"] = (files / "blue.tif").stat().st_size
        download_scene(Path("one.zip"), item, api(server), ("B02",), GRID)
    with zipfile.ZipFile("one.zip") as archive:
        assert archive.read("blue.tif") == (files / "blue.tif").read_bytes()


def with_query(files, query):
    item = optical(files)
    item["assets"] = {"blue": {**item["assets"]["blue"], "href": f"blue.tif?{query}"}}
    item["assets"]["blue"]["alternate"] = {"other": {"href": f"s3://b/a.tif?{query}"}}
    return item


@pytest.mark.parametrize("query", ["X-Amz-Signature=hidden", "st=1&sig=hidden", "a=1&access_token=hidden"])
def test_signatures_do_not_come_into_the_list(files, query):
    with serve_stac([with_query(files, query)], files) as server:
        with pytest.raises(SettingError, match=r"blue\.tif of .* holds a signature or a password") as error:
            listing_of(server, "one.json")
        assert "hidden" not in str(error.value)
        assert not Path("one.json").exists()
        listing_of(server, "one.json", url=f"{server.url}/token")
    assert "hidden" not in Path("one.json").read_text()


def test_a_query_that_is_no_secret_stays(files):
    with serve_stac([with_query(files, "format=tiff")], files) as server:
        (item,) = listing_of(server, "one.json").values()
    assert item["assets"]["blue"]["href"].endswith("/files/blue.tif?format=tiff")


def test_a_broken_file_is_brought_again(files):
    item = optical(files)
    item["assets"] = {"product": {"href": "x.zip", "type": "application/zip"}}
    (files / "x.zip").write_text("try later")
    with serve_stac([item], files) as server:
        (found,) = listing_of(server, "one.json").values()
        with pytest.raises(ProductError, match="no whole zip"):
            download_scene(Path("one.zip"), found, api(server), ("B02",), GRID)
        with zipfile.ZipFile(files / "x.zip", "w") as archive:
            archive.writestr("a.SAFE/manifest.safe", "<x/>")
        download_scene(Path("one.zip"), found, api(server), ("B02",), GRID)
    assert Path("one.zip").read_bytes() == (files / "x.zip").read_bytes()


def test_a_broken_file_is_told_without_the_query_of_its_address(files):
    item = optical(files)
    item["assets"] = {"B02": {"href": "B02.jp2", "type": "image/jp2"}}
    (files / "B02.jp2").write_bytes(JP2_START)
    with serve_stac([item], files) as server:
        (found,) = listing_of(server, "one.json").values()
        found["assets"]["B02"]["href"] += "?sig=hidden"
        with pytest.raises(ProductError, match=r"/files/B02\.jp2 is cut off: no pixels in 12 bytes") as error:
            download_scene(Path("one.zip"), found, api(server), ("B02",), GRID)
    assert "hidden" not in str(error.value)


def test_what_a_transfer_left_is_not_packed(files):
    (files / "a.SAFE" / ".tmp").mkdir(parents=True)
    for name in ("manifest.safe", ".manifest.safe.part.json", ".tmp/x"):
        (files / "a.SAFE" / name).write_text(name)
    stac.pack_safe(files / "a.SAFE", Path("one.zip"))
    with zipfile.ZipFile("one.zip") as archive:
        assert archive.namelist() == ["a.SAFE/manifest.safe"]


def test_a_token_is_asked_for_again_before_it_ends(files):
    with serve_stac([], files, life_s=100) as server:
        signer = stac_api.Signer(f"{server.url}/token", "sentinel-2-l2a", loopback=True)
        assert signer.sign(f"{server.url}/a.tif") == f"{server.url}/a.tif?sig=secret-sentinel-2-l2a-0"
        assert signer.sign(f"{server.url}/a.tif").endswith("-1")
        server.life_s = 3600
        assert {signer.sign(f"{server.url}/a.tif")[-1] for _ in range(3)} == {"2"}
        signer.forget()
        assert signer.sign(f"{server.url}/a.tif").endswith("-3")


@pytest.mark.parametrize("url", ["https://example.org/a.tif", "https://a.blob.core.windows.net/b.tif?sig=own"])
def test_other_hosts_and_signed_addresses_stay_as_they_are(url):
    signer = stac_api.Signer("https://127.0.0.1:1/token", "x")
    assert signer.sign(url) == url


def test_files_beside_the_cloud_optimised_are_taken_whole(files):
    item = optical(files)
    jp2 = files / "B02.jp2"
    with rasterio.open(
        jp2, "w", driver="JP2OpenJPEG", width=64, height=64, count=1, dtype="uint16", crs=CRS, QUALITY="100"
    ) as raster:
        raster.write(np.arange(4096, dtype=np.uint16).reshape(1, 64, 64))
    (files / "MTD.xml").write_text("<a/>")
    item["assets"] = {
        "B02_10m": {"href": "B02.jp2", "type": "image/jp2", "file:size": jp2.stat().st_size},
        "B02_20m": {"href": "gone.jp2", "type": "image/jp2"},
        "product-metadata": {"href": "MTD.xml", "type": "application/xml"},
    }
    with serve_stac([item], files) as server:
        (found,) = listing_of(server, "one.json").values()
        assert stac.costs(found, api(server), ("B02",), GRID).size_bytes is None
        download_scene(Path("one.zip"), found, api(server), ("B02",), GRID)
    with zipfile.ZipFile("one.zip") as archive:
        assert sorted(archive.namelist()) == ["B02_10m.jp2", "item.json", "product-metadata.xml"]
        assert archive.read("B02_10m.jp2") == jp2.read_bytes()


def test_costs_are_those_of_the_bands(files):
    with serve_stac([optical(files)], files) as server:
        (item,) = listing_of(server, "one.json").values()
    size = (files / "blue.tif").stat().st_size + (files / "scl.tif").stat().st_size
    assert stac.costs(item, api(server), ("B02", "SCL"), GRID) == (size, 0)


RADAR = "S1A_IW_GRDH_1SDV_20210810T053000_20210810T053025_039000_049000_ABCD"


def pieces(files):
    """A Sentinel-1 product whose files are assets of their own."""
    home = files / "GRD" / RADAR
    names = {
        "safe-manifest": "manifest.safe",
        "schema-product-vv": "annotation/iw-vv.xml",
        "schema-product-vh": "annotation/iw-vh.xml",
        "schema-calibration-vv": "annotation/calibration/calibration-iw-vv.xml",
        "schema-noise-vv": "annotation/calibration/noise-iw-vv.xml",
        "vv": "measurement/iw-vv.tiff",
        "vh": "measurement/iw-vh.tiff",
    }
    for name in names.values():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    with rasterio.open(home / names["vv"], "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8") as raster:
        raster.write(np.ones((1, 9, 9), np.uint8))
    item = optical(files)
    kinds = {"vv": "image/tiff; application=geotiff; profile=cloud-optimized", "vh": "image/tiff"}
    item["assets"] = {
        key: {"href": f"GRD/{RADAR}/{name}", "type": kinds.get(key, "application/xml")} for key, name in names.items()
    }
    item["assets"]["thumbnail"] = {"href": f"GRD/{RADAR}/quick-look.png", "type": "image/png"}
    radar = {"datetime": "2021-08-10T05:30:00Z", "platform": "sentinel-1a"}
    return {**item, "id": RADAR, "collection": "sentinel-1-grd", "properties": radar}


def test_a_product_in_pieces_becomes_a_safe_again(files):
    with serve_stac([pieces(files)], files) as server:
        (item,) = stac.search(Query(AREA, AUGUST, ("sentinel1",)), api(server))
        download_scene(Path("one.zip"), item, api(server), ("VV",), GRID)
    with zipfile.ZipFile("one.zip") as archive:
        names = archive.namelist()
        assert archive.read(f"{RADAR}.SAFE/manifest.safe") == b"manifest.safe"
    assert f"{RADAR}.SAFE/measurement/iw-vv.tiff" in names and len(names) == 5
    assert f"{RADAR}.SAFE/annotation/calibration/noise-iw-vv.xml" in names


def test_a_piece_that_lies_elsewhere_is_refused(files):
    item = pieces(files)
    item["assets"]["schema-noise-vv"]["href"] = "MTD.xml"
    (files / "MTD.xml").write_text("<a/>")
    with serve_stac([item], files) as server:
        (found,) = stac.search(Query(AREA, AUGUST, ("sentinel1",)), api(server))
        with pytest.raises(ProductError, match="'schema-noise-vv' lies outside"):
            stac.fetch(found, Path("one.zip"), api(server), ("VV",), GRID)


@pytest.mark.parametrize(
    ("url", "kind", "suffix"),
    [
        ("https://a/b/B02.TIF", "image/tiff", ".tif"),
        ("https://a/Nodes(B02.jp2)/$value", "image/jp2", ".jp2"),
        ("https://a/$value", None, ""),
    ],
)
def test_suffixes_of_files(url, kind, suffix):
    assert stac_api._suffix(url, {"type": kind}) == suffix


def test_alternatives_over_http_are_taken_and_buckets_refused(files):
    asset = {"href": "s3://bucket/a.tif"}
    assert stac_api.address({**asset, "alternate": {"https": {"href": "https://a/b.tif"}}}) == "https://a/b.tif"
    item = {**optical(files), "assets": {"blue": asset}}
    provider = Provider(name="stac", catalog="https://example.org/v1")
    refused = r"asset 'blue' lies at s3://bucket/a\.tif, which provider stac cannot read"
    with pytest.raises(SettingError, match=refused):
        stac.fetch(item, Path("one.zip"), provider, ("B02",), GRID)


def test_a_bucket_is_refused_by_the_search_unless_another_file_can_be_read(files, monkeypatch):
    """As of Sentinel-1 at Earth Search, where the reader of the bucket pays."""
    blue = {"href": "s3://bucket/a.tif", "type": "image/tiff"}
    green = {"href": "https://example.org/b.tif", "type": "image/tiff"}
    item = optical(files)
    provider, query = Provider(name="stac", catalog="https://example.org/v1"), Query(AREA, AUGUST, ("sentinel2",))
    monkeypatch.setattr(stac_api, "search", lambda *_: [item])
    item["assets"] = {"blue": blue, "green": green}
    assert list(stac.search(query, provider)[0]["assets"]) == ["blue", "green"]
    item["assets"] = {"blue": blue}
    with pytest.raises(SettingError, match=rf"item {NAME}: its asset 'blue' lies at s3://bucket/a\.tif"):
        stac.search(query, provider)


@pytest.mark.parametrize("collections", [(), ("sentinel-1-grd",), ("sentinel-1-rtc", "sentinel-2-l2a")])
@pytest.mark.parametrize("catalog", ["https://planetarycomputer.microsoft.com/api/stac/v1", "https://example.org/v1"])
def test_a_collection_for_accounts_alone_is_not_searched_without_a_key(monkeypatch, catalog, collections):
    provider = Provider(name="stac", catalog=catalog, collections=collections)
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "secret-key")
    stac.check_credentials(provider)
    monkeypatch.delenv("PC_SDK_SUBSCRIPTION_KEY")
    if "planetary" in catalog and "sentinel-1-rtc" in collections:
        with pytest.raises(SettingError, match=r"PC_SDK_SUBSCRIPTION_KEY is not set, but .* gives sentinel-1-rtc to"):
            stac.check_credentials(provider)
    else:
        stac.check_credentials(provider)

"""Scenes of a static STAC catalogue on disk: SAFE products, or analysis-ready rasters as assets.

The catalogue is an ItemCollection (a FeatureCollection of items), one item, or a catalog.json or collection.json with
links to children and items (STAC specification 1.0.0 and 1.1.0, best practices: 'Static Catalogs').
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from covermap.errors import ProductError, SettingError
from covermap.files import whole
from covermap.scenes import Item, check_item, meets, moment, sensor_of

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

    from covermap.settings import Period

log = logging.getLogger(__name__)

RASTER_TYPES = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
PICTURE_ROLES = {"thumbnail", "overview", "visual"}
METADATA_KEYS = {"product-metadata", "product_metadata"}  # of Sentinel-2 items: tells offsets beside the rasters
UNUSED_KEYS = {"aot", "wvp", "visual", "preview", "thumbnail", "overview"}
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold: the same files give the same bytes


def search(area: BaseGeometry, period: Period, sensors: Sequence[str], catalog: Path | None) -> list[Item]:
    """Items of ``catalog`` that meet ``area`` (lon/lat) on a day of ``period`` (UTC, last day included), sorted by id.

    The hrefs of their assets become paths relative to the working directory where they lie below it, absolute ones
    elsewhere. Items of other sensors and levels are left out.

    Raises
    ------
    SettingError
        No catalogue, or one that is not on disk.
    ProductError
        A file is no STAC, or an item lacks an id, a footprint, a time or a file.
    """
    if catalog is None:
        raise SettingError("provider.catalog is not set: give an ItemCollection or a static STAC catalogue on disk")
    found: dict[str, Item] = {}
    others = 0
    for item, source in read_items(catalog):
        check_item(item, source)
        try:
            sensor = sensor_of(item)
        except ProductError as error:
            log.debug("%s", error)
            others += 1
            continue
        if sensor in sensors and period.start <= moment(item).date() <= period.end and meets(item, area):
            item = _localised(item, source)
            if found.setdefault(item["id"], item) != item:
                raise ProductError(f"{catalog} has two items {item['id']} that differ: keep one of them")
    log.info("%s: %d scenes, %d items of other sensors or levels left out", catalog, len(found), others)
    return [found[name] for name in sorted(found)]


def read_items(catalog: Path) -> Iterator[tuple[Item, Path]]:
    """Every item of a static catalogue, with the file that it stands in."""
    waiting, seen = [_local(str(catalog), Path(), f"catalogue {catalog}")], set()
    while waiting:
        path = waiting.pop(0)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        content = _read_json(path)
        kind = content.get("type")
        if kind == "Feature":
            yield content, path
        elif kind == "FeatureCollection":
            yield from ((item, path) for item in _objects(content, "features", path))
        elif kind in {"Catalog", "Collection"}:
            links = [link for link in _objects(content, "links", path) if link.get("rel") in {"child", "item"}]
            waiting += [_local(str(link.get("href")), path.parent, f"catalogue {path}") for link in links]
        else:
            raise ProductError(f"{path} is no STAC (type {kind!r}): expected an ItemCollection, Catalog or Collection")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProductError(f"catalogue {path} cannot be read ({error.strerror}): check provider.catalog") from None
    except ValueError as error:
        raise ProductError(f"{path} is no JSON ({error}): expected a STAC ItemCollection or catalogue") from None
    if not isinstance(content, dict):
        raise ProductError(f"{path} is no STAC ({type(content).__name__}): expected an ItemCollection or catalogue")
    return content


def _objects(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    objects = content.get(key)
    if not isinstance(objects, list) or not all(isinstance(entry, dict) for entry in objects):
        raise ProductError(f"{path} is no STAC: expected a list of objects under {key!r}")
    return objects


def _is_remote(href: str) -> bool:
    return re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/|/vsi", href) is not None  # one slash: a Path loses the other


def _local(href: str, home: Path, what: str) -> Path:
    """Path of ``href``, which stands in a file of the folder ``home``."""
    if _is_remote(href):
        raise SettingError(f"{what} points to {href}: provider stac reads files on disk, so download it first")
    return home / (unquote(urlsplit(href).path) if href.startswith("file:") else href)


def _localised(item: Item, source: Path) -> Item:
    """The item with the assets that covermap reads, as paths, and without links, which lead out of the catalogue."""
    what = f"item {item['id']} of {source}"
    assets = _wanted_assets(item)
    if not assets:
        raise ProductError(f"{what} has neither a product nor a raster asset: expected a SAFE, a zip, GeoTIFF or JP2")
    on_disk = {key: asset for key, asset in assets.items() if not _is_remote(asset["href"])}
    if not set(on_disk) - METADATA_KEYS:
        on_disk = assets
    paths = {key: _local(asset["href"], source.parent, what) for key, asset in on_disk.items()}
    for key, path in paths.items():
        if not path.exists():
            raise ProductError(f"{what}: its asset {key!r} {path} does not exist: mend the href or bring the file")
    kept = {key: {**asset, "href": _from_root(paths[key])} for key, asset in on_disk.items()}
    return {**{key: value for key, value in item.items() if key != "links"}, "assets": kept, "links": []}


def _from_root(path: Path) -> str:
    absolute, root = path.resolve(), Path.cwd().resolve()
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.as_posix()


def _wanted_assets(item: Item) -> dict[str, dict[str, Any]]:
    """The SAFE alone where there is one, else all rasters but pictures and layers that no step reads.

    Rasters keep the metadata of their product, where the item has them.
    """
    assets = {key: asset for key, asset in item["assets"].items() if isinstance(asset.get("href"), str)}
    products = {key: asset for key, asset in assets.items() if _is_product(key, asset)}
    if products:
        key = min(products)
        return {key: products[key]}
    rasters = {key: asset for key, asset in assets.items() if _is_raster(key, asset)}
    return rasters | {key: assets[key] for key in sorted(METADATA_KEYS & set(assets)) if rasters}


def _is_product(key: str, asset: dict[str, Any]) -> bool:
    suffix = PurePosixPath(asset["href"].rstrip("/")).suffix.lower()
    return suffix == ".safe" or (suffix == ".zip" and key.lower() == "product")


def _is_raster(key: str, asset: dict[str, Any]) -> bool:
    if key.lower() in UNUSED_KEYS or PICTURE_ROLES & set(asset.get("roles") or ()):
        return False
    suffix = PurePosixPath(asset["href"]).suffix.lower()
    return suffix in RASTER_SUFFIXES or (suffix != ".vrt" and str(asset.get("type")).startswith(RASTER_TYPES))


def sources(item: Item) -> list[Path]:
    """Files and folders on disk that ``fetch`` reads; none where the item is remote."""
    hrefs = [asset["href"] for asset in _wanted_assets(item).values()]
    return [_local(href, Path(), f"item {item['id']}") for href in hrefs if not _is_remote(href)]


def fetch(item: Item, product: Path) -> None:
    """The item's files as one zip at ``product``, whole or absent; stored, and of the same bytes for the same files.

    A SAFE keeps its top folder; a zipped SAFE is copied as it is; raster assets stand at the top beside ``item.json``,
    whose hrefs are their names in the zip.

    Raises
    ------
    ProductError
        A file is missing, or a zip is broken or has members that would leave its folder.
    """
    assets = _wanted_assets(item)
    if not assets:
        raise ProductError(f"item {item['id']} has neither a product nor a raster asset: search its scenes again")
    paths = {key: _local(asset["href"], Path(), f"item {item['id']}") for key, asset in assets.items()}
    for key, path in paths.items():
        if not path.exists():
            raise ProductError(f"item {item['id']}: its asset {key!r} {path} does not exist: search its scenes again")
    with whole(product) as part:
        _write(item, assets, paths, part)
    log.info("%s: %.1f MB from %s", product, product.stat().st_size / 1e6, ", ".join(map(str, paths.values())))


def _write(item: Item, assets: dict[str, dict[str, Any]], paths: dict[str, Path], part: Path) -> None:
    first = next(iter(paths.values()))
    if first.is_dir():
        _pack_safe(first, part)
    elif _is_product(next(iter(assets)), next(iter(assets.values()))):
        _check_members(first)
        shutil.copyfile(first, part)
    else:
        _pack_assets(item, assets, paths, part)


def _pack_safe(folder: Path, part: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.name in {"manifest.safe", "MTD_MSIL2A.xml", "MTD_MSIL1C.xml"} for path in files):
        raise ProductError(f"{folder} is no SAFE product: expected a manifest.safe in it, so bring the whole product")
    with zipfile.ZipFile(part, "w") as archive:
        for path in files:
            _store(archive, f"{folder.name}/{path.relative_to(folder).as_posix()}", path)


def _pack_assets(item: Item, assets: dict[str, dict[str, Any]], paths: dict[str, Path], part: Path) -> None:
    names = {key: re.sub(r"[^\w.-]", "_", key) + path.suffix for key, path in paths.items()}
    if len(set(names.values())) < len(names):
        raise ProductError(f"item {item['id']} has assets of one name in {sorted(names)}: rename one of them")
    inside = {key: {**asset, "href": names[key]} for key, asset in assets.items()}
    with zipfile.ZipFile(part, "w") as archive:
        text = json.dumps({**item, "assets": inside}, indent=1, sort_keys=True) + "\n"
        archive.writestr(zipfile.ZipInfo("item.json", FIXED_TIME), text)
        for key in sorted(paths):
            _store(archive, names[key], paths[key])


def _store(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    member = zipfile.ZipInfo(name, FIXED_TIME)
    member.file_size = path.stat().st_size  # tells the writer in time whether it must use 64-bit sizes
    with path.open("rb") as source, archive.open(member, "w") as target:
        shutil.copyfileobj(source, target, 2**22)


def _check_members(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ProductError(f"{path} is no whole zip ({error}): download it again") from None
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or not parts or parts[0] == "/" or stat.S_ISLNK(member.external_attr >> 16):
            raise ProductError(f"{path} has the unsafe member {member.filename!r}: do not use this file")
    tops = {PurePosixPath(member.filename).parts[0] for member in members}
    if len(tops) != 1 or not next(iter(tops)).endswith(".SAFE"):
        raise ProductError(f"{path} holds {sorted(tops)[:3]}: expected one folder whose name ends in .SAFE")

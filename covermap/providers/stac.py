"""Scenes of a STAC catalogue on disk, or of a STAC API: SAFE products, or analysis-ready rasters as assets.

A catalogue on disk is an ItemCollection (a FeatureCollection of items), one item, or a catalog.json or collection.json
with links to children and items (STAC specification 1.0.0 and 1.1.0, best practices: 'Static Catalogs').
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from covermap.archives import safe_members
from covermap.errors import ProductError, SettingError
from covermap.files import unfinished, whole
from covermap.providers import Costs, Query, told_bytes
from covermap.scenes import Item, check_item, meets, moment, sensor_of

if TYPE_CHECKING:
    from covermap.area_settings import Provider
    from covermap.grid import Grid

Assets = Mapping[str, dict[str, Any]]

log = logging.getLogger(__name__)

RASTER_TYPES = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff")
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
PICTURE_ROLES = {"thumbnail", "overview", "visual"}
METADATA_KEYS = {"product-metadata", "product_metadata"}  # of Sentinel-2 items: tells offsets beside the rasters
MANIFEST = "safe-manifest"  # of a Sentinel-1 product whose files are assets of their own (stactools-sentinel1)
PIECES = ("schema-product-", "schema-calibration-", "schema-noise-")
UNUSED_KEYS = {"aot", "wvp", "visual", "preview", "thumbnail", "overview"}
FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold: the same files give the same bytes


def check_credentials(settings: Provider) -> None:
    """Refuse to begin without an account, where the files of an API need one; others are open."""
    if settings.is_api:
        from covermap.providers import stac_api

        stac_api.check_credentials(settings)


def search(query: Query, settings: Provider) -> list[Item]:
    """Items of a catalogue or API that meet the area (lon/lat) on a day of the period (UTC, last day included).

    They are sorted by id. Of a catalogue on disk the hrefs of their assets become paths relative to the working
    directory where they lie below it, absolute ones elsewhere. Items of other sensors are left out.

    Raises
    ------
    SettingError
        No catalogue, one that is not on disk, or an item of an API whose files all lie where they cannot be read.
    ProductError
        A file is no STAC, or an item lacks an id, a footprint, a time or a file.
    DownloadError
        The API does not answer.
    """
    if settings.is_api:
        from covermap.providers import stac_api

        api = str(settings.catalog)
        items = ((item, api) for item in stac_api.search(query, settings))
        return _found(items, query, api, _remote)
    if settings.catalog is None:
        raise SettingError("provider.catalog is not set: give an ItemCollection or a static STAC catalogue on disk")
    return search_catalog(query, Path(settings.catalog))


def search_catalog(query: Query, catalog: Path) -> list[Item]:
    """Items of a static catalogue on disk; see :func:`search`."""
    return _found(read_items(catalog), query, str(catalog), _localised)


def _found(
    items: Iterable[tuple[Item, Any]], query: Query, catalog: str, with_assets: Callable[[Item, Any], Item]
) -> list[Item]:
    """Items that answer a query, by id, with the assets that are read."""
    found: dict[str, Item] = {}
    others = 0
    for item, source in items:
        check_item(item, source)
        try:
            sensor = sensor_of(item)
        except ProductError as error:
            log.debug("%s", error)
            others += 1
            continue
        in_time = query.period.start <= moment(item).date() <= query.period.end
        if sensor in query.sensors and in_time and meets(item, query.area):
            item = with_assets(item, source)
            if found.setdefault(item["id"], item) != item:
                raise ProductError(f"{catalog} has two items {item['id']} that differ: keep one of them")
    log.info("%s: %d scenes, %d items of other sensors or levels left out", catalog, len(found), others)
    return [found[name] for name in sorted(found)]


def _remote(item: Item, source: str) -> Item:
    """The item of an API with the assets that a fetch could want, one of which at least can be had."""
    from covermap.providers import stac_api

    assets = _wanted_assets(item)
    if not assets:
        raise ProductError(
            f"item {item['id']} of {source} has neither a product nor a raster asset: choose other collections"
        )
    stac_api.check_reachable(item, assets)
    return {**item, "assets": assets}


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


def shown(href: str) -> str:
    """What may be told of an href: without its query, which may be a signature, and without a user and a password."""
    return re.sub(r"//[^/]*@", "//", re.split("[?#]", href)[0]) if _is_remote(href) else href


def _local(href: str, home: Path, what: str) -> Path:
    """Path of ``href``, which stands in a file of the folder ``home``."""
    if _is_remote(href):
        raise SettingError(f"{what} points to {shown(href)}: provider stac reads files on disk, so download it first")
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
    products = {key: asset for key, asset in assets.items() if _is_product(key, asset) and key != MANIFEST}
    if products:
        key = min(products)
        return {key: products[key]}
    rasters = {key: asset for key, asset in assets.items() if _is_raster(key, asset)}
    if MANIFEST in assets:  # a SAFE in pieces
        return rasters | {key: asset for key, asset in assets.items() if key == MANIFEST or key.startswith(PIECES)}
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


def costs(item: Item, settings: Provider, bands: Sequence[str], grid: Grid) -> Costs:
    """Nothing from disk; from an API what the files of the bands have, or would have at most."""
    if sources(item):
        return Costs(0)
    return Costs(told_bytes({"assets": _of_bands(item, bands)}))


def fetch(item: Item, product: Path, settings: Provider, bands: Sequence[str], grid: Grid) -> None:
    """The item's files as one zip at ``product``, whole or absent; stored, and of the same bytes for the same files.

    A SAFE keeps its top folder; a zipped SAFE is copied as it is; raster assets stand at the top beside ``item.json``,
    whose hrefs are their names in the zip. Of an item on disk all assets are taken, of a remote one those of ``bands``
    and of rasters that can be read in part the part that ``grid`` needs.

    Raises
    ------
    ProductError
        A file is missing, or a zip is broken or has members that would leave its folder.
    DownloadError
        A server does not deliver.
    """
    assets = _wanted_assets(item)
    if not assets:
        raise ProductError(f"item {item['id']} has neither a product nor a raster asset: search its scenes again")
    if settings.is_api and all(_is_remote(asset["href"]) for asset in assets.values()):
        _fetch_remote(item, product, settings, bands, grid)
    else:
        _fetch_local(item, product, assets)
    log.info("%s: %.1f MB", product, product.stat().st_size / 1e6)


def _fetch_local(item: Item, product: Path, assets: Assets) -> None:
    paths = {key: _local(asset["href"], Path(), f"item {item['id']}") for key, asset in assets.items()}
    for key, path in paths.items():
        if not path.exists():
            raise ProductError(f"item {item['id']}: its asset {key!r} {path} does not exist: search its scenes again")
    with whole(product) as part:
        _write(item, assets, paths, part)
    log.info("%s comes from %s", product, ", ".join(map(str, paths.values())))


def _fetch_remote(item: Item, product: Path, settings: Provider, bands: Sequence[str], grid: Grid) -> None:
    from covermap.providers import stac_api

    assets = _of_bands(item, bands)
    place = {"grid": grid.model_dump(), "files": sorted(asset["href"] for asset in assets.values())}
    with unfinished(product, item=item["id"], **place) as folder:
        paths = stac_api.fetch_assets(item, assets, folder, settings, grid)
        try:
            with whole(product) as part:
                if MANIFEST in assets:
                    _pack_pieces(item, assets, paths, part)
                else:
                    _write(item, stac_api.told_inside(assets, paths), paths, part)
        except ProductError:
            for path in paths.values():  # a retry would find the same, whatever the server has by then
                path.unlink(missing_ok=True)
            raise


def _of_bands(item: Item, bands: Sequence[str]) -> Assets:
    """Assets that bands or polarisations are read from, each in its finest resolution, and what describes them."""
    from covermap.sentinel2.item import band_of

    assets = _wanted_assets(item)
    if any(_is_product(key, asset) for key, asset in assets.items()) and MANIFEST not in assets:
        return assets
    if sensor_of(item) == "sentinel1":
        ends = tuple(band.lower() for band in bands)
        return {key: asset for key, asset in assets.items() if key == MANIFEST or key.lower().endswith(ends)}
    chosen: dict[str, str] = {}
    for key in sorted(assets, key=lambda key: (float(assets[key].get("gsd") or _told_pixel(key)), key)):
        if (band := band_of(key)) in bands:
            chosen.setdefault(str(band), key)
    if not chosen:  # rasters of several bands
        return assets
    hosts = {urlsplit(assets[key]["href"]).hostname for key in chosen.values()}
    described = [key for key in METADATA_KEYS & set(assets) if urlsplit(assets[key]["href"]).hostname in hosts]
    return {key: assets[key] for key in sorted({*chosen.values(), *described})}


def _told_pixel(key: str) -> float:
    """Pixel that an asset key tells, as of ``B02_10m`` [m]; 0: none."""
    told = re.search(r"[_-](\d+)m$", key, flags=re.IGNORECASE)
    return float(told[1]) if told else 0.0


def _write(item: Item, assets: Assets, paths: Mapping[str, Path], part: Path) -> None:
    first = next(iter(paths.values()))
    if first.is_dir():
        pack_safe(first, part)
    elif _is_product(next(iter(assets)), next(iter(assets.values()))):
        _must_be_one_safe(first)
        shutil.copyfile(first, part)
    else:
        _pack_assets(item, assets, paths, part)


def pack_safe(folder: Path, part: Path) -> None:
    """Write the files of a SAFE's ``folder`` to the zip ``part``, stored, with the folder on top.

    Names that begin with a dot are left out: a SAFE has none, but a transfer that was killed may have left some.

    Raises
    ------
    ProductError
        It has neither manifest nor metadata.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    if not any(path.name in {"manifest.safe", "MTD_MSIL2A.xml", "MTD_MSIL1C.xml"} for path in files):
        raise ProductError(f"{folder} is no SAFE product: expected a manifest.safe in it, so bring the whole product")
    with zipfile.ZipFile(part, "w") as archive:
        for path in files:
            _store(archive, f"{folder.name}/{path.relative_to(folder).as_posix()}", path)


def _is_hidden(path: Path) -> bool:
    return any(name.startswith(".") for name in path.parts)


def _pack_pieces(item: Item, assets: Assets, paths: Mapping[str, Path], part: Path) -> None:
    """A SAFE whose files are assets of their own, as beside its manifest; hrefs that lead elsewhere are refused."""
    home = PurePosixPath(urlsplit(assets[MANIFEST]["href"]).path).parent
    names = {key: PurePosixPath(unquote(urlsplit(asset["href"]).path)) for key, asset in assets.items()}
    with zipfile.ZipFile(part, "w") as archive:
        for key in sorted(paths):
            if not names[key].is_relative_to(home) or ".." in names[key].parts:
                raise ProductError(f"item {item['id']}: its asset {key!r} lies outside {home}: do not use this item")
            _store(archive, f"{item['id']}.SAFE/{names[key].relative_to(home)}", paths[key])


def _pack_assets(item: Item, assets: Assets, paths: Mapping[str, Path], part: Path) -> None:
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


def _must_be_one_safe(path: Path) -> None:
    tops = {PurePosixPath(member.filename).parts[0] for member in safe_members(path, "download it again")}
    if len(tops) != 1 or not next(iter(tops)).endswith(".SAFE"):
        raise ProductError(f"{path} holds {sorted(tops)[:3]}: expected one folder whose name ends in .SAFE")

"""Which orbit file a scene gets, told from their names, and the step ``download_orbit``."""

from __future__ import annotations

import logging
import re
from datetime import datetime, timedelta
from pathlib import Path

from covermap.errors import CoverageError, DownloadError, SettingError

log = logging.getLogger(__name__)

KINDS = ("RESORB", "POEORB")  # the better one last
TIME = "%Y%m%dT%H%M%S"
MOST_PAGES = 200  # of a list, a thousand files each; in twenty years a satellite gets 110 of restituted orbits
MARGIN = timedelta(seconds=60)  # the interpolation needs state vectors before and behind the image

_SCENE = re.compile(r"(S1[A-Z])_\w{2}_\w{4}_\w{4}_(\d{8}T\d{6})_(\d{8}T\d{6})(?:_|$)")
_FILE = re.compile(r"(S1[A-Z])_OPER_AUX_([A-Z]+ORB)_OPOD_(\d{8}T\d{6})_V(\d{8}T\d{6})_(\d{8}T\d{6})\.EOF")


def choose_orbit(folder: Path, scene: str) -> Path | None:
    """The best orbit file for a scene: precise before restituted, then the latest made.

    Parameters
    ----------
    folder : with ``.EOF`` files, also in folders below it.
    scene : name of a product, ``S1A_IW_GRDH_1SDV_<start>_<stop>_...``.

    Returns
    -------
    A file of the same satellite whose validity covers the scene and 60 s on either side; None where there is none or
    the scene has no such name.

    Raises
    ------
    SettingError
        The folder does not exist.
    """
    if not folder.is_dir():
        raise SettingError(f"sentinel1.orbits is {folder}, which is no folder: expected a folder with .EOF files")
    best = max(((rank, path) for path in folder.rglob("*.EOF") if (rank := _rank(path.name, scene))), default=None)
    return best[1] if best else None


def has_orbits(scene: str) -> bool:
    """Whether a name tells satellite and time, so that orbit files can be told to be of the scene."""
    return _seen(scene) is not None


def _seen(scene: str) -> tuple[str, datetime, datetime] | None:
    """Satellite, start and end of a scene by its name."""
    named = _SCENE.match(scene)
    seen = _interval(named[2], named[3]) if named else None
    return (named[1], *seen) if named and seen else None


def _rank(name: str, scene: str) -> tuple[int, str] | None:
    """What makes one orbit file of a scene better than another; None: it is of another satellite or time."""
    seen, orbit = _seen(scene), _FILE.fullmatch(name)
    valid = _interval(orbit[4], orbit[5]) if orbit else None
    if seen is None or orbit is None or valid is None or orbit[1] != seen[0] or orbit[2] not in KINDS:
        return None
    covers = valid[0] <= seen[1] - MARGIN and seen[2] + MARGIN <= valid[1]
    return (KINDS.index(orbit[2]), orbit[3]) if covers else None


def download_orbit(orbit: Path, scene: str, url: str) -> None:
    """The best orbit file for a scene from a public bucket: precise, else restituted; of these the last made.

    Parameters
    ----------
    orbit : output, the file as it is on the server.
    scene : name of a product, ``S1A_IW_GRDH_1SDV_<start>_<stop>_...``.
    url : a bucket that lists itself as S3 does, with folders ``AUX_POEORB`` and ``AUX_RESORB``.

    Raises
    ------
    DownloadError
        The bucket cannot be listed, or the file cannot be had whole or is no orbit file.
    CoverageError
        There is no file yet, or none of this scene.

    Notes
    -----
    Precise orbits come about 20 days behind the scene, restituted ones within hours. Listing: Amazon S3 API Reference,
    ListObjectsV2; the mirror: https://registry.opendata.aws/s1-orbits.
    """
    from covermap.transfer import fetch_file

    seen = _seen(scene)
    if seen is None:
        raise CoverageError(f"scene {scene} has no name of a product, which would tell its orbit: set sentinel1.orbits")
    for kind in reversed(KINDS):
        # a file is made behind what it is about, and its name begins with when it was made
        prefix = f"AUX_{kind}/{seen[0]}_OPER_AUX_{kind}_OPOD_"
        files = _listed(url, prefix, f"{prefix}{seen[2]:{TIME}}")
        ranked = [(rank, key) for key in files if (rank := _rank(key.rpartition("/")[2], scene))]
        if ranked:
            key = max(ranked)[1]
            size, etag = files[key]
            log.info("%s has the orbit file %s", scene, key)
            is_digest = re.fullmatch(r"[0-9a-f]{32}", etag)  # of files that were uploaded in parts it is none
            fetch_file(f"{url}/{key}", orbit, size=size, checksum=("md5", etag) if is_digest else None)
            _check_orbit(orbit, f"{url}/{key}")
            return
    raise CoverageError(
        f"{url} has no precise or restituted orbit file of {scene}: run again a day after the acquisition, or set "
        "sentinel1.orbits to a folder of orbit files, or remove it for the product's own state vectors"
    )


def _check_orbit(orbit: Path, url: str) -> None:
    """Remove what is no orbit file: of one that was uploaded in parts no checksum tells."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import parse

    try:
        is_orbit = parse(orbit, forbid_dtd=True).getroot().tag.endswith("Earth_Explorer_File")
    except (DefusedXmlException, ParseError, LookupError, ValueError):
        is_orbit = False
    if not is_orbit:
        orbit.unlink()
        raise DownloadError(
            f"{url} is no orbit file: expected XML with the root Earth_Explorer_File, so check mirrors.orbits or run "
            "again later"
        )


def _listed(url: str, prefix: str, after: str) -> dict[str, tuple[int, str]]:
    """Size and ETag of the files of a bucket by key: those that begin with ``prefix``, behind ``after`` in order."""
    from covermap.web import request

    found: dict[str, tuple[int, str]] = {}
    asked = {"list-type": "2", "prefix": prefix, "start-after": after}
    for _ in range(MOST_PAGES):
        files, token = _page(request("GET", f"{url}/", params=asked).content, url)
        found |= files
        if not token or token == asked.get("continuation-token"):
            return found
        asked["continuation-token"] = token
    raise DownloadError(f"{url} gives a list of files without end: check mirrors.orbits, or run later")


def _page(content: bytes, url: str) -> tuple[dict[str, tuple[int, str]], str | None]:
    """Files of one page of a list, and the token of the next one, where there is one."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(content, forbid_dtd=True)
        if not root.tag.endswith("ListBucketResult"):
            raise ValueError(root.tag)
        entries = [[entry.findtext("{*}" + name, "") for name in ("Key", "Size", "ETag")] for entry in root]
        files = {key: (int(size), etag.strip('"').lower()) for key, size, etag in entries if key}
    except (DefusedXmlException, ParseError, ValueError):
        raise DownloadError(f"{url} gives no list of files as S3 does: check mirrors.orbits, or run later") from None
    return files, root.findtext("{*}NextContinuationToken")


def _interval(first: str, last: str) -> tuple[datetime, datetime] | None:
    """Two times of a name; None where one is no time."""
    try:
        return datetime.strptime(first, TIME), datetime.strptime(last, TIME)
    except ValueError:
        return None

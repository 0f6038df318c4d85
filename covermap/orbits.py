"""Which orbit file a scene gets, told from their names."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path

from covermap.errors import SettingError

KINDS = ("RESORB", "POEORB")  # the better one last
TIME = "%Y%m%dT%H%M%S"
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
    named = _SCENE.match(scene)
    seen = _interval(named[2], named[3]) if named else None
    if named is None or seen is None:
        return None
    found = []
    for path in folder.rglob("*.EOF"):
        orbit = _FILE.fullmatch(path.name)
        valid = _interval(orbit[4], orbit[5]) if orbit else None
        if orbit is None or valid is None or orbit[1] != named[1] or orbit[2] not in KINDS:
            continue
        if valid[0] <= seen[0] - MARGIN and seen[1] + MARGIN <= valid[1]:
            found.append((KINDS.index(orbit[2]), orbit[3], path))
    return max(found)[2] if found else None


def _interval(first: str, last: str) -> tuple[datetime, datetime] | None:
    """Two times of a name; None where one is no time."""
    try:
        return datetime.strptime(first, TIME), datetime.strptime(last, TIME)
    except ValueError:
        return None

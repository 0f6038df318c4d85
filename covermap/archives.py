"""Zips that come from outside: nothing in one is believed before its list of members has been looked at."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from covermap.errors import ProductError

# ZipFile has no error of its own for what is packed oddly or encrypted, nor for numbers that lead out of the file
BAD_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
HARMLESS_BYTES = 2**28  # that anybody may unpack, however well they were packed
MOST_GROWTH = 100  # images grow less than three times, XML up to 30 times, a bomb a thousand times
LARGEST_BYTES = 2**35  # four times the largest product, a Sentinel-1 SLC of 8 GB
FIX = "do not use this file"


def safe_members(path: Path, fix: str = FIX) -> list[zipfile.ZipInfo]:
    """The files of a zip, folders left out, in the order of its list; one that could do harm is refused.

    Parameters
    ----------
    fix
        What to do where this is no whole zip.

    Raises
    ------
    ProductError
        It is no whole zip; a name leads out of the archive, can be written in another way, stands there twice or is
        the folder of another one, so that two readers may read two files; a member is a link or another special file;
        or it is a bomb: a member, or all together, would unpack to more than 100 times their packed bytes and 256 MiB,
        or to more than 32 GiB.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except BAD_ZIP as error:
        raise ProductError(f"{path} is no whole zip ({error}): {fix}") from None
    for member in members:
        if fault := _fault(member):
            raise ProductError(f"{path} has the unsafe member {member.filename!r}, {fault}: {FIX}")
    files = [member for member in members if not member.is_dir()]
    if len({member.filename for member in files}) < len(files):
        raise ProductError(f"{path} has two members of one name, so that its readers may differ: {FIX}")
    folders = {str(parent) for member in members for parent in PurePosixPath(member.filename).parents}
    folders |= {member.filename.rstrip("/") for member in members if member.is_dir()}
    if both := sorted(folders & {member.filename for member in files}):
        raise ProductError(f"{path} has the member {both[0]!r}, a file and a folder at once: {FIX}")
    unpacked = sum(member.file_size for member in files)
    if _explodes(unpacked, path.stat().st_size):
        raise ProductError(f"{path} would unpack to {unpacked} bytes, as a bomb does: {FIX}")
    return files


def _fault(member: zipfile.ZipInfo) -> str:
    """What is wrong with a member; empty: nothing."""
    name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
    is_plain = bool(name) and not set(name) & set("\\:") and "\0" not in member.orig_filename
    if not is_plain or name.startswith("/") or ".." in PurePosixPath(name).parts:
        return "whose name leads out of the archive"
    if set(name.removesuffix("/").split("/")) & {"", "."}:
        return "whose name can be written in another way"
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        return "a link or another special file"
    if _explodes(member.file_size, member.compress_size):
        return f"which would unpack to {member.file_size} bytes, as a bomb does"
    return ""


def _explodes(unpacked: int, packed: int) -> bool:
    return unpacked > LARGEST_BYTES or unpacked > max(HARMLESS_BYTES, MOST_GROWTH * packed)

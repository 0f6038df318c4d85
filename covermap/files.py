"""Files that appear whole or not at all, and folders for the finished parts of a long job."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """A name to write ``output`` under; it takes its own name when the block ends well, and is removed otherwise."""
    output.parent.mkdir(parents=True, exist_ok=True)
    named = re.compile(rf"\.{re.escape(output.name)}\.(?:draft\.)?(\d+){re.escape(output.suffix)}(?:[.-].+)?")
    for stale in output.parent.glob(f".{escape(output.name)}.*"):
        part_of = named.fullmatch(stale.name)
        if part_of and stale.is_file() and not _alive(int(part_of[1])):
            stale.unlink(missing_ok=True)
    part = output.with_name(f".{output.name}.{os.getpid()}{output.suffix}")
    try:
        yield part
        os.replace(part, output)
    finally:
        _remove(part)


def _remove(part: Path) -> None:
    """Remove a part and what a library put beside it, such as GDAL's overviews that are not in the file yet."""
    for file in (part, *part.parent.glob(f"{escape(part.name)}.*"), *part.parent.glob(f"{escape(part.name)}-*")):
        file.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether the process that a part is named after still runs; its part is its own."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def stamp(paths: Iterable[Path]) -> str:
    """Digest of the names, sizes and times [s] of files and of all files in folders: another when one is replaced."""
    lines = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                state = file.stat()
                lines.append(f"{file.relative_to(path.parent)} {state.st_size} {int(state.st_mtime)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """A file beside ``output`` that is gone when the block ends."""
    draft = output.with_name(f".{output.name}.draft.{os.getpid()}{output.suffix}")
    try:
        yield draft
    finally:
        _remove(draft)


@contextmanager
def unfinished(output: Path, **settings: object) -> Iterator[Path]:
    """Folder for the finished parts of ``output``, kept when the job dies and found again by its retry.

    It is named after the settings, so that parts made with others are never mixed in; those are removed.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    parts = output.with_name(f".{output.name}.{key}")
    for stale in output.parent.glob(f".{output.name}.*"):
        if stale != parts and stale.is_dir():
            shutil.rmtree(stale)
    parts.mkdir(parents=True, exist_ok=True)
    yield parts
    shutil.rmtree(parts)

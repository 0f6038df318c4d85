"""Files over HTTP, whole or not at all.

What a server may do wrong is a matter of course here: it refuses, hurries us off, cuts a body, drips, changes a file
between two parts of it, or sends something else. Each is tried again with growing pauses, from where it was; what can
not be mended ends in one sentence.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import blake3
import requests
from tqdm import tqdm

from covermap.errors import DownloadError
from covermap.files import whole
from covermap.patience import Passing, persist
from covermap.slots import alone
from covermap.web import NUMBER, Access, answer, is_chunked, number, place, raise_for, retry_after_s, steady

log = logging.getLogger(__name__)

PROGRESS_BYTES = 2**20  # an attempt that brings so much more than any before it begins the count anew
MISMATCHES = 3  # whole files with a wrong checksum, each of which costs the provider's quota
REPORT_S = 30.0  # between two lines of progress in the log
ALGORITHMS = {"md5", "sha1", "sha256", "sha512", "sha3_256", "blake3"}
OTHERS = {  # what logins, proxies and limits send in place of a file, and names of files that are such
    "a web page": (re.compile(r"text/html|application/xhtml\+xml"), (".htm", ".html", ".xhtml")),
    "JSON": (re.compile(r"application/([\w.-]+\+)?json"), (".json", ".geojson")),
}


def fetch_file(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    checksum: tuple[str, str] | None = None,
    access: Access | None = None,
) -> None:
    """The file at ``url`` under ``path``, whole or absent; an interrupted transfer goes on where it was.

    What has come stands in ``.NAME.part`` beside ``path``, with a note of what it is part of. It is gone on with where
    the server says that the file is still the same (RFC 9110, sections 13.1.5 and 14), or where a checksum will tell.
    Of several processes that want one file, one fetches it and the others wait for it. A file that is already there is
    kept where it has the checksum or, where none is given, the size; one that has not is removed before anything else.

    Parameters
    ----------
    size
        As the catalogue tells it [bytes].
    checksum
        Algorithm (md5, sha1, sha256, sha512, sha3_256, blake3; any case, ``SHA-256`` too) and hexadecimal digest.

    Raises
    ------
    DownloadError
        The file is not to be had, is not what the catalogue tells, or has no room here.
    """
    checksum = _normal(checksum)
    began = time.time_ns()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone(path) as waited:
            known = size is not None or checksum is not None
            if _is_there(path, size, checksum) if known else waited and _made_since(path, began):
                log.info("%s is there already", path)
                _drop_parts(path)  # of a process that was killed when it had just given the file its name
                return
            if known:
                path.unlink(missing_ok=True)
            _fetch(url, path, size, checksum, access)
    except OSError as error:  # those of the network are told apart where they arise
        reason = error.strerror or error
        raise DownloadError(
            f"{path} cannot be written ({reason}): mend that and run it again, which goes on where this one stopped"
        ) from None


def _normal(checksum: tuple[str, str] | None) -> tuple[str, str] | None:
    if checksum is None:
        return None
    algorithm = checksum[0].lower().replace("-", "")
    if algorithm not in ALGORITHMS:
        raise DownloadError(
            f"the checksum {checksum[0]!r} is not known: expected one of {', '.join(sorted(ALGORITHMS))}"
        )
    return algorithm, checksum[1].strip().lower()


def _digest(algorithm: str) -> Any:
    return blake3.blake3() if algorithm == "blake3" else hashlib.new(algorithm, usedforsecurity=False)


def _is_there(path: Path, size: int | None, checksum: tuple[str, str] | None) -> bool:
    """Whether the file is the one that the catalogue tells of."""
    if not path.is_file() or (size is not None and path.stat().st_size != size):
        return False
    if checksum is None:
        return True
    digest = _digest(checksum[0])
    _read_into(digest, path)
    return bool(digest.hexdigest() == checksum[1])


def _read_into(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the bytes of a file stand until it is whole, and the note of what they are part of."""
    return path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.json")


def _drop_parts(path: Path) -> None:
    for file in _beside(path):
        file.unlink(missing_ok=True)


def _made_since(path: Path, time_ns: int) -> bool:
    """Whether a file took its name since then, or up to a second before: the clock of files is a coarse one."""
    return path.is_file() and path.stat().st_ctime_ns >= time_ns - 10**9


def _fetch(url: str, path: Path, size: int | None, checksum: tuple[str, str] | None, access: Access | None) -> None:
    part = _Part(path, url, size, checksum)
    began, had = time.monotonic(), part.have

    def attempt() -> None:
        best = part.best
        try:
            _receive(url, part, access)
        except Passing as error:
            error.progress = part.best - best >= PROGRESS_BYTES
            raise

    persist(attempt)
    part.take()
    seconds = time.monotonic() - began
    rate = (part.have - had) / 1e6 / max(seconds, 1e-3)
    log.info("%s: %.1f MB in %.1f s (%.1f MB/s) from %s", path, part.have / 1e6, seconds, rate, place(url))


class _Part:
    """The bytes of a file that have come, their digest, and a note beside them of what they are part of."""

    def __init__(self, path: Path, url: str, size: int | None, checksum: tuple[str, str] | None) -> None:
        self.path, self.url, self.size, self.checksum = path, place(url), size, checksum
        self.file, self.note = _beside(path)
        self.have = self.best = self.mismatches = 0
        self.validator = ""
        self.digest = self._new_digest()
        self._find()

    def _new_digest(self) -> Any:
        return _digest(self.checksum[0]) if self.checksum else None

    def _find(self) -> None:
        """Go on with what an earlier process left, where the end of the transfer will tell whether it fits."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            have = self.file.stat().st_size
            same = note["url"] == self.url and note["validator"]
            checked = self.checksum is not None and note["checksum"] == list(self.checksum)
            validator = str(note["validator"]) if note["url"] == self.url else ""
        except (OSError, ValueError, KeyError, TypeError):
            return
        if (same or checked) and have:
            self.have = self.best = have
            self.validator = validator
            if self.digest:
                _read_into(self.digest, self.file)

    def restart(self, validator: str = "") -> None:
        """Nothing has come. The note is written when no byte is there, so that it never tells of another file's."""
        self.file.unlink(missing_ok=True)
        self.have, self.validator = 0, validator
        self.digest = self._new_digest()
        with whole(self.note) as note:
            note.write_text(json.dumps({"url": self.url, "validator": validator, "checksum": self.checksum}))

    def range(self) -> dict[str, str]:
        """Headers that ask for what is missing."""
        if not self.have:
            return {}
        if not (self.validator or self.checksum):
            self.restart()
            return {}
        condition = {"If-Range": self.validator} if self.validator else {}
        return {"Range": f"bytes={self.have}-", **condition}

    def write(self, chunks: Iterable[bytes], total: int | None) -> None:
        """Add what comes, up to the length of the whole file; where more comes, nothing of it is believed."""
        with self.file.open("ab" if self.have else "wb", buffering=0) as file:
            for chunk in chunks:
                if total is not None and self.have + len(chunk) > total:
                    self.restart()
                    raise Passing(f"{self.url} sends more than the {total} bytes that it should have")
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
                if self.digest:
                    self.digest.update(chunk)
                self.have += len(chunk)
                self.best = max(self.best, self.have)
            os.fsync(file.fileno())  # or a power cut could leave the name without its bytes

    def check(self) -> None:
        """Whether all has come, and is what the catalogue tells; what is not is removed."""
        fault = ""
        if self.size is not None and self.have != self.size:
            fault = f"has {self.have} bytes, not {self.size} as the catalogue tells"
        elif (on_disk := self.file.stat().st_size) != self.have:
            fault = f"has {on_disk} bytes on disk, though {self.have} came"
        elif self.checksum and self.digest.hexdigest() != self.checksum[1]:
            fault = f"has the {self.checksum[0]} {self.digest.hexdigest()}, not {self.checksum[1]} of the catalogue"
        if not fault:
            return
        self.mismatches += 1
        self.restart()
        if self.mismatches >= MISMATCHES:
            self.note.unlink()
            raise DownloadError(f"{self.url} {fault}, {MISMATCHES} times in a row: search its scenes again")
        raise Passing(f"{self.url} {fault}")

    def take(self) -> None:
        """Give the file its name."""
        os.replace(self.file, self.path)
        self.note.unlink(missing_ok=True)


def _receive(url: str, part: _Part, access: Access | None) -> None:
    """One attempt to bring the rest of a file, and the check of all of it."""
    if part.have and part.checksum and part.have == part.size:  # all but the check was done
        part.check()
        return
    asked = {"Accept-Encoding": "identity", **part.range()}
    with answer("GET", url, access, everywhere=asked) as response:
        if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part.have:
            if _total(response) != part.have:
                part.restart()
                raise Passing(f"{place(url)} has become shorter than what came of it")
        else:
            _must_be_file(response, url)
            total = _begin(response, url, part)
            _check_room(part, total)
            chunks = steady(response, url)
            part.write(_told(chunks, part.path.name, part.have, total), total)
            if total is not None and part.have != total:
                raise Passing(f"{place(url)} was cut off after {part.have} of {total} bytes")
    part.check()


def _must_be_file(response: requests.Response, url: str) -> None:
    """An error for every status but 200 and 206: the body of another one is a message."""
    raise_for(response, url)
    status = response.status_code
    if status == HTTPStatus.ACCEPTED:
        raise Passing(f"{place(url)} answered 202 (Accepted): the file is not ready", status, retry_after_s(response))
    if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        raise DownloadError(f"{place(url)} answered {status} and sends no file: check the address", status)


def _begin(response: requests.Response, url: str, part: _Part) -> int | None:
    """Bytes that the whole file will have, None where nobody tells; what came is dropped where it is stale."""
    validator = _validator(response)
    if response.status_code != HTTPStatus.PARTIAL_CONTENT:
        total = number(response.headers.get("Content-Length", ""))
        if fault := _fault(response, part, total):  # what came before may still be right
            raise Passing(f"{place(url)} {fault}")
        part.restart(validator)
        return part.size if total is None else total
    match = re.fullmatch(rf"bytes ({NUMBER})-({NUMBER})/({NUMBER}|\*)", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != part.have or (part.validator and validator not in {"", part.validator}):
        part.restart()
        raise Passing(f"{place(url)} answers with another part than was asked for")
    total = number(match[3])
    if fault := _fault(response, part, total):
        part.restart()
        raise Passing(f"{place(url)} {fault}")
    if not part.have:  # all of it as a part, which nobody asked for
        part.restart(validator)
    return part.size if total is None else total


def _fault(response: requests.Response, part: _Part, total: int | None) -> str:
    """Why a body, before it is read, can not be the file or could be cut off without a sign; empty: it may be."""
    if part.size is not None and total not in {None, part.size}:
        return f"announces {total} bytes, not {part.size} as the catalogue tells"
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return "sends a compressed body, though the file as it is was asked for"
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    for what, (pattern, suffixes) in OTHERS.items():
        if pattern.fullmatch(kind) and part.path.suffix.lower() not in suffixes:
            return f"sends {what} in place of the file: perhaps a login, a limit or a proxy stands before it"
    is_whole_chunked = response.status_code == HTTPStatus.OK and is_chunked(response)
    if total is None and not (part.size or part.checksum or is_whole_chunked):
        return "sends a body without a length, of which nobody could tell whether it is whole"
    return ""


def _validator(response: requests.Response) -> str:
    """What names this version of the file in If-Range: a strong ETag, else its time (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _total(response: requests.Response) -> int | None:
    match = re.fullmatch(rf"bytes \*/({NUMBER})", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _check_room(part: _Part, total: int | None) -> None:
    free = shutil.disk_usage(part.path.parent).free
    missing = (total or 0) - part.have
    if missing > free:
        raise DownloadError(
            f"{part.path} needs {missing / 1e6:.1f} MB more, but {part.path.parent} has {free / 1e6:.1f} MB free: "
            "make room and run it again, which goes on where this one stopped"
        )


def _told(chunks: Iterator[bytes], name: str, have: int, total: int | None) -> Iterator[bytes]:
    """The same chunks, with a bar on a terminal and now and then a line in the log."""
    began = said = time.monotonic()
    had = have
    with tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
            have += len(chunk)
            if (now := time.monotonic()) - said >= REPORT_S:
                said = now
                log.info("%s: %s", name, _progress(have, total, (have - had) / (now - began)))


def _progress(have: int, total: int | None, bytes_per_s: float) -> str:
    rate = f"{bytes_per_s / 1e6:.1f} MB/s"
    if total is None:
        return f"{have / 1e6:.1f} MB, {rate}"
    return f"{have / 1e6:.1f} of {total / 1e6:.1f} MB, {rate}, {(total - have) / bytes_per_s:.0f} s left"

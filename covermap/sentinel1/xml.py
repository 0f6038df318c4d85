"""Reading of XML that nobody vouches for.

Every function raises ProductError, with ``source`` as the name of the file.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from covermap.errors import ProductError

LARGEST = 64 * 2**20  # bytes; real annotation and orbit files have 0.4 to 5 MB
DOWNLOAD_AGAIN = "remove the file so that it is downloaded again"
TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?Z?", re.ASCII)


def check_size(size: int, source: str) -> None:
    """Refuse what would fill the memory."""
    if size > LARGEST:
        raise ProductError(f"{source} has {size} bytes, expected at most {LARGEST}: {DOWNLOAD_AGAIN}")


def parse(content: bytes, source: str) -> Element:
    """Root element; entities and document types are refused (they are never in a real product)."""
    try:
        return fromstring(content, forbid_dtd=True)
    except DefusedXmlException as error:
        raise ProductError(f"{source} declares entities or a DTD, which no product does: {error}") from None
    except (ParseError, LookupError, ValueError) as error:
        raise ProductError(f"{source} is not well-formed XML ({error}): {DOWNLOAD_AGAIN}") from None


def every(root: Element, path: str, source: str) -> list[Element]:
    """All elements at ``path``, at least one."""
    found = root.findall(path)
    if not found:
        raise ProductError(f"{source} has no {path}: the file is incomplete, {DOWNLOAD_AGAIN}")
    return found


def text(element: Element, path: str, source: str) -> str:
    """Text at ``path``, not empty."""
    found = element.findtext(path)
    if not found or not found.strip():
        raise ProductError(f"{source} has no {path}: the file is incomplete, {DOWNLOAD_AGAIN}")
    return found.strip()


def numbers(element: Element, path: str, source: str) -> np.ndarray:
    """List of numbers at ``path``, float64 (n,), finite."""
    found = text(element, path, source)
    try:
        values = np.array(found.split(), np.float64)
    except ValueError:
        raise ProductError(
            f"{source} has {found[:40]!r} in {path}, where numbers are expected: {DOWNLOAD_AGAIN}"
        ) from None
    if not np.isfinite(values).all():
        raise ProductError(f"{source} has a number that is not finite in {path} ({found[:40]!r}): {DOWNLOAD_AGAIN}")
    return values


def number(element: Element, path: str, source: str) -> float:
    """The one number at ``path``, finite."""
    values = numbers(element, path, source)
    if len(values) != 1:
        raise ProductError(f"{source} has {len(values)} numbers in {path}, expected one: {DOWNLOAD_AGAIN}")
    return float(values[0])


def positive(element: Element, path: str, source: str) -> float:
    """The one number at ``path``, above zero."""
    value = number(element, path, source)
    if value <= 0:
        raise ProductError(f"{source} has {value:g} in {path}, expected a number above 0: {DOWNLOAD_AGAIN}")
    return value


def column(elements: list[Element], path: str, source: str) -> np.ndarray:
    """One number of each element, float64 (n,)."""
    return np.array([number(element, path, source) for element in elements])


def time(found: str, source: str) -> np.datetime64:
    """A UTC time, to the microsecond."""
    parts = TIME.fullmatch(found)
    try:
        if parts is not None:
            return np.datetime64(parts[1] + (parts[2] or "")[:7], "us")
    except ValueError:  # the 30th of February
        pass
    raise ProductError(f"{source} has {found[:40]!r} where a UTC time is expected: {DOWNLOAD_AGAIN}")


def seconds(elements: list[Element], path: str, start: np.datetime64, source: str) -> np.ndarray:
    """Times of the elements in seconds since ``start``, float64 (n,)."""
    times = np.array([time(text(element, path, source), source) for element in elements])
    return (times - start) / np.timedelta64(1, "s")

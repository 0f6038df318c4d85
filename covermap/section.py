"""What all groups of settings are made of: types, what they refuse, and how a fault is told in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from covermap.models.options import ENCODER

NAME, CRS, ADDRESS = r"^[a-z][a-z0-9_]*$", r"^EPSG:\d+$", r"^https?://[^\s?#@]+$"
LANGUAGE = r"^[a-z]{2}$"
START = r"^([a-z][a-z0-9_]*|timm/[A-Za-z0-9_.-]+(@[0-9a-f]{40})?|torchgeo/[A-Za-z0-9_.-]+)$"
PATTERNS = {
    ADDRESS: "the address of a service: https:// or http://, a host and a path, and no name, password or question",
    NAME: "a name of small letters, digits and underscores that begins with a letter",
    CRS: "EPSG: and a number, such as EPSG:32721",
    START: "the name of a model, or timm/ or torchgeo/ and the name of weights there",
    ENCODER: "the name of an encoder of timm: letters, digits, underscores, dots and dashes",
    LANGUAGE: "the two small letters of a language, such as en or pt",
}


def on_disk(value: Any) -> Any:
    if isinstance(value, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|/vsi", value):
        raise ValueError("covermap reads files on disk, and no address: download it and give its path")
    return value


def text_of(value: Any) -> Any:
    """YAML reads a collection such as 10 or 7.1 as a number."""
    return str(value) if is_number(value) else value


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = sorted({str(value) for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there twice: keep each once")
    return values


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


PHRASES = {
    r"^Input should (be|have) ": "expected ",
    r"^(Tuple|List|Dictionary|String) should have ": "expected ",
    " after validation, not .*": "",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "a valid dictionary.*": "keys with values",
    "a valid (tuple|list)": "a list in brackets",
    "a valid string": "text in quotes",
}


SECRETS = {  # of an address: name and password, and what follows the path, up to the brackets around the address
    r"(://)\S*@": r"\1...@",
    r"(://[^\s?#]*[?#])\S*?(?=['\"]?[])},.:;]*(\s|$))": r"\1...",
}


def first_sentence(error: ValidationError) -> str:
    """The first fault of a validation as 'key: what is wrong (got value)', without the secrets of addresses.

    Messages of our own about a section begin with the setting that they are about, so they go on behind its key.
    """
    sentence = _first_fault(error)
    for pattern, shown in SECRETS.items():
        sentence = re.sub(pattern, shown, sentence)
    return sentence


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    key = ".".join(str(part) for part in fault["loc"] if not re.search(r"[\[(]", str(part)))
    message, given = fault["msg"].removeprefix("Value error, "), fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{key}: no such setting; see config/schema.json for those there are"
    if fault["type"] == "missing":
        return f"{key} is missing: add it; see config/schema.json for what it is"
    if fault["type"] == "value_error" and isinstance(given, dict | BaseModel):
        return f"{key}.{message}" if key else message
    if fault["type"] == "string_pattern_mismatch":
        message = f"expected {PATTERNS[fault['ctx']['pattern']]}"
    for phrase, plain in PHRASES.items():
        message = re.sub(phrase, plain, message)
    return f"{key}: {message} (got {'nothing' if given is None else repr(given)})"


Name = Annotated[str, StringConstraints(pattern=NAME)]
File = Annotated[Path, BeforeValidator(on_disk)]
Address = Annotated[str, StringConstraints(pattern=ADDRESS)]
Unique = AfterValidator(_unique)
Sensor = Literal["sentinel1", "sentinel2"]
Sensors = Annotated[tuple[Sensor, ...], Field(min_length=1), Unique]
Polarisation = Literal["VV", "VH", "HH", "HV"]
Band = Literal["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

"""A legend: from a source's codes to our classes, with names and colours. One file carries to every output."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from covermap.errors import SettingError

NO_LABEL = 0
EXCLUDED = 255
COLUMNS = ("code", "class", "name", "colour")


class LegendClass(BaseModel):
    """One class of a map; ``id`` is its pixel value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    key: str
    name: str
    colour: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0 to 255."""
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


class Legend(BaseModel):
    """Classes 1..K in file order, and the class id of every code of the source (0: no label)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[LegendClass, ...]
    codes: dict[str, int]


@cache
def read_legend(path: Path) -> Legend:
    """Legend of a CSV with the columns code, class, name, colour; a code without a class is 'no label'.

    Raises
    ------
    SettingError
        File or column missing, no text, a code twice, a colour that is none, one class with two names or colours.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise SettingError(f"legend {path} does not exist: write a CSV with the columns {', '.join(COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingError(
            f"legend {path} cannot be read as text ({error}): expected a CSV in UTF-8 with the columns "
            f"{', '.join(COLUMNS)}"
        ) from None
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise SettingError(f"legend {path} must have rows and the columns {', '.join(COLUMNS)}")
    classes: dict[str, LegendClass] = {}
    codes: dict[str, int] = {}
    for number, row in enumerate(rows, 2):
        if None in map(row.get, COLUMNS):
            raise SettingError(f"legend {path}: line {number} is short: expected values for {', '.join(COLUMNS)}")
        code, key = row["code"].strip(), row["class"].strip()
        if code in codes:
            raise SettingError(f"legend {path} has code {code} twice: keep one row a code")
        codes[code] = _class_id(path, row, key, classes) if key else NO_LABEL
    if not 1 <= len(classes) < EXCLUDED:
        raise SettingError(f"legend {path} has {len(classes)} classes: expected 1 to {EXCLUDED - 1}")
    return Legend(classes=tuple(classes.values()), codes=codes)


def _class_id(path: Path, row: dict[str, str], key: str, classes: dict[str, LegendClass]) -> int:
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", row["colour"]):
        raise SettingError(f"legend {path}: class {key} has colour {row['colour']!r}: expected #RRGGBB")
    known = classes.setdefault(
        key, LegendClass(id=len(classes) + 1, key=key, name=row["name"], colour=row["colour"].upper())
    )
    if (known.name, known.colour) != (row["name"], row["colour"].upper()):
        raise SettingError(f"legend {path}: class {key} has two names or colours: give all its codes the same")
    return known.id

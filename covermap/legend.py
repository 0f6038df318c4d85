"""A legend: from a source's codes to our classes, with names and colours. One file carries to every output."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from covermap.errors import SettingError

NO_LABEL = 0
EXCLUDED = 255
EXCLUDED_KEY = "excluded"  # in the column class: pixels that were looked at, but are to count nowhere
COLUMNS = ("code", "class", "name", "colour")
FURTHER_COLUMNS = r"collection|note|name_[a-z]{2}"


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
    """Classes 1..K in file order, and the class id of every code of the source (0: no label, 255: excluded)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[LegendClass, ...]
    codes: dict[str, int]


Row = dict[str, str]
Held = tuple[frozenset[str], int]  # collections for which a code has a class id; none: all


@cache
def read_legend(path: Path, collection: str | None = None, language: str = "en") -> Legend:
    """Legend of a CSV with the columns code, class, name, colour; a code without a class is 'no label'.

    Further columns, if any: ``collection``, the collections or editions for which a row holds, with blanks between
    (empty: all), since a code may mean another thing in the next collection; ``name_xx``, the name in the language
    xx; ``note``. Class ids follow the whole file, so that all collections share them. The class ``excluded`` is none:
    its codes are the pixel value 255.

    Parameters
    ----------
    path
        The CSV, in UTF-8, with commas or, as spreadsheets write it in some countries, semicolons.
    collection
        Whose codes are wanted; none: not known, which will do where no code depends on it.
    language
        Of the names, where the legend has it; English elsewhere.

    Raises
    ------
    SettingError
        File or column missing, no text, a code twice, a colour that is none, one class with two names or colours, no
        row for the collection, a code that depends on a collection which is not given.
    """
    classes: dict[str, tuple[LegendClass, Row]] = {}
    held: dict[str, list[Held]] = {}
    for row in _rows(path):
        only = frozenset(row.get("collection", "").split())
        held.setdefault(row["code"], []).append((only, _class_id(path, row, language, classes)))
    if not 1 <= len(classes) < EXCLUDED:
        raise SettingError(f"legend {path} has {len(classes)} classes: expected 1 to {EXCLUDED - 1}")
    return Legend(classes=tuple(entry for entry, _ in classes.values()), codes=_codes(path, held, collection))


def _rows(path: Path) -> list[Row]:
    """Rows of the table without blanks around their values, all complete."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets begin UTF-8 with a mark
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=";" if ";" in head and "," not in head else ",")
            rows, columns = list(reader), reader.fieldnames or ()
    except FileNotFoundError:
        raise SettingError(f"legend {path} does not exist: write a CSV with the columns {', '.join(COLUMNS)}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingError(
            f"legend {path} cannot be read as text ({error}): expected a CSV in UTF-8 with the columns "
            f"{', '.join(COLUMNS)}"
        ) from None
    if not rows or not set(COLUMNS) <= set(columns):
        raise SettingError(f"legend {path} must have rows and the columns {', '.join(COLUMNS)}")
    _known_columns(path, columns)
    for number, row in enumerate(rows, 2):
        _complete(path, number, row)
    return [{column: (value or "").strip() for column, value in row.items()} for row in rows]


def _known_columns(path: Path, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in COLUMNS and not re.fullmatch(FURTHER_COLUMNS, column):
            raise SettingError(
                f"legend {path} has the column {column!r}: expected {', '.join(COLUMNS)} and, where wanted, "
                "collection, note, and name_pt or another language's"
            )
        if list(columns).count(column) > 1:
            raise SettingError(f"legend {path} has the column {column!r} twice: keep one")


def _complete(path: Path, number: int, row: Row) -> None:
    if None in map(row.get, COLUMNS):
        raise SettingError(f"legend {path}: line {number} is short: expected values for {', '.join(COLUMNS)}")
    if None in row:
        raise SettingError(
            f"legend {path}: line {number} has more values than there are columns: put a name with a comma in quotes"
        )
    if not row["code"].strip():
        raise SettingError(f"legend {path}: line {number} has no code: give it one, or remove the line")
    if not all(map(str.isprintable, row["code"].strip() + row["class"].strip())):
        raise SettingError(
            f"legend {path}: line {number} has the code {row['code']!r} and the class {row['class']!r}: expected words "
            "without control characters, so remove them"
        )


def _class_id(path: Path, row: Row, language: str, classes: dict[str, tuple[LegendClass, Row]]) -> int:
    """Id of a row's class, which is put among ``classes`` when it is new."""
    key = row["class"]
    if key in ("", EXCLUDED_KEY):
        return EXCLUDED if key else NO_LABEL
    if not row["name"]:
        raise SettingError(f"legend {path}: class {key} has no name: give it one")
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", row["colour"]):
        raise SettingError(f"legend {path}: class {key} has colour {row['colour']!r}: expected #RRGGBB")
    looks = {column: value for column, value in row.items() if column.startswith("name")}
    looks["colour"] = row["colour"].upper()
    name = looks.get(f"name_{language}") or looks["name"]
    new = LegendClass(id=len(classes) + 1, key=key, name=name, colour=looks["colour"])
    known, shown = classes.setdefault(key, (new, looks))
    if shown != looks:
        raise SettingError(f"legend {path}: class {key} has two names or colours: give all its codes the same")
    return known.id


def _codes(path: Path, held: dict[str, list[Held]], collection: str | None) -> dict[str, int]:
    """Class id of every code of a collection."""
    named = sorted({name for entries in held.values() for only, _ in entries for name in only}, key=_by_number)
    if named and collection is not None and collection not in named:
        raise SettingError(
            f"legend {path} has no row for collection {collection!r}: expected one of {', '.join(named)}, so mend "
            "collection, or add it to the rows that hold for it"
        )
    found: dict[str, int] = {}
    for code, entries in held.items():
        _once(path, code, entries)
        ids = {id for only, id in entries if collection is None or not only or collection in only}
        if len(ids) > 1:
            raise SettingError(
                f"legend {path} has code {code} for other classes in other collections: set collection beside it to "
                f"one of {', '.join(named)}"
            )
        if ids:
            found[code] = ids.pop()
    return found


def _by_number(collection: str) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", collection)], collection


def _once(path: Path, code: str, entries: list[Held]) -> None:
    for (one, _), (other, _) in combinations(entries, 2):
        if not one or not other or one & other:
            both = f" for collection {min(one & other)}" if one & other else ""
            raise SettingError(f"legend {path} has code {code} twice{both}: keep one row a code")

"""What a Sentinel-2 product is: its bands by name, the files that hold them, and what their numbers mean."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from covermap.archives import BAD_ZIP, safe_members
from covermap.errors import ProductError

STEPS = 10_000  # of reflectance 1
SCL = "SCL"
BAND_IDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")  # by band_id
AGAIN = "mend its source and remove the stored file, so that it is fetched again"
LARGEST_TEXT = 64 * 2**20  # bytes; real metadata and masks have 0.05 to 5 MB


@dataclass(frozen=True)
class Band:
    """Where a band lies and what its numbers mean: reflectance = (DN + offset) / quantification.

    ``offset_from`` says where the offset comes from, and is empty where nothing tells it (0 is no answer then).
    ``place`` is the CRS and bounds that the product's metadata give, for rasters that carry none. ``pixel_m`` is the
    pixel that the name tells, and ``meant_quantification`` the one that whole numbers must have; None: untold.
    """

    path: str
    index: int = 1
    offset: float = 0
    quantification: float = STEPS
    nodata: float | None = None
    offset_from: str = ""
    place: tuple[str, tuple[float, ...]] | None = None
    pixel_m: int | None = None
    meant_quantification: float | None = None


@dataclass(frozen=True)
class Product:
    """The bands of a scene by name; ``name`` tells the stored file too.

    Level-2A has SCL among its bands; Level-1C has a cloud mask, as the path of a raster or the content of a GML file.
    ``absent`` are the files, by band, that the metadata list and the product lacks.
    """

    name: str
    level: str
    bands: Mapping[str, Band]
    baseline: str = ""
    clouds: str | bytes | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """The files of a product, in a zip or in a folder, by their path in it."""

    root: Path
    names: frozenset[str] = field(repr=False)

    def told(self, name: str) -> str:
        """Name of the product with the file that holds it, for messages."""
        return f"{name} (stored as {self.root})" if self.zipped else str(self.root)

    @property
    def zipped(self) -> bool:
        return self.root.is_file()

    def path(self, name: str) -> str:
        """Path for GDAL."""
        return f"/vsizip/{{{self.root}}}/{name}" if self.zipped else str(self.root / name)

    def read(self, name: str) -> bytes:
        """Content of a small file."""
        try:
            if not self.zipped:
                with (self.root / name).open("rb") as file:
                    content = file.read(LARGEST_TEXT + 1)
            else:
                with zipfile.ZipFile(self.root) as archive, archive.open(name) as member:
                    content = member.read(LARGEST_TEXT + 1)
        except BAD_ZIP as error:
            raise ProductError(f"product {self.root}: {name} is broken ({error}): {AGAIN}") from error
        if len(content) > LARGEST_TEXT:
            raise ProductError(f"product {self.root}: {name} has more than {LARGEST_TEXT} bytes: do not use this file")
        return content


def must_be_of_level(product: str, found: str, level: str) -> None:
    """Refuse a product of another level than the settings ask for."""
    if found and found != level:
        raise ProductError(
            f"product {product} is Level-{found[1:]}, but sentinel2.level asks for Level-{level[1:]}: set it to "
            f"{found} or {AGAIN}"
        )


def open_files(product: Path) -> Files:
    """The files of a product; a zip that could do harm is refused.

    Raises
    ------
    ProductError
        The product is missing, empty, no whole zip, or has a member that could do harm.
    """
    if product.is_dir():
        names = [path.relative_to(product).as_posix() for path in product.rglob("*") if path.is_file()]
    else:
        if not product.exists():
            raise ProductError(f"product {product} does not exist: download it")
        names = [member.filename for member in safe_members(product, AGAIN)]
    if not names:
        raise ProductError(f"product {product} is empty: {AGAIN}")
    return Files(product, frozenset(names))

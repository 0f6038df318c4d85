"""Manifests of real products: what a scene needs of them."""

import hashlib
from pathlib import Path

import pytest

from covermap.providers.cdse_files import needed, read_manifest
from tests.conftest import DATA

OPTICAL = [*DATA.glob("s2_safe_metadata/*S2?_MSIL2A_*_N0214_*.SAFE"), *DATA.glob("s2_safe_metadata/*_N0509_*.SAFE")]
BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12", "SCL")

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not found at {DATA}")


@pytest.mark.parametrize("safe", OPTICAL, ids=lambda safe: safe.name)
def test_ten_bands_of_sentinel_2(safe: Path):
    files = read_manifest((safe / "manifest.safe").read_bytes(), safe.name)
    chosen = needed(files, BANDS, safe.name)
    names = [Path(file.path).name for file in chosen]
    assert {"MTD_MSIL2A.xml", "MTD_TL.xml"} < set(names) and len(names) == 13
    pixels = {"10m": ["B02", "B03", "B04", "B08"], "20m": ["B05", "B06", "B07", "B11", "B12", "B8A", "SCL"]}
    assert {size: sorted(name[-11:-8] for name in names if f"_{size}.jp2" in name) for size in pixels} == pixels
    assert 0.3 < sum(file.size for file in chosen) / sum(file.size for file in files) < 0.8
    stored = {file.path: file for file in files}["MTD_MSIL2A.xml"]
    content = (safe / "MTD_MSIL2A.xml").read_bytes()
    assert (stored.size, stored.checksum[1]) == (len(content), hashlib.new(stored.checksum[0], content).hexdigest())


def test_two_polarisations_of_sentinel_1(data):
    (safe,) = data.glob("s1_grd/S1A_*_6FF8.SAFE")
    files = read_manifest((safe / "manifest.safe").read_bytes(), safe.name)
    chosen = needed(files, ("VV", "VH"), safe.name)
    assert [file.path for file in files if file not in chosen] == [
        "preview/map-overlay.kml",
        "preview/product-preview.html",
        "preview/quick-look.png",
    ]
    assert len(needed(files, ("VV",), safe.name)) == 4
    for file in chosen:
        path = safe / file.path
        if path.suffix == ".xml":
            assert (path.stat().st_size, hashlib.md5(path.read_bytes()).hexdigest()) == (file.size, file.checksum[1])

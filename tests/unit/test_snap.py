"""SNAP's chain with a stand-in for gpt: a program that reads the graph as gpt does, places its pixels on the standard
grid as Terrain-Correction does, and writes BEAM-DIMAP; or fails as gpt fails."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from defusedxml.ElementTree import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from covermap.area_settings import Sentinel1
from covermap.errors import CoverageError, CovermapError, ProductError, SettingError
from covermap.sentinel1 import safe, snap
from covermap.sentinel1.gpt import command_line, find_snap, run_gpt
from tests.unit.sentinel1_world import GRID, height, write_dem, write_eof, write_safe, zipped

STAND_IN = r'''
import os, subprocess, sys, time

print("Executing processing graph", flush=True)
how = os.environ["STAND_IN"]
if how == "hang":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open("pids", "w").write(f"{os.getpid()} {child.pid}")
    time.sleep(600)
if how == "memory":
    print("Error: [NodeId: Terrain-Correction] java.lang.OutOfMemoryError: Java heap space\n\tat org.esa.snap.Gpt(1)")
    sys.exit(1)
if how == "null":
    print("java.lang.NullPointerException\n done.")
    sys.exit(0)
if how == "orbit":
    print("Error: [NodeId: Apply-Orbit-File] No valid orbit file found for 01-MAY-2023 00:00:00.000000")
    sys.exit(1)
if how == "other":
    print("\n".join(f"line {number}" for number in range(40)) + "\nError: Unknown operator name 'Terrain-Correction'.")
    sys.exit(7)
if how == "nothing":
    sys.exit(0)
if how == "dem":
    print("WARNING: Terrain-Correction error: no valid output was produced. Please verify the DEM")

from xml.etree import ElementTree
import numpy as np
import rasterio
from pyproj import Transformer
from rasterio.transform import from_origin

root = ElementTree.parse(sys.argv[1]).getroot()
nodes = {node.get("id"): node for node in root.findall("node")}
def value(node, name):
    return nodes[node].findtext(f"parameters/{name}")

assert os.path.exists(value("Read", "file")), value("Read", "file")
pixel, x0, y0 = (float(value("Terrain-Correction", name)) for name in
    ("pixelSpacingInMeter", "standardGridOriginX", "standardGridOriginY"))
crs = value("Terrain-Correction", "mapProjection")
corners = value("Subset", "geoRegion").removeprefix("POLYGON ((").removesuffix("))").split(",")
lon, lat = np.array([corner.split() for corner in corners], float).T
x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
# centre of the first pixel, as in CRSGeoCodingHandler
left = np.floor((x.min() - x0) / pixel) * pixel + x0 + (4 if how == "shifted" else 0)
top = np.ceil((y.max() - y0) / pixel) * pixel + y0
width, rows = int(np.ceil((x.max() - left) / pixel)), int(np.ceil((top - y.min()) / pixel))
east, north = np.meshgrid(left + pixel * np.arange(width), top - pixel * np.arange(rows))

def write(node, bands):
    header = value(node, "file")
    os.makedirs(header.replace(".dim", ".data"))
    for name, band in bands.items():
        with rasterio.open(header.replace(".dim", ".data") + f"/{name}.img", "w", driver="ENVI", width=width,
                           height=rows, count=1, dtype=band.dtype, crs=crs,
                           transform=from_origin(left - pixel / 2, top + pixel / 2, pixel, pixel)) as raster:
            raster.write(band, 1)
    with open(header, "w") as file:
        file.write(f"""<Dimap_Document><Raster_Dimensions><NCOLS>{width}</NCOLS><NROWS>{rows}</NROWS>
            </Raster_Dimensions><Geoposition><IMAGE_TO_MODEL_TRANSFORM>{pixel},0.0,0.0,{-pixel},{left - pixel / 2},
            {top + pixel / 2}</IMAGE_TO_MODEL_TRANSFORM></Geoposition></Dimap_Document>""")

powers = dict(zip(value("Subset", "sourceBands").split(","), (east / 1e6, north / 1e6)))
for power in powers.values():
    power[east > 455_800] = 0  # no data
    power[north > 111_400] = -1e-4 if "LinearToFromdB" in nodes else 1e-10
if "LinearToFromdB" in nodes:
    for power in powers.values():
        valid = power > 1e-30
        power[power < 0] = -1e-30
        power[valid] = 10 * np.log10(power[valid])
    powers = {name + "_db": power for name, power in powers.items()}
write("Write", {name: power.astype("float32") for name, power in powers.items()})
if "Write-Layers" in nodes:
    layers = {"incidenceAngleFromEllipsoid": np.full(east.shape, 33.5, "float32"),
              "layoverShadowMask": (east > 455_000).astype("uint8") * 2}
    write("Write-Layers", {name: layers[name] for name in value("Subset-Layers", "sourceBands").split(",")})
print("....100% done.")
'''

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # radar geometry
ORBIT = "S1A_OPER_AUX_RESORB_OPOD_20230501T030000_V20230430T220000_20230501T020000.EOF"


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    program = tmp_path_factory.mktemp("snap") / "bin" / "gpt"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{STAND_IN}")
    program.chmod(0o755)
    return (str(program),)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A zipped product and a DEM of ellipsoidal heights."""
    folder = tmp_path_factory.mktemp("scene")
    return zipped(write_safe(folder)), write_dem(folder / "dem.tif")


def run(gpt, files, folder, wanted, monkeypatch, how="write", **more):
    """Bands, window, tags and filled graph of one run."""
    monkeypatch.setenv("STAND_IN", how)
    archive = safe.open_product(files[0])
    with snap.snap_chain(gpt, archive, files[1], folder / "scene.tif", GRID, wanted, **more) as scene:
        strips = list(scene.strips)
        scratch = next(folder.glob(".scene.tif.snap.*"))
        nodes = {node.get("id"): node for node in parse(scratch / "graph.xml").getroot().findall("node")}
        orbits = sorted(path.relative_to(scratch).as_posix() for path in scratch.glob("orbits/**/*.EOF"))
        with rasterio.open(scratch / "dem.tif") as raster:
            dem = raster.read(1), raster.transform, raster.crs
    assert list(folder.iterdir()) == []
    assert [row for row, _ in strips] == list(range(0, scene.window.height, snap.ROWS))
    return np.concatenate([pixels for _, pixels in strips], axis=1), scene, nodes, orbits, dem


# --- the graph -------------------------------------------------------------------------------------------------------


def graph_nodes(path=snap.GRAPH):
    return {node.get("id"): node for node in parse(path).getroot().findall("node")}


def test_the_graph_is_one_chain_in_the_order_of_its_file():
    nodes = graph_nodes()
    sources = {name: [source.get("refid") for source in node.find("sources")] for name, node in nodes.items()}
    chain = ["Write"]
    while sources[chain[0]]:
        (before,) = sources[chain[0]]
        chain.insert(0, before)
    assert chain == [name for name in nodes if not name.endswith("-Layers")]
    assert [node.findtext("operator") for node in nodes.values()][:6] == [
        "Read",
        "Apply-Orbit-File",
        "ThermalNoiseRemoval",
        "Remove-GRD-Border-Noise",
        "Calibration",
        "Speckle-Filter",
    ]
    assert sources["Subset-Layers"] == ["Terrain-Correction"]


NODES = [name for name in graph_nodes() if name not in {"Read", "Write", "Calibration", "Terrain-Correction"}]
NAMES = sorted(set(re.findall(r"\$\{(\w+)\}", snap.GRAPH.read_text().split("-->", 1)[1])))


@settings(max_examples=25, deadline=None)
@given(st.sets(st.sampled_from(NODES)), st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_a_filled_graph_has_no_gap_whatever_is_left_out(tmp_path_factory, without, text):
    path = tmp_path_factory.mktemp("graph") / "graph.xml"
    snap.fill_graph(path, {name: text for name in NAMES} | {"layover_shadow": None}, without)
    nodes = graph_nodes(path)
    assert set(nodes) == set(graph_nodes()) - without
    for name, node in nodes.items():
        assert all(source.get("refid") in nodes for source in node.find("sources")), name
        assert node.find("parameters/saveLayoverShadowMask") is None
    assert graph_nodes(path)["Read"].findtext("parameters/file").strip() == text.strip()
    if "${" not in text:
        assert "${" not in path.read_text(encoding="utf-8")


def test_every_name_of_the_graph_has_a_value_and_every_value_a_name(files, tmp_path):
    archive = safe.open_product(files[0])
    assert sorted(snap._values(archive, GRID, Sentinel1(), "precise", tmp_path)) == NAMES


def test_settings_reach_the_operators(gpt, files, tmp_path, monkeypatch):
    wanted = Sentinel1(
        convention="gamma0", speckle_filter="refined_lee", looks=4.9, layers=["incidence_angle"], polarisations=["VH"]
    )
    _, _, nodes, _, _ = run(gpt, files, tmp_path, wanted, monkeypatch)
    flat = {f"{name}/{p.tag}": p.text for name, node in nodes.items() for p in node.find("parameters")}
    expected = {
        "Calibration/selectedPolarisations": "VH",
        "Calibration/outputSigmaBand": "false",
        "Calibration/outputGammaBand": "true",
        "Speckle-Filter/filter": "Refined Lee",
        "Speckle-Filter/estimateENL": "false",
        "Speckle-Filter/enl": "4.9",
        "Terrain-Correction/sourceBands": "Gamma0_VH",
        "Terrain-Correction/mapProjection": "EPSG:32631",
        "Terrain-Correction/pixelSpacingInMeter": "10.0",
        "Terrain-Correction/standardGridOriginX": "5.0",
        "Terrain-Correction/standardGridOriginY": "5.0",
        "Terrain-Correction/nodataValueAtSea": "false",
        "Terrain-Correction/externalDEMApplyEGM": "false",
        "Terrain-Correction/saveIncidenceAngleFromEllipsoid": "true",
        "Subset-Layers/sourceBands": "incidenceAngleFromEllipsoid",
    }
    assert {name: flat[name] for name in expected} == expected
    assert "Terrain-Correction/saveLayoverShadowMask" not in flat
    assert not {"Apply-Orbit-File", "LinearToFromdB"} & set(nodes)


# --- which chain -----------------------------------------------------------------------------------------------------


def test_gpt_is_found_on_the_path_and_in_snap_home(gpt, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SNAP_HOME", raising=False)
    assert find_snap() is None
    monkeypatch.setenv("SNAP_HOME", str(Path(gpt[0]).parents[1]))
    assert find_snap() == gpt
    monkeypatch.delenv("SNAP_HOME")
    monkeypatch.setenv("PATH", str(Path(gpt[0]).parent))
    assert find_snap() == gpt


def test_a_binary_that_is_called_gpt_is_not_snap(tmp_path, monkeypatch):
    (tmp_path / "gpt").write_bytes(b"\x7fELF")
    (tmp_path / "gpt").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SNAP_HOME", raising=False)
    assert find_snap() is None


def test_esa_snappy_is_the_way_where_there_is_no_gpt(tmp_path, monkeypatch):
    """A package in its place that hands the words to what it takes for GPT.run."""
    (tmp_path / "esa_snappy.py").write_text(
        "class GPT:\n    @staticmethod\n    def run(words):\n        print('GPT', *words)\n"
        "class jpy:\n    @staticmethod\n    def get_type(name):\n"
        "        return {'org.esa.snap.core.gpf.main.GPT': GPT}[name]\n"
        "    @staticmethod\n    def array(kind, size):\n        return [None] * size\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SNAP_HOME", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = find_snap()
    assert found is not None and found[0] == sys.executable
    line = command_line(found, tmp_path, 2, 8000)
    assert not [word for word in line if word.startswith("-J")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["GPT", str(tmp_path / "graph.xml")]


def test_the_setting_chooses(gpt, monkeypatch):
    monkeypatch.setattr("covermap.sentinel1.gpt.find_snap", lambda: gpt)
    assert snap.choose_snap(Sentinel1(), "EPSG:32631") is None
    assert snap.choose_snap(Sentinel1(processor="auto"), "EPSG:32631") is None  # it would keep no power below the noise
    floored = {"negative_power": "floor"}
    assert snap.choose_snap(Sentinel1(processor="auto", **floored), "EPSG:32631") == gpt
    assert snap.choose_snap(Sentinel1(processor="snap", **floored), "EPSG:32631") == gpt
    monkeypatch.setattr("covermap.sentinel1.gpt.find_snap", lambda: None)
    assert snap.choose_snap(Sentinel1(processor="auto", **floored), "EPSG:32631") is None
    with pytest.raises(SettingError, match="no gpt on the PATH"):
        snap.choose_snap(Sentinel1(processor="snap"), "EPSG:32631")


@pytest.mark.parametrize(
    ("change", "crs"),
    [
        ({"convention": "gamma0_terrain"}, "EPSG:32631"),
        ({"negative_power": "nodata"}, "EPSG:32631"),
        ({"negative_power": "keep"}, "EPSG:32631"),
        ({"ground_range": "nearest"}, "EPSG:32631"),
        ({"bistatic": True}, "EPSG:32631"),
        ({"path_delay": True}, "EPSG:32631"),
        ({"normalise_deg": 38}, "EPSG:32631"),
        ({}, "EPSG:27700"),
    ],
)
def test_what_the_graph_cannot_do_is_native_or_an_error(change, crs, gpt, monkeypatch):
    monkeypatch.setattr("covermap.sentinel1.gpt.find_snap", lambda: gpt)
    asked = {"negative_power": "floor", **change}
    assert snap.choose_snap(Sentinel1(processor="auto", **asked), crs) is None
    with pytest.raises(SettingError, match=next(iter(change), "27700")):
        snap.choose_snap(Sentinel1(processor="snap", **asked), crs)


# --- the result ------------------------------------------------------------------------------------------------------


def centres(grid):
    x = grid.left + (np.arange(grid.width) + 0.5) * grid.pixel_m
    y = grid.top - (np.arange(grid.height) + 0.5) * grid.pixel_m
    return np.meshgrid(x, y)


def test_pixels_lie_where_snap_put_them(gpt, files, tmp_path, monkeypatch):
    wanted = Sentinel1(layers=["incidence_angle", "layover_shadow"])
    pixels, scene, _, _, _ = run(gpt, files, tmp_path, wanted, monkeypatch)
    assert scene.window == GRID
    assert scene.bands == ("VV", "VH", "incidence_angle", "layover_shadow")
    x, y = centres(GRID)
    nothing, below = x > 455_800, y > 111_400
    expected = np.stack([x, y, np.full(x.shape, 33.5e6), (x > 455_000) * 2e6]) / 1e6
    expected[:2, below] = 1e-10
    expected[:2, nothing & ~below] = np.nan
    expected[2:, nothing & ~below] = np.nan
    np.testing.assert_allclose(pixels, expected, rtol=1e-6)
    assert scene.tags["processor"] == "SNAP" and scene.tags["orbit_source"] == "annotation"
    assert scene.tags["units"] == "linear" and scene.tags["convention"] == "sigma0"


def test_decibels_end_at_the_floor(gpt, files, tmp_path, monkeypatch):
    wanted = Sentinel1(units="dB", floor_db=-38, layers=[])
    pixels, scene, _, _, _ = run(gpt, files, tmp_path, wanted, monkeypatch)
    x, y = centres(GRID)
    plain = (x < 455_800) & (y < 111_400)
    np.testing.assert_allclose(pixels[1][plain], 10 * np.log10(y[plain] / 1e6), rtol=1e-5)
    assert (pixels[:, y > 111_400] == -38).all()
    assert np.isnan(pixels[:, (x > 455_800) & (y < 111_400)]).all()
    assert scene.tags["units"] == "dB"


def test_linear_power_takes_the_floor_where_asked(gpt, files, tmp_path, monkeypatch):
    wanted = Sentinel1(negative_power="floor", floor_db=-40, layers=[])
    pixels, _, _, _, _ = run(gpt, files, tmp_path, wanted, monkeypatch)
    assert np.nanmin(pixels) == pytest.approx(1e-4)


def test_snap_gets_the_heights_of_the_native_chain(gpt, files, tmp_path, monkeypatch):
    _, scene, _, _, (heights, transform, crs) = run(gpt, files, tmp_path, Sentinel1(layers=[]), monkeypatch)
    assert crs.to_epsg() == 4326 and scene.tags["dem"] == "dem.tif"
    row, column = np.mgrid[: heights.shape[0], : heights.shape[1]] + 0.5
    longitude, latitude = transform * (column, row)
    np.testing.assert_allclose(heights, height(longitude, latitude), atol=1e-3)


def test_the_orbit_file_lies_where_snap_looks(gpt, files, tmp_path, monkeypatch):
    orbit = write_eof(tmp_path / ORBIT, "AUX_RESORB")
    work = tmp_path / "work"
    work.mkdir()
    _, scene, nodes, orbits, _ = run(gpt, files, work, Sentinel1(layers=[]), monkeypatch, orbit=orbit)
    assert orbits == [f"orbits/S1A/2023/{month}/{ORBIT}" for month in ("04", "05")]
    operator = nodes["Apply-Orbit-File"].find("parameters")
    assert operator.findtext("orbitType") == "Sentinel Restituted (Auto Download)"
    assert operator.findtext("continueOnFail") == "false"
    assert scene.tags["orbit_source"] == "restituted"


def test_an_orbit_file_that_does_not_fit_never_reaches_snap(gpt, files, tmp_path, monkeypatch):
    orbit = write_eof(tmp_path / ORBIT, "AUX_RESORB")
    orbit.write_text(orbit.read_text().replace("Sentinel-1A", "Sentinel-1B"))
    with pytest.raises(ProductError, match="is of S1B"):
        run(gpt, files, tmp_path, Sentinel1(), monkeypatch, "other", orbit=orbit)


def test_a_safe_folder_is_read_too(gpt, tmp_path, monkeypatch):
    product = write_safe(tmp_path)
    dem = write_dem(tmp_path / "dem.tif")
    work = tmp_path / "work"
    work.mkdir()
    _, _, nodes, _, _ = run(gpt, (product, dem), work, Sentinel1(layers=[]), monkeypatch)
    assert nodes["Read"].findtext("parameters/file") == str(product / "manifest.safe")


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("memory", r"ran out of memory with a heap of 6000 MB.*more mem_mb.*\n.*OutOfMemoryError: Java heap space$"),
        ("null", r"NullPointerException\).*\n.*\njava.lang.NullPointerException\ndone\.$"),
        ("orbit", r"no orbit file that covers.*\n.*\n.*No valid orbit file found for 01-MAY-2023"),
        ("dem", r"made no pixel from the DEM.*Please verify the DEM"),
        ("other", r"failed with status 7.*\nline 26\n[^$]*line 39\nError: Unknown operator"),
        ("nothing", r"wrote no product"),
        ("shifted", r"lie off the area's grid"),
    ],
)
def test_each_failure_is_one_error_with_the_end_of_the_log(how, message, gpt, files, tmp_path, monkeypatch):
    with pytest.raises(CovermapError, match=re.compile(message, re.DOTALL)) as caught:
        run(gpt, files, tmp_path, Sentinel1(layers=[]), monkeypatch, how)
    assert "\tat " not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_dem_with_a_hole_is_an_error_not_the_sea(gpt, files, tmp_path, monkeypatch):
    dem = write_dem(tmp_path / "dem.tif")
    with rasterio.open(dem, "r+") as raster:
        heights = raster.read(1)
        heights[80:90, 80:90] = -9999
        raster.write(heights, 1)
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(CoverageError, match="has no height at"):
        run(gpt, (files[0], dem), work, Sentinel1(layers=[]), monkeypatch)
    assert list(work.iterdir()) == []


def test_a_broken_product_never_reaches_snap(gpt, tmp_path, monkeypatch):
    product = write_safe(tmp_path)
    next(product.glob("measurement/*.tiff")).write_bytes(b"")
    dem = write_dem(tmp_path / "dem.tif")
    with pytest.raises(ProductError, match="no whole TIFF"):
        run(gpt, (product, dem), tmp_path, Sentinel1(), monkeypatch, "other")


def alive(pid):
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def soon(condition):
    limit = time.monotonic() + 10
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)
    return condition()


def hanging(folder):
    """A folder with a graph, where the stand-in writes its process numbers."""
    (folder / "graph.xml").write_text("<graph/>")
    return folder / "pids"


def test_a_gpt_that_hangs_is_ended_with_all_it_started(gpt, tmp_path, monkeypatch):
    monkeypatch.setenv("STAND_IN", "hang")
    pids = hanging(tmp_path)
    with pytest.raises(CovermapError, match=r"did not end within 0\.0167 minutes"):
        run_gpt(gpt, tmp_path, threads=1, mem_mb=1000, time_limit_s=1)
    assert soon(lambda: not any(map(alive, pids.read_text().split())))


def test_gpt_ends_when_its_job_is_killed(gpt, tmp_path):
    pids = hanging(tmp_path)
    code = (
        "import sys; from pathlib import Path; from covermap.sentinel1.gpt import run_gpt; "
        "run_gpt((sys.argv[1],), Path(sys.argv[2]), threads=1, mem_mb=1000, time_limit_s=60)"
    )
    environment = {**os.environ, "STAND_IN": "hang"}
    job = subprocess.Popen([sys.executable, "-c", code, gpt[0], str(tmp_path)], env=environment)
    assert soon(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert soon(lambda: not any(map(alive, pids.read_text().split())))


def test_heap_cache_and_threads_come_from_the_job(tmp_path):
    line = command_line(("gpt",), tmp_path, 4, 16_000)
    assert line[:2] == ["gpt", str(tmp_path / "graph.xml")]
    assert line[line.index("-c") + 1] == "6000M" and line[line.index("-q") + 1] == "4"
    assert "-J-Xmx12000m" in line
    assert f"-DOrbitFiles.sentinel1POEOrbitPath={tmp_path / 'orbits'}" in line

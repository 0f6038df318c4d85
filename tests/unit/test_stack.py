"""Composites with hand-made answers, and the file that holds them."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives datasets their .rio)
import xarray
import zarr

from covermap.composite import composite_power, composite_reflectance, mean_of, median_of, sorting_network, to_db_steps
from covermap.errors import ProductError, SettingError
from covermap.grid import Grid
from covermap.raster import write_raster
from covermap.settings import Composite, Masks, Period
from covermap.stack import open_stack, read_stack, stack_block

GRID = Grid(crs="EPSG:32721", left=600000, top=8000040, width=300, height=300)
PERIOD = Period(start="2021-08-01", end="2021-10-31")
BOTH = ("sentinel1", "sentinel2")
BANDS = ("B02", "B08")
POLARISATIONS = ("VV", "VH")


def s1_scene(folder: Path, name: str, day: str, power: np.ndarray, grid: Grid = GRID, **tags: str) -> Path:
    """Scene of one power for all pixels, or of an array (y, x), the same in VV and twice that in VH."""
    array = np.broadcast_to(power, grid.shape)
    tags = {"datetime": f"{day}T10:00:00Z", "orbit_state": "descending", "convention": "sigma0", **tags}
    path = folder / f"{name}.tif"
    write_raster(
        path,
        np.stack([array, 2 * array]).astype(np.float32),
        grid,
        nodata=np.nan,
        descriptions=POLARISATIONS,
        tags=tags,
    )
    return path


def s2_scene(folder: Path, name: str, day: str, steps: int, scl: np.ndarray, grid: Grid = GRID) -> Path:
    """Scene of one reflectance in B02, and 1000 more in B08; the first pixels are no data where SCL is 0."""
    scl = np.broadcast_to(scl, grid.shape)
    array = np.stack([np.where(scl, steps, 0), np.where(scl, steps + 1000, 0), scl]).astype(np.uint16)
    path = folder / f"{name}.tif"
    tags = {"datetime": f"{day}T14:00:00.024000Z"}
    write_raster(path, array, grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    return path


def build(folder: Path, s1: list[Path], s2: list[Path], block: Grid = GRID, name: str = "x1y1", **changes) -> Path:
    settings = {
        "period": PERIOD,
        "sensors": BOTH,
        "bands": BANDS,
        "polarisations": POLARISATIONS,
        "masks": Masks(dilate_m=20),
        "composite": Composite(),
        **changes,
    }
    stack = folder / f"{name}.zarr.zip"
    stack_block(s1, s2, stack, block, **settings)
    return stack


def whole_stack(path: Path, grid: Grid = GRID) -> dict[str, np.ndarray]:
    return read_stack(path, slice(0, grid.height), slice(0, grid.width))


@pytest.mark.parametrize("size", range(1, 9))
def test_network_sorts_every_sequence(size):
    """A network that sorts all sequences of zeros and ones sorts everything (Knuth, TAOCP 3, 5.3.4, theorem Z)."""
    for values in product((0, 1), repeat=size):
        planes = list(values)
        for first, second in sorting_network(size):
            planes[first], planes[second] = sorted((planes[first], planes[second]))
        assert planes == sorted(values)


@pytest.mark.parametrize("dates", [1, 2, 5, 12, 25])
def test_median_is_numpys(dates):
    rng = np.random.default_rng(dates)
    values = rng.integers(1, 10_000, (dates, 40, 30)).astype(np.uint16)
    used = rng.random(values.shape) < 0.6
    seen = [
        [np.median(values[:, y, x][used[:, y, x]]) if used[:, y, x].any() else 0 for x in range(30)] for y in range(40)
    ]
    expected = np.array(seen)
    got = composite_reflectance(values.copy(), used, "median")
    assert (got == np.floor(expected + 0.5)).all()  # half a step is rounded up
    floats = median_of(np.where(used, values, np.inf).astype(np.float32), used.sum(0))
    assert (floats[used.any(0)] == expected[used.any(0)]).all()


def test_median_keeps_saturated_observations_behind_the_others():
    values = np.array([[65535, 65535, 10], [20, 65535, 20], [30, 7, 30]], np.uint16)
    used = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 1]], bool)
    assert composite_reflectance(values, used, "median").tolist() == [30, 65535, 25]


def test_mean_is_rounded_and_empty_where_nothing_is_used():
    values = np.array([[1, 65535, 5], [2, 65535, 6]], np.uint16)
    assert mean_of(values, np.array([[1, 1, 0], [1, 1, 0]], bool)).tolist() == [2, 65535, 0]


@pytest.mark.parametrize(("method", "expected"), [("mean", 0.3), ("median", 0.2)])
def test_power_is_composed_over_finite_scenes(method, expected):
    power = np.array([[0.1, np.nan], [0.6, np.nan], [0.2, np.nan], [np.nan, np.nan]], np.float32)
    got = composite_power(power, method)
    np.testing.assert_allclose(got, [expected, np.nan], rtol=1e-6)


def test_db_steps():
    power = np.array([1, 0.1, 10**-1.23456, 1e-9, -0.01, np.nan])
    assert to_db_steps(power, -35).tolist() == [0, -1000, -1235, -3500, -3500, -32768]


def test_months_are_means_in_power_and_gaps_stay(tmp_path):
    gap = np.full(GRID.shape, 0.3)
    gap[:, :7] = np.nan
    s1 = [s1_scene(tmp_path, "a", "2021-08-03", 0.1), s1_scene(tmp_path, "b", "2021-08-15", gap)]
    s1 += [s1_scene(tmp_path, "c", "2021-10-31", 0.01), s1_scene(tmp_path, "d", "2021-11-01", 99.0)]
    s1_db = whole_stack(build(tmp_path, s1, [], sensors=("sentinel1",)))["s1"]
    assert s1_db.shape == (3, 2, 300, 300)
    assert s1_db.dtype == np.int16
    assert (s1_db[0, 0, :, 7:] == round(1000 * np.log10(0.2))).all()
    assert (s1_db[0, :, :, :7] == [[[-1000]], [[-699]]]).all()
    assert (s1_db[1] == -32768).all()
    assert (s1_db[2, 0] == -2000).all()


def test_clear_observations_alone_count_and_cloudy_ones_fill_in(tmp_path):
    scl = np.full((4, *GRID.shape), 4, np.uint8)
    scl[0, 100, 100] = 9  # a cloud and its rim of 2 px
    scl[:3, :10] = 8  # never clear, where the fourth is missing
    scl[3, :10] = 0
    scl[2, 0, 0] = 1  # saturated: not even for filling in
    steps = (500, 1000, 1101, 5000)
    days = ("2021-08-05", "2021-08-20", "2021-09-10", "2021-10-01")
    s2 = [s2_scene(tmp_path, f"s{i}", days[i], steps[i], scl[i]) for i in range(4)]
    got = whole_stack(build(tmp_path, [], s2, sensors=("sentinel2",)))
    assert set(got) == {"s2", "clear"}
    assert got["s2"].dtype == np.uint16
    assert got["clear"].dtype == np.uint8
    assert (got["clear"][0, :10] == 0).all()
    assert (got["clear"][0] == 3).sum() == 13  # the disc of the cloud
    assert (got["clear"][0, 10:12] == 1).all()  # the rim of the clouds; the rim of no data is clear
    assert got["clear"][0, 150, 150] == 4
    assert got["s2"][0, :, 150, 150].tolist() == [1051, 2051]  # between 1000 and 1101, rounded up
    assert got["s2"][0, :, 100, 102].tolist() == [1101, 2101]
    assert got["s2"][0, :, 5, 5].tolist() == [1000, 2000]
    assert got["s2"][0, :, 0, 0].tolist() == [750, 1750]


def test_unobserved_pixels_are_no_data(tmp_path):
    east = GRID.window(0, 200, 300, 100)
    s2 = [s2_scene(tmp_path, "a", "2021-08-05", 700, np.uint8(4), east)]
    got = whole_stack(build(tmp_path, [], s2))
    assert (got["s2"][..., :200] == 0).all()
    assert (got["s2"][0, 0, :, 200:] == 700).all()
    assert (got["clear"][0] == np.repeat([0, 1], [200, 100])).all()
    assert (got["s1"] == -32768).all()


@pytest.mark.parametrize("method", ["median", "mean"])
def test_cutting_into_blocks_changes_nothing(tmp_path, method):
    rng = np.random.default_rng(5)
    scl = np.where(rng.random((3, *GRID.shape)) < 0.002, 9, 4)
    s2 = [s2_scene(tmp_path, f"s{i}", f"2021-08-0{i + 1}", 400 + 150 * i, scl[i]) for i in range(3)]
    s1 = [s1_scene(tmp_path, "r", "2021-08-03", rng.random(GRID.shape))]
    options = {"masks": Masks(dilate_m=65), "composite": Composite(sentinel2=method)}
    one = whole_stack(build(tmp_path, s1, s2, **options))
    assert 0.2 < (one["clear"] < 3).mean() < 0.95
    for row, column, height, width in ((0, 0, 130, 300), (130, 0, 170, 141), (130, 141, 170, 159)):
        part = GRID.window(row, column, height, width)
        other = whole_stack(build(tmp_path, s1, s2, part, name=f"x{row}y{column}", **options), part)
        for name in one:
            assert (other[name] == one[name][..., row : row + height, column : column + width]).all(), name


@pytest.mark.parametrize(
    ("tag", "values"), [("orbit_state", ("ascending", "descending")), ("convention", ("gamma0", "sigma0"))]
)
def test_two_kinds_of_backscatter_never_meet(tmp_path, tag, values):
    s1 = [s1_scene(tmp_path, value, "2021-08-03", 0.1, **{tag: value}) for value in values]
    with pytest.raises(SettingError, match=f"{tag}.*{values[0]}.*{values[1]}"):
        build(tmp_path, s1, [])
    assert not list(tmp_path.glob("*.zarr.zip")) + list(tmp_path.glob(".*"))


def test_a_scene_without_a_band_is_named_and_nothing_is_left(tmp_path):
    s2 = [s2_scene(tmp_path, "thin", "2021-08-05", 700, np.uint8(4))]
    with pytest.raises(ProductError, match=r"thin.tif has no band B11"):
        build(tmp_path, [], s2, bands=("B02", "B11"))
    assert not list(tmp_path.glob("*.zarr.zip")) + list(tmp_path.glob(".*"))


def test_a_broken_scene_is_named(tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    with pytest.raises(ProductError, match=r"broken.tif cannot be opened"):
        build(tmp_path, [tmp_path / "broken.tif"], [])


def test_windows_are_parts_of_the_whole_and_bytes_repeat(tmp_path):
    rng = np.random.default_rng(6)
    s1 = [s1_scene(tmp_path, "r", "2021-09-03", rng.random(GRID.shape))]
    s2 = [s2_scene(tmp_path, "s", "2021-09-05", 700, rng.integers(2, 8, GRID.shape))]
    first = build(tmp_path, s1, s2)
    everything = whole_stack(first)
    window = read_stack(first, slice(100, 270), slice(3, 131))
    assert set(window) == {"s1", "distorted", "s2", "clear"}
    for name, array in window.items():
        assert (array == everything[name][..., 100:270, 3:131]).all()
    assert build(tmp_path, s1, s2, name="again").read_bytes() == first.read_bytes()


def test_a_rewritten_stack_is_read_anew(tmp_path):
    stack = build(tmp_path, [s1_scene(tmp_path, "r", "2021-09-03", 0.1)], [])
    assert whole_stack(stack)["s1"][1, 0, 0, 0] == -1000
    build(tmp_path, [s1_scene(tmp_path, "r", "2021-09-03", 0.01)], [])
    assert whole_stack(stack)["s1"][1, 0, 0, 0] == -2000


def test_a_broken_stack_is_named(tmp_path):
    stack = tmp_path / "x0y0.zarr.zip"
    stack.write_bytes(b"PK no zip")
    for read in (lambda: whole_stack(stack), lambda: open_stack(stack)):
        with pytest.raises(ProductError, match=r"x0y0.zarr.zip cannot be opened"):
            read()
    with pytest.raises(ProductError, match="absent"):
        read_stack(tmp_path / "absent.zarr.zip", slice(0, 1), slice(0, 1))


@pytest.mark.filterwarnings("error", "ignore::PendingDeprecationWarning")
def test_plain_xarray_opens_a_stack_with_units_and_place(tmp_path):
    s1 = [s1_scene(tmp_path, "r", "2021-09-03", 0.05)]
    s2 = [s2_scene(tmp_path, "s", "2021-09-05", 700, np.uint8(4))]
    stack = build(tmp_path, s1, s2)
    with xarray.open_zarr(zarr.storage.ZipStore(stack, mode="r")) as dataset:
        assert dataset.s1.dims == ("month", "polarisation", "y", "x")
        assert dataset.s2.dims == ("date", "band", "y", "x")
        assert dataset.clear.dims == ("date", "y", "x")
        assert dataset.month.values.tolist() == ["2021-08", "2021-09", "2021-10"]
        assert dataset.date.values.astype("datetime64[D]").tolist() == [PERIOD.start]
        assert dataset.y.values[[0, -1]].tolist() == [8000035, 8000040 - 2995]
        assert dataset.x.values[[0, -1]].tolist() == [600005, 600000 + 2995]
        assert dataset.rio.crs.to_epsg() == 32721
        assert dataset.rio.transform() == GRID.transform
        vv = dataset.s1.sel(month="2021-09", polarisation="VV")
        assert float(vv.isel(y=0, x=0)) == pytest.approx(-13.01)
        assert bool(dataset.s1.sel(month="2021-08").isnull().all())
        assert float(dataset.s2.sel(band="B08").isel(date=0, y=9, x=9)) == pytest.approx(0.17)
        assert dataset.clear.dtype == np.uint8
        assert dataset.s1.attrs["units"] == "dB"
    with open_stack(stack) as dataset:
        assert dataset.s2.isel(x=0, y=0).values.tolist() == [[pytest.approx(0.07), pytest.approx(0.17)]]


def test_tracks_meet_only_at_one_angle_and_decibels_become_power(tmp_path):
    tracks = [s1_scene(tmp_path, f"t{number}", "2021-09-03", 0.2, relative_orbit=str(number)) for number in (22, 95)]
    with pytest.raises(SettingError, match=r"differ in relative_orbit, 22 \(t22.tif\) and 95 .*normalise_deg"):
        build(tmp_path, tracks, [], sensors=("sentinel1",))
    at_one_angle = [
        s1_scene(tmp_path, "n22", "2021-09-03", 0.2, relative_orbit="22", normalised_deg="38"),
        s1_scene(tmp_path, "n95", "2021-09-04", -10, relative_orbit="95", normalised_deg="38", units="dB"),
    ]
    steps = whole_stack(build(tmp_path, at_one_angle, [], sensors=("sentinel1",)))["s1"]
    assert steps[1, 0, 5, 5] == round(1000 * np.log10((0.2 + 0.1) / 2))
    with pytest.raises(SettingError, match="differ in normalised_deg"):
        build(tmp_path, [at_one_angle[0], tracks[0]], [], sensors=("sentinel1",))


def test_layover_and_shadow_of_any_scene_are_kept(tmp_path):
    layer = np.zeros(GRID.shape, np.float32)
    layer[10:20, 30:40], layer[50, 50], layer[0, 0] = 1, 3, np.nan
    power = np.full((2, *GRID.shape), 0.1, np.float32)
    tags = {"datetime": "2021-09-03T10:00:00Z", "orbit_state": "ascending", "convention": "sigma0"}
    names = (*POLARISATIONS, "layover_shadow")
    array = np.concatenate([power, layer[None]])
    write_raster(tmp_path / "a.tif", array, GRID, nodata=np.nan, descriptions=names, tags=tags)
    plain = s1_scene(tmp_path, "b", "2021-09-09", 0.1, orbit_state="ascending")
    distorted = whole_stack(build(tmp_path, [tmp_path / "a.tif", plain], [], sensors=("sentinel1",)))["distorted"]
    np.testing.assert_array_equal(distorted, np.nan_to_num(layer) > 0)


def test_multitemporal_filter_lessens_speckle_and_knows_no_strips(tmp_path):
    rng = np.random.default_rng(3)
    days = ("2021-08-03", "2021-08-15", "2021-09-03", "2021-09-15")
    scenes = [s1_scene(tmp_path, day, day, rng.gamma(4.4, 0.1 / 4.4, GRID.shape)) for day in days]
    plain = whole_stack(build(tmp_path, scenes, [], sensors=("sentinel1",), name="plain"))["s1"]
    composite = Composite(multitemporal="quegan_yu", multitemporal_pixels=5)
    filtered = whole_stack(build(tmp_path, scenes, [], sensors=("sentinel1",), composite=composite))["s1"]
    assert filtered[0, 0].std() < 0.9 * plain[0, 0].std()
    assert abs((10 ** (filtered[0, 0] / 1000)).mean() / 0.1 - 1) < 0.01
    part = GRID.window(200, 100, 90, 80)
    alone = whole_stack(build(tmp_path, scenes, [], part, "part", sensors=("sentinel1",), composite=composite), part)[
        "s1"
    ]
    np.testing.assert_array_equal(alone, filtered[..., 200:290, 100:180])

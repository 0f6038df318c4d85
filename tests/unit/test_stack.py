"""Composites with hand-made answers, and the file that holds them."""

import json
import tracemalloc
import zipfile
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (gives datasets their .rio)
import xarray
import zarr

from covermap.area_settings import Composite, Masks, Period
from covermap.composite import (
    composite_power,
    composite_reflectance,
    fill_gaps,
    first_of,
    mean_of,
    median_of,
    medoid,
    middle_of,
    sorting_network,
    to_db_steps,
)
from covermap.errors import ProductError, SettingError
from covermap.grid import Grid
from covermap.raster import write_raster
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


def s2_scene(
    folder: Path,
    name: str,
    day: str,
    steps: int | np.ndarray,
    scl: np.ndarray | int = 4,
    grid: Grid = GRID,
    **tags: str,
) -> Path:
    """Scene of one reflectance, or of an array (y, x), in B02, and 1000 more in B08; no data where SCL is 0.

    ``day`` may go on with a time.
    """
    scl = np.broadcast_to(scl, grid.shape)
    array = np.stack([np.where(scl, steps, 0), np.where(scl, steps + 1000, 0), scl]).astype(np.uint16)
    path = folder / f"{name}.tif"
    counts = np.bincount(scl.ravel().astype(int), minlength=12)
    tags = {
        "datetime": day if "T" in day else f"{day}T14:00:00.024000Z",
        "platform": "sentinel-2a",
        "scl_counts": ",".join(map(str, counts)),
        **tags,
    }
    write_raster(path, array, grid, nodata=0, descriptions=(*BANDS, "SCL"), tags=tags)
    return path


def build(folder: Path, s1: list[Path], s2: list[Path], block: Grid = GRID, name: str = "x1y1", **changes) -> Path:
    settings = {
        "period": PERIOD,
        "sensors": BOTH,
        "bands": BANDS,
        "polarisations": POLARISATIONS,
        "masks": Masks(dilate_m=20, unmask_from=1),
        "composite": Composite(),
        **changes,
    }
    stack = folder / f"{name}.zarr.zip"
    stack_block(s1, s2, stack, block, **settings)
    return stack


def quality(folder: Path, scene: str, right: float, down: float, trusted: bool = True) -> Path:
    """What ``check_scene`` says of a scene that lies some pixels off."""
    path = folder / f"{scene}.json"
    shift = {"right_pixels": right, "down_pixels": down, "spread_pixels": 0.1, "patches": 9, "trusted": trusted}
    path.write_text(json.dumps({"scene": scene, "shift": shift}))
    return path


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
    got = composite_reflectance(values, used, "median")
    assert (got == np.floor(expected + 0.5)).all()  # half a step is rounded up
    floats = median_of(values.astype(np.float32), used)
    assert (floats == expected).all()


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
    assert set(got) == {"s2", "observed", "clear", "unmasked", "day"}
    assert got["s2"].dtype == np.uint16
    assert got["clear"].dtype == np.uint8
    assert (got["clear"][0, :10] == 0).all()
    assert (got["clear"][0] == 3).sum() == 13  # the disc of the cloud
    assert (got["clear"][0, 10:12] == 1).all()  # the rim of the clouds; the rim of no data is clear
    assert got["clear"][0, 150, 150] == 4
    assert [got["observed"][0, row, row] for row in (150, 5, 0)] == [4, 3, 2]
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


@pytest.mark.parametrize("method", ["median", "mean", "medoid", "least_cloudy", "first"])
@pytest.mark.parametrize("moved", [False, True])
def test_cutting_into_blocks_changes_nothing(tmp_path, method, moved):
    rng = np.random.default_rng(5)
    scl = np.kron(np.where(rng.random((4, 100, 100)) < 0.02, 9, 4), np.ones((3, 3), int))
    scl[3, :, :150], scl[2, :, 160:] = 0, 0  # two tiles of one overflight
    minutes = ("2021-08-01T14:00", "2021-08-02T14:00", "2021-09-03T14:00", "2021-09-03T14:05")
    steps = rng.integers(500, 900, (4, *GRID.shape))
    s2 = [s2_scene(tmp_path, f"s{i}", minutes[i], steps[i], scl[i]) for i in range(4)]
    s1 = [s1_scene(tmp_path, "r", "2021-08-03", rng.random(GRID.shape))]
    options = {
        "masks": Masks(dilate_m=65, erode_m=10),
        "composite": Composite(sentinel2=method, every="month", fill="nearest"),
        "quality": [quality(tmp_path, name, 1.3, -0.6) for name in ("s0", "s2", "r")] if moved else [],
    }
    one = whole_stack(build(tmp_path, s1, s2, **options))
    assert 0.2 < (one["clear"][0] < 2).mean() < 0.95
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
    assert set(window) == {"s1", "distorted", "s2", "observed", "clear", "unmasked", "day"}
    assert set(read_stack(first, slice(0, 9), slice(0, 9), ("day", "s2", "terrain"))) == {"s2", "day"}
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


def test_a_rotten_chunk_is_named(tmp_path):
    stack = build(tmp_path, [], [s2_scene(tmp_path, "s", "2021-09-05", 700, np.uint8(4))])
    with zipfile.ZipFile(stack) as archive:
        chunk = next(member for member in archive.infolist() if member.filename.startswith("s2/0"))
    kept = bytearray(stack.read_bytes())
    kept[chunk.header_offset + 30 + len(chunk.filename) + chunk.file_size // 2] ^= 1
    stack.write_bytes(kept)
    with pytest.raises(ProductError, match=r"zarr.zip cannot be read \(chunk .* is not what was written"):
        whole_stack(stack)


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
        assert (dataset.s1.attrs["scenes"], dataset.s2.attrs["scenes"]) == ("r", "s")
        assert "dilated by" in dataset.s2.attrs["masks"]
        assert all(dataset[name].attrs for name in ("date", "until", "month", "band", "polarisation", "x", "y"))
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


def test_the_middle_and_the_first_of_what_is_used():
    used = np.array([[1, 0, 0, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 1, 0], [0, 1, 1, 1, 0], [1, 0, 0, 0, 0]], bool)
    assert middle_of(used).tolist() == [1, 2, 3, 2, -1]
    assert first_of(used).tolist() == [0, 1, 3, 0, -1]


def test_medoid_is_the_observation_nearest_to_all_others():
    """Three in the plane of two bands: (0, 0), (3, 4), (3, 0); distances 5, 3, 4, so the sums are 8, 9 and 7."""
    points = np.array([[1, 1], [4, 5], [4, 1]], np.uint16)[:, :, None, None] * np.ones((1, 1, 1, 4), np.uint16)
    used = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool)[:, None]
    assert medoid(points, used).tolist() == [[2, 0, 0, -1]]  # of two the first


@pytest.mark.parametrize(
    ("method", "expected"),
    [("nearest", [100, 100, 100, 400, 400, 400]), ("linear", [100, 100, 175, 325, 400, 400])],
)
def test_gaps_are_closed_in_time(method, expected):
    values = np.zeros((6, 1, 1, 2), np.uint16)
    seen = np.zeros((6, 1, 2), bool)
    values[1, ..., 0], values[4, ..., 0] = 100, 400
    seen[[1, 4], :, 0] = True
    fill_gaps(values, seen, [0, 10, 20, 40, 50, 60], method)
    assert values[:, 0, 0, 0].tolist() == expected
    assert not values[..., 1].any()  # never seen


def of_methods(folder: Path, method: str, **changes) -> dict[str, np.ndarray]:
    """Stack of three dates, of which the second is the least cloudy; columns 0 to 9 are cloudy in all but the last."""
    scl = np.full((3, *GRID.shape), 4)
    scl[0, :, 200:], scl[2, :, 250:] = 9, 9
    scl[:2, :, :10] = 9
    days, steps = ("2021-08-11", "2021-08-31", "2021-10-05"), (900, 500, 700)
    s2 = [s2_scene(folder, f"s{2 - i}", days[i], steps[i], scl[i]) for i in range(3)]
    options = {"sensors": ("sentinel2",), "masks": Masks(dilate_m=0), "composite": Composite(sentinel2=method)}
    return whole_stack(build(folder, [], s2, **{**options, **changes}))


@pytest.mark.parametrize(
    ("method", "steps", "days"),
    [
        ("median", [700, 700, 600, 500], [278, 243, 243, 243]),
        ("mean", [700, 700, 600, 500], [278, 243, 243, 243]),
        ("medoid", [700, 700, 500, 500], [278, 278, 243, 243]),
        ("least_cloudy", [700, 500, 500, 500], [278, 243, 243, 243]),
        ("first", [700, 900, 500, 500], [278, 223, 243, 243]),
    ],
)
def test_methods_take_all_bands_from_one_day_and_tell_it(tmp_path, method, steps, days):
    got = of_methods(tmp_path, method)
    columns = [5, 100, 220, 280]
    assert got["s2"][0, 0, 150, columns].tolist() == steps
    assert got["s2"][0, 1, 150, columns].tolist() == [step + 1000 for step in steps]
    assert got["day"].dtype == np.int16
    assert got["day"][0, 150, columns].tolist() == days
    assert got["clear"][0, 150, columns].tolist() == [1, 3, 2, 1]
    assert not got["unmasked"].any()


def test_masks_that_hold_nearly_always_are_overruled_and_counted(tmp_path):
    got = of_methods(tmp_path, "median", masks=Masks(dilate_m=0, unmask_above=60, unmask_from=3), name="over")
    columns = [5, 100, 220, 280]
    assert got["s2"][0, 0, 150, columns].tolist() == [700, 700, 600, 700]  # 900, 500, 700 in the first and the last
    assert got["unmasked"][0, 150, columns].tolist() == [1, 0, 0, 1]
    assert got["clear"][0, 150, columns].tolist() == [1, 3, 2, 1]
    with open_stack(tmp_path / "over.zarr.zip") as stack:
        assert stack.unmasked.attrs["unmasked_pixels"] == 300 * (10 + 50)
    never = {"unmask_above": 100, "unmask_from": 1}, {"unmask_above": 60, "unmask_from": 4}  # of three observations
    for name, options in enumerate(never):
        kept = of_methods(tmp_path, "median", masks=Masks(dilate_m=0, classes=(4, 9), **options), name=f"never{name}")
        assert not kept["s2"].any() and not kept["unmasked"].any()


def test_scenes_above_the_limit_are_left_out(tmp_path, caplog):
    got = of_methods(tmp_path, "median", masks=Masks(dilate_m=0, max_scene=18))  # 110, 10 and 50 of 300 columns
    assert got["clear"][0, 150, [5, 100, 220, 280]].tolist() == [1, 2, 2, 1]
    assert "s2.tif: left out, 36.7 % masked, limit 18 %" in caplog.text


def test_a_scene_that_does_not_tell_its_classes_is_named(tmp_path):
    scene = s2_scene(tmp_path, "old", "2021-08-11", 500, scl_counts="1,2")
    for changes in ({"masks": Masks(max_scene=50)}, {"composite": Composite(sentinel2="least_cloudy")}):
        with pytest.raises(ProductError, match=r"old.tif has no usable tag 'scl_counts'"):
            build(tmp_path, [], [scene], sensors=("sentinel2",), **changes)


def test_tiles_of_one_overflight_are_one_observation(tmp_path):
    """The first clear by name, then the first observed; another satellite is another observation."""
    scl = np.full((3, *GRID.shape), 4)
    scl[0, :, 200:], scl[1, :, :100] = 0, 0  # a common strip of 100 columns
    scl[0, :150, 100:200] = 9
    scl[1, :20, 100:200] = 8
    times = ("2021-08-11T14:00:00Z", "2021-08-11T14:20:00Z", "2021-08-11T14:10:00Z")
    names, platforms = ("a", "b", "c"), ("sentinel-2a", "sentinel-2a", "sentinel-2b")
    s2 = [s2_scene(tmp_path, names[i], times[i], 500 + 100 * i, scl[i], platform=platforms[i]) for i in range(3)]
    options = {"sensors": ("sentinel2",), "masks": Masks(dilate_m=0, unmask_from=1)}
    got = whole_stack(build(tmp_path, [], s2[:2], **options))
    places = np.s_[[10, 100, 200, 100, 100], [150, 150, 150, 50, 250]]
    assert got["clear"][0][places].tolist() == [0, 1, 1, 1, 1]
    assert got["s2"][0, 0][places].tolist() == [500, 600, 500, 500, 600]
    both = whole_stack(build(tmp_path, [], s2, **options))
    assert both["clear"][0][places].tolist() == [1, 2, 2, 2, 2]
    assert both["s2"][0, 0][places].tolist() == [700, 650, 600, 600, 650]


def test_an_overflight_belongs_to_the_steps_of_its_scenes(tmp_path):
    """Across midnight, so that a block that sees one of the tiles alone puts it into the same step."""
    times = ("2021-08-31T23:50:00Z", "2021-09-01T00:05:00Z")
    s2 = [s2_scene(tmp_path, f"s{i}", times[i], 500 + 100 * i) for i in range(2)]
    for every, steps, clear in (("month", [500, 600, 0], [1, 1, 0]), ("period", [500], [1])):
        options = {"sensors": ("sentinel2",), "composite": Composite(every=every)}
        got = whole_stack(build(tmp_path, [], s2, **options))
        assert got["s2"][:, 0, 0, 0].tolist() == steps
        assert got["clear"][:, 0, 0].tolist() == clear
        if every == "month":
            alone = whole_stack(build(tmp_path, [], s2[1:], **options))
            assert alone["s2"][:, 0, 0, 0].tolist() == [0, 600, 0]


def test_months_are_steps_and_gaps_stay_unless_filled(tmp_path):
    days = ("2021-08-11", "2021-08-31", "2021-10-05", "2021-09-15")
    s2 = [s2_scene(tmp_path, f"s{i}", days[i], 100 + 200 * i, 4 if i < 3 else 9) for i in range(4)]
    options = {"sensors": ("sentinel2",), "masks": Masks(unmask_above=99)}
    plain = whole_stack(build(tmp_path, [], s2, composite=Composite(every="month"), name="plain", **options))
    assert plain["s2"][:, 0, 9, 9].tolist() == [200, 0, 500]
    assert plain["clear"][:, 9, 9].tolist() == [2, 0, 1]
    assert plain["day"][:, 9, 9].tolist() == [223, 0, 278]
    with open_stack(tmp_path / "plain.zarr.zip") as stack:
        starts, ends = (list(stack[name].values.astype("datetime64[D]").astype(str)) for name in ("date", "until"))
        assert starts == ["2021-08-01", "2021-09-01", "2021-10-01"]
        assert ends == ["2021-08-31", "2021-09-30", "2021-10-31"]
        assert (stack.s2.attrs["every"], stack.s2.attrs["method"], stack.s2.attrs["fill"]) == (
            "month",
            "median",
            "none",
        )
        assert np.isnan(stack.day.values[1]).all()
    for fill, value in (("nearest", 200), ("linear", 350)):  # from middle to middle are 30.5 days twice
        composite = Composite(every="month", fill=fill)
        filled = whole_stack(build(tmp_path, [], s2, composite=composite, name=fill, **options))
        assert filled["s2"][:, 0, 9, 9].tolist() == [200, value, 500]
        assert filled["clear"][1].max() == filled["day"][1].max() == filled["unmasked"].max() == 0


def test_the_area_gives_the_steps_and_the_season_leaves_scenes_out(tmp_path):
    s2 = [s2_scene(tmp_path, f"s{i}", f"2021-{month}", 100 + i) for i, month in enumerate(("08-11", "09-20", "10-05"))]
    steps = [(date(2021, 8, 5), date(2021, 8, 5)), (date(2021, 9, 20), date(2021, 9, 20))]
    options = {"sensors": ("sentinel2",)}
    got = whole_stack(build(tmp_path, [], s2, composite=Composite(every="scene"), steps=steps, **options))
    assert got["s2"][:, 0, 0, 0].tolist() == [0, 101]
    got = whole_stack(
        build(tmp_path, [], s2, composite=Composite(season=("09-01", "12-31"), sentinel2="first"), **options)
    )
    assert got["s2"][:, 0, 0, 0].tolist() == [101]
    with open_stack(tmp_path / "x1y1.zarr.zip") as stack:
        assert stack.s2.attrs["season"] == "09-01 to 12-31"


def test_a_step_that_a_block_does_not_see_is_empty_and_two_levels_never_meet(tmp_path):
    s2 = [s2_scene(tmp_path, level, "2021-08-11", 100, level=level) for level in ("L1C", "L2A")]
    build(tmp_path, [], s2[:1], sensors=("sentinel2",))
    with open_stack(tmp_path / "x1y1.zarr.zip") as stack:
        assert (stack.s2.attrs["long_name"], stack.s2.attrs["level"]) == ("top-of-atmosphere reflectance", "L1C")
    with pytest.raises(SettingError, match=r"Sentinel-2 scenes of one stack differ in level, L1C \(L1C.tif\) and L2A"):
        build(tmp_path, [], s2, sensors=("sentinel2",))


DIRECTED = [
    ("2021-08-20", 0.4, "ascending", "1"),
    ("2021-08-03", 0.1, "descending", "2"),
    ("2021-09-05", 0.2, "descending", "2"),
]


@pytest.mark.parametrize(
    ("directions", "method", "august", "september"),
    [
        ("apart", "mean", [0.4, 0.8, 0.1, 0.2], [None, None, 0.2, 0.4]),
        ("together", "mean", [0.25, 0.5], [0.2, 0.4]),
        ("together", "first", [0.1, 0.2], [0.2, 0.4]),
    ],
)
def test_directions_are_apart_or_together_when_asked(tmp_path, directions, method, august, september):
    s1 = [
        s1_scene(tmp_path, f"r{i}", day, power, orbit_state=state, relative_orbit=track)
        for i, (day, power, state, track) in enumerate(DIRECTED)
    ]
    composite = Composite(directions=directions, sentinel1=method)
    stack = build(tmp_path, s1, [], sensors=("sentinel1",), composite=composite)
    found = whole_stack(stack)["s1"][:2, :, 9, 9].tolist()
    told = [
        [-32768 if power is None else round(1000 * np.log10(power)) for power in month] for month in (august, september)
    ]
    assert found == told
    if directions == "apart":
        with open_stack(stack) as opened:
            assert list(opened.polarisation.values) == [
                "VV ascending",
                "VH ascending",
                "VV descending",
                "VH descending",
            ]
    s1.append(s1_scene(tmp_path, "other", "2021-08-09", 0.1, orbit_state="ascending", relative_orbit="7"))
    with pytest.raises(SettingError, match=r"differ in relative_orbit, 1 \(r0.tif\) and 7"):
        build(tmp_path, s1, [], sensors=("sentinel1",), composite=composite)


def test_directions_apart_need_to_be_known(tmp_path):
    scene = s1_scene(tmp_path, "a", "2021-08-09", 0.1, orbit_state="unknown")
    with pytest.raises(SettingError, match=r"a.tif has the orbit direction unknown, expected ascending or descending"):
        build(tmp_path, [scene], [], sensors=("sentinel1",), composite=Composite(directions="apart"))


def test_layers_of_the_ground_and_the_view(tmp_path):
    tags = {"datetime": "2021-09-03T10:00:00Z", "orbit_state": "ascending", "convention": "sigma0"}
    for name, angle in (("a", 38.004), ("b", 39.0)):
        layer = np.full(GRID.shape, angle, np.float32)
        layer[:, 200 if name == "a" else 250 :] = np.nan
        array = np.concatenate([np.full((2, *GRID.shape), 0.1, np.float32), layer[None]])
        names = (*POLARISATIONS, "incidence_angle")
        write_raster(tmp_path / f"{name}.tif", array, GRID, nodata=np.nan, descriptions=names, tags=tags)
    columns = np.broadcast_to(np.arange(400.0), (400, 400))
    dem = GRID.padded(50)
    write_raster(tmp_path / "dem.tif", (50 + columns)[None].astype(np.float32), dem, nodata=None)
    layers = ("slope", "incidence_angle", "elevation")
    radar = [tmp_path / "a.tif", tmp_path / "b.tif"]
    options = {"composite": Composite(layers=layers), "dem": tmp_path / "dem.tif"}
    stack = build(tmp_path, radar, [], sensors=("sentinel1",), **options)
    terrain = whole_stack(stack)["terrain"]
    assert terrain.shape == (1, 3, 300, 300)
    assert terrain.dtype == np.int16
    assert (terrain[0, 0] == round(100 * np.degrees(np.arctan(0.1)))).all()  # a metre on ten
    assert terrain[0, 1, 9, [100, 220, 280]].tolist() == [3850, 3900, -32768]
    assert terrain[0, 2, 9, [0, 130, 299]].tolist() == [100, 230, 399]
    with open_stack(stack) as opened:
        assert opened.attrs["layers"] == "slope,incidence_angle,elevation"
        assert float(opened.slope[9, 9]) == pytest.approx(5.71)
        assert float(opened.incidence_angle[9, 100]) == pytest.approx(38.5) and np.isnan(opened.incidence_angle[9, 280])
        assert float(opened.elevation[9, 130]) == 230
        assert [opened[layer].attrs["units"] for layer in layers] == ["degree", "degree", "m"]
    plain = s1_scene(tmp_path, "plain", "2021-09-04", 0.1)
    with pytest.raises(ProductError, match=r"plain.tif has no band incidence_angle"):
        build(tmp_path, [plain], [], sensors=("sentinel1",), **options)


def test_scenes_are_moved_back_where_their_shift_is_trusted(tmp_path):
    """A ramp of 8 steps a column; a scene that lies 1.25 px too far right reads 10 more once it is moved back."""
    ramp = np.broadcast_to(1000 + 8 * np.arange(300), GRID.shape)
    s2 = [s2_scene(tmp_path, "s", "2021-08-11", ramp)]
    power = ramp / 1e4
    s1 = [s1_scene(tmp_path, "r", "2021-08-11", 10 * np.log10(power), units="dB")]
    wrong = [quality(tmp_path, "s", 1.25, 0), quality(tmp_path, "r", 1.25, 0)]
    back = whole_stack(build(tmp_path, s1, s2, quality=wrong))
    assert (back["s2"][0, 0, 20:-20, 20:-20] == ramp[20:-20, 20:-20] + 10).all()
    np.testing.assert_array_equal(back["s1"][0, 0, 50, 20:280], np.rint(1000 * np.log10(power[50, 20:280] + 0.001)))
    assert (back["s2"][..., 10:-10, 20:-10] > 0).all()
    assert (back["s2"][0, 0, 20:-20, -1] == 0).all()  # nothing lies there
    doubted = [quality(tmp_path, "s", 1.25, 0, trusted=False)]
    assert (whole_stack(build(tmp_path, [], s2, quality=doubted))["s2"][0, 0] == ramp).all()


def test_windows_are_those_of_zarr_at_every_edge(tmp_path):
    rng = np.random.default_rng(1)
    scl = np.full(GRID.shape, 4)
    scl[:128, 128:256] = 0  # a chunk without data, which is not kept
    stack = build(tmp_path, [], [s2_scene(tmp_path, "s", "2021-08-11", rng.integers(1, 9999, GRID.shape), scl)])
    group = zarr.open_group(zarr.storage.ZipStore(stack, mode="r"), mode="r")
    for rows, columns in (
        (slice(0, 300), slice(0, 300)),
        (slice(127, 129), slice(255, 257)),
        (slice(290, 400), slice(299, 300)),
    ):
        for name, array in read_stack(stack, rows, columns).items():
            np.testing.assert_array_equal(array, group[name][..., rows, columns])
            assert array.dtype == group[name].dtype


def test_a_stack_that_was_cut_or_packed_anew_is_named(tmp_path):
    stack = build(tmp_path, [], [s2_scene(tmp_path, "s", "2021-08-11", 700)])
    with zipfile.ZipFile(stack) as old, zipfile.ZipFile(tmp_path / "new.zarr.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ProductError, match=r"new.zarr.zip cannot be opened \(its files are compressed"):
        whole_stack(tmp_path / "new.zarr.zip")
    stack.write_bytes(stack.read_bytes()[:-100])
    with pytest.raises(ProductError, match=r"x1y1.zarr.zip cannot be opened"):
        whole_stack(stack)


@pytest.mark.parametrize("composite", [Composite(), Composite(sentinel2="medoid", every="month", fill="linear")])
def test_memory_is_that_of_some_rows_whatever_the_height(tmp_path, composite):
    tall = GRID.window(0, 0, 1280, 400)
    scl = np.where(np.arange(400) < 50, 9, 4)
    s2 = [s2_scene(tmp_path, f"s{day}", f"2021-08-1{day}", 500 + day, scl, tall) for day in range(8)]
    options = {"sensors": ("sentinel2",), "composite": composite}
    build(tmp_path, [], s2, GRID.window(0, 0, 8, 8), **options)  # what is compiled once does not count
    peaks = []
    for height in (512, 1280):
        tracemalloc.start()
        build(tmp_path, [], s2, tall.window(0, 0, height, 400), **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]

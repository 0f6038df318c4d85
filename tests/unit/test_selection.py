"""Which scenes are taken, and what they leave; the rest stands in test_download."""

import numpy as np
import pytest
from shapely.geometry import box, mapping

from covermap.area_settings import Composite, Period, Sentinel2
from covermap.providers import Query
from covermap.scenes import meets, met_by, optical_bands, told_gaps
from covermap.selection import at_most, doubtful_months, gaps

AREA = box(10, 50, 11, 51)
SPRING = Period(start="2022-03-01", end="2022-05-31")


def item(name, time="2022-03-10T10:00:00Z", outline=AREA, sensor=2, **properties):
    return {
        "id": name,
        "geometry": mapping(outline),
        "properties": {"datetime": time, "platform": f"sentinel-{sensor}a", **properties},
        "assets": {},
    }


def test_met_by_many_is_as_meets():
    random = np.random.default_rng(0)
    corners = random.integers(0, 8, (60, 2))
    items = [item(f"i{number}", outline=box(x, y, x + 2, y + 1)) for number, (x, y) in enumerate(corners)]
    outlines = {f"x{x}y{y}": box(x, y, x + 1, y + 1) for x in range(9) for y in range(9)}
    met = met_by(items, outlines)
    assert met == {name: [one for one in items if meets(one, outline)] for name, outline in outlines.items()}
    assert any(met.values())


def found(items, sensor="sentinel2", composite=None, period=SPRING, **query):
    return gaps(sensor, items, Query(AREA, period, (sensor,), **query), composite or Composite())


WEST, EAST = box(9, 49, 10.5, 52), box(10.5, 49, 12, 52)


@pytest.mark.parametrize(
    ("composite", "expected"),
    [
        (Composite(), {}),
        (Composite(every="month"), {"2022-03": 0.495, "2022-04": 0.495, "2022-05": 1.0}),
        (Composite(every="quarter"), {"2022-03": 0.495, "2022-04-01 to 2022-05-31": 0.495}),
        (Composite(every="month", fill="linear"), {}),
        (Composite(every="scene"), {}),
        (Composite(dates=["2022-03-10"]), {"2022-03-01 to 2022-05-31": 0.495}),
        (Composite(dates=["2022-03-10", "2022-04-10"]), {}),
        (Composite(season=("03-01", "03-31")), {"2022-03-01 to 2022-05-31": 0.495}),
    ],
)
def test_steps_of_the_composite_must_be_covered(composite, expected):
    scenes = [item("a", "2022-03-10T10:00:00Z", WEST), item("b", "2022-04-10T10:00:00Z", EAST)]
    assert found(scenes, composite=composite) == expected


def test_every_month_of_radar_counts_whatever_the_composite():
    scenes = [item(f"m{month}", f"2022-0{month}-10T05:00:00Z", sensor=1) for month in (3, 5)]
    assert found(scenes, "sentinel1", Composite(season=("03-01", "03-31"))) == {"2022-04": 1.0}


def test_tracks_that_nobody_asks_for_do_not_count():
    def track(name, outline, number):
        state = {"sat:orbit_state": "ascending", "sat:relative_orbit": number}
        return item(name, "2022-03-10T05:00:00Z", outline, sensor=1, **state)

    march = {"period": Period(start="2022-03-01", end="2022-03-31"), "sensor": "sentinel1"}
    scenes = [track("a", WEST, 15), track("b", EAST, 88)]
    assert found(scenes, **march) == {}
    assert found(scenes, **march, relative_orbits=(15,)) == {"2022-03-01 to 2022-03-31": 0.495}


def test_a_gap_that_is_thinner_than_footprints_are_exact_is_none():
    assert found([item("a", outline=box(9, 49, 10.4995, 52)), item("b", outline=box(10.5005, 49, 12, 52))]) == {}


def test_gaps_in_words():
    assert told_gaps({"2022-03": 1.0, "2022-04": 0.1234}) == "2022-03 (all of it), 2022-04 (12.3 %)"
    assert told_gaps({f"2022-{month:02d}": 1.0 for month in range(1, 10)}).endswith("2022-06 (all of it) and 3 more")


def test_bands_that_are_read():
    assert optical_bands(Sentinel2(bands=("B04", "B02"))) == ["B02", "B04", "SCL"]
    with_model = optical_bands(Sentinel2(level="L1C", bands=("B04",), cloud_model="s2cloudless"))
    assert with_model == ["B01", "B02", "B04", "B05", "B08", "B09", "B10", "B11", "B12", "B8A"]


def picked(items, **per_month):
    return [one["id"] for one in at_most(items, per_month, Query(AREA, SPRING, tuple(per_month)))]


def tile(name, day, outline, cloud, track=8, tile="32UPB", **more):
    told = {"s2:mgrs_tile": tile, "sat:relative_orbit": track, "eo:cloud_cover": cloud}
    return item(name, f"2022-03-{day:02d}T10:00:00Z", outline, **told, **more)


def test_a_clear_sliver_takes_no_place_of_a_wide_pass():
    """Two tracks of a tile: what one of them sees alone needs its passes, whatever the other one has."""
    rest, sliver = box(10, 50, 10.9, 51), box(10.8, 50, 11, 51)
    scenes = [
        tile("wide_dim", 1, rest, 50),
        tile("wide_clear", 11, rest, 30),
        tile("sliver_clear", 4, sliver, 0, track=108),
        tile("sliver_dim", 14, sliver, 5, track=108),
    ]
    assert picked(scenes, sentinel2=1) == ["wide_clear", "sliver_clear"]
    assert found(scenes[1:3], composite=Composite(), period=SPRING) == {}


def test_a_pass_that_ends_in_the_tile_comes_after_a_whole_one():
    whole, half = tile("whole", 1, AREA, 50), tile("half", 6, box(10, 50, 10.5, 51), 0)
    assert picked([whole, half], sentinel2=1) == ["whole"]
    # unless the neighbours see the rest, or only the border of the swath has moved a little
    assert picked([whole, half, tile("next", 1, AREA, 90, tile="32UQB")], sentinel2=1) == ["half", "next"]
    assert picked([whole, tile("moved", 6, box(10.004, 50, 11, 51), 0)], sentinel2=1) == ["moved"]


def test_clouds_of_a_pass_are_those_of_all_its_parts():
    parts = [tile("small", 1, box(10, 50, 10.1, 51), 0), tile("large", 1, box(10.1, 50, 11, 51), 60)]
    assert picked([*parts, tile("other", 6, AREA, 50)], sentinel2=1) == ["other"]
    assert picked([*parts, tile("other", 6, AREA, 55)], sentinel2=1) == ["small", "large"]  # 54 % in all


@pytest.mark.parametrize(("missing", "taken"), [(0.004, "early"), (0.008, "late")])
def test_a_radar_pass_that_leaves_a_gap_comes_after_one_that_does_not(missing, taken):
    """Also where the gap is below a hundredth of the area; what footprints cannot tell is none."""
    track = {"sat:orbit_state": "ascending", "sat:relative_orbit": 15}
    early = item("early", "2022-03-02T05:00:00Z", box(10 + missing, 50, 11, 51), sensor=1, **track)
    late = item("late", "2022-03-14T05:00:00Z", AREA, sensor=1, **track)
    assert picked([early, late], sentinel1=1) == [taken]
    march = {"sensor": "sentinel1", "period": Period(start="2022-03-01", end="2022-03-31")}
    assert found([early], **march) == ({} if taken == "early" else {"2022-03-01 to 2022-03-31": 0.003})


def doubtful(*items, max_cloud=60):
    months = doubtful_months(items, Query(AREA, SPRING, ("sentinel2",), max_cloud=max_cloud))
    return [(str(month.start), str(month.end)) for month in months]


def test_months_in_which_a_newer_baseline_may_be_under_clouds():
    def baseline(number, month, cloud=10):
        time = f"2022-{month:02d}-10T10:00:00Z"
        return item(f"i{number}{month}", time, **{"s2:processing_baseline": number, "eo:cloud_cover": cloud})

    march, may = ("2022-03-01", "2022-03-31"), ("2022-05-01", "2022-05-31")
    assert doubtful(baseline("05.00", 3), baseline("05.00", 4)) == []
    assert doubtful(baseline("04.00", 5), baseline("04.00", 3)) == [march, may]
    assert doubtful(baseline("05.00", 3), baseline("05.10", 4)) == [march]
    assert doubtful(baseline("04.00", 3), max_cloud=100) == []
    assert doubtful(baseline("04.00", 3), baseline("05.00", 3, cloud=70)) == []  # nothing was left out
    assert doubtful(item("untold"), item("radar", sensor=1)) == []

"""Steps in time against a calendar on paper."""

from datetime import date

import pytest

from covermap.area_settings import Composite, Period
from covermap.dates import in_season, step_of, steps_of
from covermap.errors import CoverageError, SettingError

PERIOD = Period(start="2021-11-10", end="2022-04-20")
DAYS = [date(2022, 3, 5), date(2021, 11, 20), date(2022, 1, 2), date(2021, 11, 20), date(2023, 1, 1)]


def steps(period=PERIOD, days=DAYS, **composite):
    return [(str(first), str(last)) for first, last in steps_of(period, Composite(**composite), days)]


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        ("period", [("2021-11-10", "2022-04-20")]),
        ("year", [("2021-11-10", "2021-12-31"), ("2022-01-01", "2022-04-20")]),
        ("quarter", [("2021-11-10", "2021-12-31"), ("2022-01-01", "2022-03-31"), ("2022-04-01", "2022-04-20")]),
        ("scene", [("2021-11-20", "2021-11-20"), ("2022-01-02", "2022-01-02"), ("2022-03-05", "2022-03-05")]),
    ],
)
def test_steps_of_the_calendar_are_cut_to_the_period(every, expected):
    assert steps(every=every) == expected


def test_months_exist_without_scenes():
    found = steps(every="month", days=[])
    assert found[0] == ("2021-11-10", "2021-11-30")
    assert found[3] == ("2022-02-01", "2022-02-28")
    assert found[-1] == ("2022-04-01", "2022-04-20")
    assert len(found) == 6


def test_a_season_leaves_out_steps_without_a_day_of_it():
    two_years = Period(start="2020-01-01", end="2021-12-31")
    assert steps(two_years, every="quarter", season=("05-01", "09-30")) == [
        ("2020-04-01", "2020-06-30"),
        ("2020-07-01", "2020-09-30"),
        ("2021-04-01", "2021-06-30"),
        ("2021-07-01", "2021-09-30"),
    ]
    assert len(steps(two_years, every="year", season=("05-01", "09-30"))) == 2


def test_a_year_begins_with_a_season_that_crosses_new_year():
    years = Period(start="2020-07-01", end="2022-06-30")
    assert steps(years, every="year", season=("11-15", "02-15")) == [
        ("2020-11-15", "2021-11-14"),
        ("2021-11-15", "2022-06-30"),
    ]
    assert len(steps(years, every="year", season=("02-29", "02-10"))) == 3


@pytest.mark.parametrize(
    ("day", "season", "expected"),
    [
        ("2021-05-01", ("05-01", "09-30"), True),
        ("2021-09-30", ("05-01", "09-30"), True),
        ("2021-10-01", ("05-01", "09-30"), False),
        ("2021-12-31", ("11-01", "02-10"), True),
        ("2021-02-10", ("11-01", "02-10"), True),
        ("2021-02-11", ("11-01", "02-10"), False),
        ("2021-02-11", None, True),
    ],
)
def test_season(day, season, expected):
    assert in_season(date.fromisoformat(day), season) is expected


def test_dates_are_steps_in_order_of_time():
    assert steps(dates=["2022-03-05", "2021-11-20"]) == [("2021-11-20",) * 2, ("2022-03-05",) * 2]


@pytest.mark.parametrize(
    ("day", "days", "words"),
    [
        ("2022-01-03", DAYS, "has 2022-01-03, .* nearest days with one are 2022-01-02 and 2022-03-05, so name days"),
        ("2022-04-01", DAYS, "nearest days with one are 2022-03-05, so name days"),
        ("2022-04-01", [], "there is none at all"),
        ("2023-01-01", DAYS, "in the area's period"),
    ],
)
def test_a_date_without_a_scene_is_named_with_the_nearest_days(day, days, words):
    with pytest.raises(SettingError, match=words):
        steps(days=days, dates=[day])


def test_steps_that_do_not_exist_are_refused():
    with pytest.raises(SettingError, match="06-01 to 08-31 has no day from 2021-11-10 to 2022-04-20"):
        steps(season=("06-01", "08-31"))
    with pytest.raises(CoverageError, match=r"no Sentinel-2 scene from 2021-11-10 .* in the season 06-01 to 08-31"):
        steps(every="scene", season=("06-01", "08-31"))


def test_a_day_belongs_to_one_step_or_none():
    found = steps_of(PERIOD, Composite(every="month", season=("11-01", "03-15")), [])
    assert step_of(date(2022, 1, 31), found, ("11-01", "03-15")) == 2
    assert step_of(date(2022, 3, 16), found, ("11-01", "03-15")) is None
    assert step_of(date(2021, 11, 9), found, None) is None

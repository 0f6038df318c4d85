"""The steps in time of a stack's Sentinel-2, told from the calendar and the days with scenes. Light."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING

from covermap.errors import CoverageError, SettingError

if TYPE_CHECKING:
    from covermap.area_settings import Composite, Period

Season = tuple[str, str]
Step = tuple[date, date]  # first and last day, included

MONTHS = {"month": 1, "quarter": 3, "year": 12}


def steps_of(period: Period, composite: Composite, days: Iterable[date]) -> list[Step]:
    """First and last day of every Sentinel-2 step, in order of time.

    Months, quarters and years are those of the calendar, cut to the period; where the season crosses New Year, a year
    begins on the season's first day instead, so that none mixes the end of one season with the beginning of the next.

    Parameters
    ----------
    days : with a Sentinel-2 scene, of the whole area, so that all of its blocks have the same steps.

    Raises
    ------
    SettingError
        The season has no day in the period, or ``composite.dates`` one without a scene.
    CoverageError
        Steps are scenes, and there is none in the period and season.
    """
    wanted = sorted({day for day in days if period.start <= day <= period.end and in_season(day, composite.season)})
    if composite.dates:
        return _dated(composite.dates, wanted)
    if composite.every == "scene":
        if not wanted:
            raise CoverageError(
                f"composite.every is scene, but there is no Sentinel-2 scene from {period.start} to {period.end}"
                f"{_told(composite.season)}: widen the period, or let composite.every be another"
            )
        return [(day, day) for day in wanted]
    steps = [(first, last) for first, last in _calendar(period, composite) if _meets(first, last, composite.season)]
    if not steps:
        raise SettingError(
            f"composite.season{_told(composite.season)} has no day from {period.start} to {period.end}: mend the "
            "season or the period"
        )
    return steps


def step_of(day: date, steps: Sequence[Step], season: Season | None) -> int | None:
    """Number of the step that a scene of ``day`` belongs to, None where it belongs to none."""
    if not in_season(day, season):
        return None
    return next((number for number, (first, last) in enumerate(steps) if first <= day <= last), None)


def middle_day(step: Step, season: Season | None) -> float:
    """Middle of the days of a step that are in season, as an ordinal of the calendar."""
    days = range(step[0].toordinal(), step[1].toordinal() + 1)
    inside = [day for day in days if in_season(date.fromordinal(day), season)]
    return (inside[0] + inside[-1]) / 2


def step_names(every: str, firsts: Iterable[date]) -> list[str]:
    """What steps mean in any year, by their first days: months 01 to 12, quarters Q1 to Q4, others by number from 1."""
    if every == "month":
        return [f"{first:%m}" for first in firsts]
    if every == "quarter":
        return [f"Q{(first.month + 2) // 3}" for first in firsts]
    return [str(number) for number, _ in enumerate(firsts, 1)]


def in_season(day: date, season: Season | None) -> bool:
    """Whether a day lies in a season, first and last day (MM-DD) included; it may cross New Year."""
    if season is None:
        return True
    first, last = season
    place = f"{day:%m-%d}"
    return first <= place <= last if first <= last else place >= first or place <= last


def _dated(dates: Iterable[date], days: Sequence[date]) -> list[Step]:
    """Steps of one day each, all of which must have a scene."""
    for day in sorted(dates):
        if day not in days:
            near = [*[other for other in days if other < day][-1:], *[other for other in days if other > day][:1]]
            found = f"the nearest days with one are {' and '.join(map(str, near))}" if near else "there is none at all"
            raise SettingError(
                f"composite.dates has {day}, without a Sentinel-2 scene in the area's period and season: {found}, so "
                "name days with scenes"
            )
    return [(day, day) for day in sorted(dates)]


def _calendar(period: Period, composite: Composite) -> list[Step]:
    """Consecutive parts of the period."""
    if composite.every == "period":
        return [(period.start, period.end)]
    month, day = _new_year(composite)
    numbers = range(period.start.year * 12 - 12, period.end.year * 12 + 25)
    first = [number for number in numbers if (number % 12 + 1 - month) % MONTHS[composite.every] == 0]
    starts = [date(number // 12, number % 12 + 1, day) for number in first]
    ends = [start - timedelta(days=1) for start in starts[1:]]
    cut = [(max(start, period.start), min(end, period.end)) for start, end in zip(starts, ends, strict=False)]
    return [(start, end) for start, end in cut if start <= end]


def _new_year(composite: Composite) -> tuple[int, int]:
    """Month and day on which steps begin to be counted."""
    if composite.every != "year" or composite.season is None or composite.season[0] <= composite.season[1]:
        return 1, 1
    month, day = map(int, composite.season[0].split("-"))
    return month, 28 if (month, day) == (2, 29) else day


def _meets(first: date, last: date, season: Season | None) -> bool:
    days = min((last - first).days + 1, 366)
    return any(in_season(first + timedelta(days=number), season) for number in range(days))


def _told(season: Season | None) -> str:
    return f" in the season {season[0]} to {season[1]}" if season else ""

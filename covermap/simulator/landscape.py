"""The made-up land: what covers it, how it is cut into parcels, and how high it lies.

An agricultural frontier such as northern Mato Grosso: a meandering river with its floodplain, natural mosaics of
forest, savanna and grassland, fields and pastures cut into them, plantation stands, settlements and roads. Shares
follow the spirit of the published data set, rare classes are made more frequent so that each can be tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from covermap.simulator.farmland import fields, pastures, rectangles, stands
from covermap.simulator.random_fields import Floats, Ids, Mask, cells, fractal

CRS = "EPSG:32721"
PIXEL_M = 10.0
MARGIN = 120  # pixels beyond the world on each side, so that scenes reach past it
WORLD_LEFT, WORLD_TOP = 778_240.0, 8_515_200.0  # upper left corner of the world [m]

FOREST, SAVANNA, PLANTATION, WETLAND, GRASSLAND = 3, 4, 9, 11, 12
PASTURE, CROP, URBAN, BARE, WATER = 15, 19, 24, 25, 33
CLASSES = (FOREST, SAVANNA, PLANTATION, WETLAND, GRASSLAND, PASTURE, CROP, URBAN, BARE, WATER)

# Aimed shares of the world [1]; what is left is natural cover, shared out by NATURAL_SHARES from dry to moist.
SHARES = {PLANTATION: 0.028, WETLAND: 0.040, PASTURE: 0.200, CROP: 0.135, URBAN: 0.015, BARE: 0.021, WATER: 0.019}
NATURAL_SHARES = {GRASSLAND: 0.23, SAVANNA: 0.44, FOREST: 0.33}
CHANGED_SHARE = 0.05  # share of the area whose cover was another a year before


@dataclass(frozen=True)
class Landscape:
    """Truth at 10 m with a margin: arrays are (y, x), north up.

    ``left`` and ``top`` are the outer corner of the first pixel in metres, margin included; ``margin`` is the number
    of pixels on each side that lie outside the world. ``classes`` and ``previous`` (a year earlier) are uint8
    MapBiomas codes. ``parcels`` (int32, from 0, without gaps) is constant over one field, stand or coherent patch of
    natural cover and never crosses a class border. ``height_m`` is float32 above the WGS 84 ellipsoid.
    """

    crs: str
    left: float
    top: float
    pixel_m: float
    margin: int
    classes: NDArray[np.uint8]
    parcels: Ids
    height_m: NDArray[np.float32]
    previous: NDArray[np.uint8]


def make_landscape(pixels: int, seed: int) -> Landscape:
    """Landscape of a world of ``pixels`` x ``pixels`` at 10 m, the same for the same ``pixels`` and ``seed``."""
    shape = (pixels + 2 * MARGIN, pixels + 2 * MARGIN)
    rng = np.random.default_rng([seed, 1])
    river, streams, water = _rivers(rng, shape)
    to_river, to_stream = _distance(river), _distance(streams)
    height_m, slope = _terrain(rng, shape, to_stream)
    moist = 1.7 * np.exp(-to_stream / 9) + 1.2 * np.exp(-to_river / 25)

    classes = np.zeros(shape, np.uint8)
    parcels = np.zeros(shape, np.int32)
    zone = fractal(rng, shape, 700, 3.2) - 2.2 * np.exp(-to_stream / 18) - 1.5 * np.exp(-to_river / 50) - 9 * slope
    arable = zone + 0.8 * fractal(rng, shape, 900, 3.2)
    grazing = zone - 0.3 * arable + 0.6 * fractal(rng, shape, 500, 3.0)
    _plant(rng, classes, parcels, PLANTATION, stands(rng, zone))
    _plant(rng, classes, parcels, CROP, fields(rng, arable))
    _plant(rng, classes, parcels, PASTURE, pastures(rng, grazing))

    natural = _natural(rng, classes == 0, moist, slope)
    farmed = classes.copy()
    classes[classes == 0] = natural[classes == 0]
    wet = _wetland(rng, (to_river, to_stream), farmed == 0)
    classes[wet] = natural[wet] = WETLAND
    _settle(rng, classes, parcels, slope)
    _lay_bare(rng, classes, slope, to_river)
    _flood(rng, classes, water)

    parcels = _patches(rng, classes, parcels)
    previous = _a_year_before(rng, classes, parcels, natural)
    left, top = WORLD_LEFT - MARGIN * PIXEL_M, WORLD_TOP + MARGIN * PIXEL_M
    return Landscape(CRS, left, top, PIXEL_M, MARGIN, classes, parcels, height_m, previous)


# ---------------------------------------------------------------------------------------------- water and terrain


def _rivers(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Mask, Mask, Mask]:
    """Centre line of the river, centre lines of all streams, and open water (river, lower streams, oxbow lakes)."""
    size = shape[0]
    main, streams, water = (np.zeros(shape, bool) for _ in range(3))
    ends = (1.02 * size, rng.uniform(0.2, 0.35) * size), (-0.02 * size, rng.uniform(0.5, 0.65) * size)
    course = _meander(rng, *ends, wavelength_px=170, swing=1.25)
    width = 4.6 + 1.2 * np.sin(np.arange(len(course)) / 60 + rng.uniform(0, 6))
    _draw(main, course, 0.6 + 0 * width)
    _draw(water, course, width)
    former = _meander(rng, *ends, wavelength_px=150, swing=1.45)  # an old course, of which only lakes are left
    lakes = np.sin(np.arange(len(former)) / 28 + rng.uniform(0, 6)) > 0.25
    arms = np.zeros(shape, bool)
    _draw(arms, former[lakes], np.full(int(lakes.sum()), 3.4))
    water |= arms & (_distance(main) < 45)
    streams |= main
    for k in range(max(4, round(size / 190))):
        mouth = course[int((k + rng.uniform(0.3, 0.7)) / max(4, round(size / 190)) * (len(course) - 1))]
        side = 1 if k % 2 else -1
        reach = rng.uniform(0.3, 0.6) * size * (1 if side < 0 else 1.1)
        source = mouth + np.array([rng.uniform(-0.25, 0.1) * size, side * reach])
        branch = _meander(rng, tuple(mouth), tuple(source), wavelength_px=95, swing=0.85)
        _draw(streams, branch, np.full(len(branch), 0.6))
        taper = np.linspace(3.2, -1.5, len(branch))
        _draw(water, branch[taper > 1.6], taper[taper > 1.6])
    return main, streams, water


def _meander(
    rng: np.random.Generator, start: tuple[float, ...], end: tuple[float, ...], wavelength_px: float, swing: float
) -> NDArray[np.float64]:
    """Sine-generated curve (point, [row, column]) with points about half a pixel apart (Langbein & Leopold 1966)."""
    straight = np.hypot(end[0] - start[0], end[1] - start[1])
    steps = int(4.2 * straight)
    phase = np.cumsum(2 * np.pi / (2 * wavelength_px) * (1 + 0.5 * _wander(rng, steps, 150)))
    direction = swing * (1 + 0.3 * _wander(rng, steps, 200)) * np.sin(phase) + 0.5 * _wander(rng, steps, 500)
    path = np.cumsum(0.5 * np.exp(1j * direction))
    first, last = complex(start[0], start[1]), complex(end[0], end[1])
    path = first + (path - path[0]) * (last - first) / (path[-1] - path[0])
    return np.column_stack([path.real, path.imag])


def _wander(rng: np.random.Generator, steps: int, length: float) -> NDArray[np.float64]:
    """Smooth noise along a line, mean 0 and deviation 1."""
    noise = ndimage.gaussian_filter1d(rng.standard_normal(steps), length, mode="wrap")
    return noise / noise.std()


def _draw(mask: Mask, course: NDArray[np.float64], radius_px: NDArray[np.float64]) -> None:
    """Set the pixels of ``mask`` that lie within ``radius_px`` of the points of ``course``."""
    for (row, column), radius in zip(course[::2], radius_px[::2], strict=True):
        window, away2 = _around(mask.shape, row, column, radius)
        mask[window] |= away2 <= radius**2


def _around(shape: tuple[int, ...], row: float, column: float, radius: float) -> tuple[tuple[slice, slice], Floats]:
    """Window of ``shape`` about a point and the squared distances of its pixels to it."""
    r0, r1 = max(0, int(row - radius)), min(shape[0], int(row + radius) + 2)
    c0, c1 = max(0, int(column - radius)), min(shape[1], int(column + radius) + 2)
    r1, c1 = max(r0, r1), max(c0, c1)
    away2 = (np.arange(r0, r1)[:, None] - row) ** 2 + (np.arange(c0, c1)[None] - column) ** 2
    return (slice(r0, r1), slice(c0, c1)), away2


def _distance(mask: Mask) -> Floats:
    """Distance of each pixel to the nearest set one [px], float32, found on half the resolution."""
    half = mask[::2, ::2] | mask[1::2, ::2] | mask[::2, 1::2] | mask[1::2, 1::2]
    away = 2 * ndimage.distance_transform_edt(~half).astype(np.float32)
    return ndimage.gaussian_filter(away.repeat(2, 0).repeat(2, 1), 1.0)


def _terrain(rng: np.random.Generator, shape: tuple[int, int], to_stream: Floats) -> tuple[Floats, Floats]:
    """Ellipsoidal height [m] and slope [m/m]: valleys along the streams, swells between them, a few steep ridges."""
    smooth = ndimage.zoom(ndimage.gaussian_filter(to_stream[::8, ::8], 2.5), 8, order=1, grid_mode=True, mode="nearest")
    rise = 95 * (1 - np.exp(-smooth[: shape[0], : shape[1]] / 220)) * (1 + 0.25 * fractal(rng, shape, 600, 3, 60))
    tilt = np.linspace(-12, 12, shape[0], dtype=np.float32)[:, None]
    height = 290 + rise + tilt + 9 * fractal(rng, shape, 500, 3.4, 35)
    crests = np.zeros(shape, np.float32)
    for k in range(max(2, round(shape[0] / 330))):
        row, column = np.array(_spread(k, rng.uniform(0, 1))) * shape
        angle, half_length = rng.uniform(0, np.pi), rng.uniform(90, 200)
        window, _ = _around(shape, row, column, 1.4 * half_length + 70)
        y, x = np.mgrid[window]
        y, x = y - row, x - column
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        across = across + 25 * np.sin(along / 70 + k)
        ends = np.exp(-((np.abs(along) / half_length) ** 4))
        np.maximum(crests[window], ends * np.exp(-((across / 24.0) ** 2)), out=crests[window], casting="same_kind")
    away_from_water = 1 - np.exp(-((to_stream / 45) ** 2))
    height += 68 * crests * away_from_water * (1 + 0.14 * fractal(rng, shape, 120, 3, 22))
    height = ndimage.gaussian_filter(height.astype(np.float32), 2)
    dy, dx = np.gradient(height, np.float32(PIXEL_M))
    return height, np.hypot(dy, dx)


def _spread(k: int, start: float) -> tuple[float, float]:
    """``k``-th of points spread evenly over the unit square (additive recurrence of the plastic number)."""
    return (start + 0.7548776662 * k) % 1, (start * 7 + 0.5698402910 * k) % 1


# ------------------------------------------------------------------------------------------- planted and natural cover


def _plant(rng: np.random.Generator, classes: NDArray[np.uint8], parcels: Ids, code: int, ranks: Ids) -> None:
    """Give ``code`` to the best ranked parcels where nothing lies yet until its share of the world is met."""
    free = (classes == 0) & (ranks >= 0)
    area = np.bincount(ranks[free], minlength=int(ranks.max()) + 1)
    whole = np.bincount(ranks[ranks >= 0], minlength=area.size)
    area[area < 0.4 * whole] = 0  # a sliver beside something else makes no field
    last = int(np.searchsorted(np.cumsum(area), SHARES[code] * classes.size))
    taken = free & (ranks <= last) & (area > 0)[ranks]
    classes[taken] = code
    parcels[taken] = ranks[taken] + 1


def _natural(rng: np.random.Generator, free: Mask, moist: Floats, slope: Floats) -> NDArray[np.uint8]:
    """Grassland, savanna and forest everywhere, along a gradient of woodiness, with its shares met where ``free``."""
    shape = free.shape
    wood = 0.95 * fractal(rng, shape, 420, 3.2, 10) + moist + 2.5 * slope + 0.28 * fractal(rng, shape, 70, 2.6, 11)
    reserves = rectangles(rng, shape, 9000, 60_000)  # forest kept by law has the straight edges of its estate
    wood += (rng.uniform(size=int(reserves.max()) + 1) > 0.82).astype(np.float32)[reserves] * 1.1
    bounds = np.quantile(wood[free][::7], np.cumsum(list(NATURAL_SHARES.values()))[:2])
    return np.array(list(NATURAL_SHARES), np.uint8)[np.digitize(wood, bounds)]


def _wetland(rng: np.random.Generator, away: tuple[Floats, Floats], free: Mask) -> Mask:
    """Floodplain of the river and of its tributaries, broken by gallery forest on the levees."""
    to_river, to_stream = away
    level = 2.2 * np.exp(-((to_river / 42) ** 2)) + 1.7 * np.exp(-((to_stream / 15) ** 2))
    level += 0.75 * fractal(rng, free.shape, 70, 2.6, 9)
    level[~free] = -np.inf
    return level > np.quantile(level[::3, ::3], 1 - SHARES[WETLAND])


# ------------------------------------------------------------------------------------------- settlements and such


def _blob(
    rng: np.random.Generator, shape: tuple[int, int], row: float, column: float, radius: float
) -> tuple[tuple[slice, slice], Mask]:
    """Window and mask of a lobed ellipse of about ``radius`` pixels."""
    window, _ = _around(shape, row, column, 2 * radius)
    y, x = np.mgrid[window]
    turn, long = rng.uniform(0, np.pi), rng.uniform(1, 1.7)
    u = ((y - row) * np.cos(turn) + (x - column) * np.sin(turn)) * np.sqrt(long)
    v = ((x - column) * np.cos(turn) - (y - row) * np.sin(turn)) / np.sqrt(long)
    angle, edge = np.arctan2(u, v), np.ones(u.shape)
    for wave in (2, 3, 5):
        edge += 0.09 * rng.standard_normal() * np.sin(wave * angle + rng.uniform(0, 6.3))
    return window, np.hypot(u, v) < radius * edge


def _site(rng: np.random.Generator, k: int, start: float, score: Floats, candidates: int = 12) -> tuple[float, float]:
    """Pixel with the best of some scores about the ``k``-th evenly spread place."""
    spread = np.array(_spread(k, start))[:, None] + rng.uniform(-0.06, 0.06, (2, candidates))
    rows, columns = ((spread % 1) * (np.array(score.shape)[:, None] - 1)).astype(int)
    best = int(score[rows, columns].argmax())
    return float(rows[best]), float(columns[best])


def _settle(rng: np.random.Generator, classes: NDArray[np.uint8], parcels: Ids, slope: Floats) -> None:
    """Town, villages and farmsteads until the share of urban land is met, and the roads that join them."""
    farmed = ndimage.uniform_filter(np.isin(classes, (PASTURE, CROP)).astype(np.float32), 41)
    score = farmed - 8 * slope - 5 * (ndimage.uniform_filter((classes == WETLAND).astype(np.float32), 31) > 0)
    size, start = classes.shape[0], rng.uniform()
    town = np.array([0.42, 0.68]) * size
    village_sites = [_site(rng, k, start, score) for k in range(max(5, round((size / 560) ** 2)))]
    _roads(rng, classes, town, village_sites)
    radius = 66 * np.sqrt(size / 2288)
    _blocks(rng, classes, parcels, town[0], town[1], radius)
    for row, column in village_sites:
        _blocks(rng, classes, parcels, row, column, radius * rng.uniform(0.22, 0.42))
    wanted, k = SHARES[URBAN] * classes.size, 0
    while (classes == URBAN).sum() < wanted:
        row, column = _site(rng, k, start + 0.37, score, 6)
        _blocks(rng, classes, parcels, row, column, rng.uniform(7, 12))
        k += 1


def _blocks(
    rng: np.random.Generator, classes: NDArray[np.uint8], parcels: Ids, row: float, column: float, radius: float
) -> None:
    """Settlement of whole street blocks; each block and the streets between them are parcels."""
    window, _ = _around(classes.shape, row, column, 1.6 * radius)
    y, x = np.mgrid[window]
    turn = rng.uniform(-0.5, 0.5)
    u = (y - row) * np.cos(turn) + (x - column) * np.sin(turn)
    v = (x - column) * np.cos(turn) - (y - row) * np.sin(turn)
    block_u, block_v = np.floor(u / 9).astype(int), np.floor(v / 12).astype(int)
    middle = np.hypot((block_u + 0.5) * 9, (block_v + 0.5) * 12)
    number = (block_u + 64) * 128 + block_v + 64
    lot = rng.uniform(size=128 * 128)
    built = (middle < radius * (0.78 + 0.4 * lot[number])) & ~((lot[number] > 0.9) & (middle > 0.4 * radius))
    built &= classes[window] != WATER
    street = (u % 9 < 1.3) | (v % 12 < 1.3)
    classes[window][built] = URBAN
    parcels[window][built] = np.where(street, 1, 2 + number)[built]


def _roads(
    rng: np.random.Generator, classes: NDArray[np.uint8], town: NDArray[np.float64], villages: list[tuple[float, float]]
) -> None:
    """Paved roads (part of urban land) from edge to edge through the town, dirt roads from the villages to it."""
    size = classes.shape[0]
    paved, dirt = np.zeros(classes.shape, bool), np.zeros(classes.shape, bool)
    gates = np.array([[0.31, -0.02], [0.66, 1.02], [-0.02, 0.8]]) * size
    highways = np.concatenate([_line(rng, gate, town, 0.03) for gate in gates])
    _draw(paved, highways, np.full(len(highways), 1.55))
    for village in villages:
        joint = highways[np.hypot(*(highways - village).T).argmin()]
        line = _line(rng, np.array(village), joint, 0.06)
        _draw(dirt, line, np.full(len(line), 1.2))
    classes[dirt & (classes != WETLAND)] = BARE
    classes[paved] = URBAN


def _line(
    rng: np.random.Generator, start: NDArray[np.float64], end: NDArray[np.float64], bend: float
) -> NDArray[np.float64]:
    """Points half a pixel apart along straight stretches with a few bends."""
    far = np.hypot(*(end - start))
    knots = np.linspace(0, 1, 5)
    aside = bend * far * rng.standard_normal(5) * np.sin(np.pi * knots)
    across = np.array([-(end - start)[1], (end - start)[0]]) / far
    t = np.linspace(0, 1, int(2 * far) + 2)
    return start + t[:, None] * (end - start) + np.interp(t, knots, aside)[:, None] * across


def _lay_bare(rng: np.random.Generator, classes: NDArray[np.uint8], slope: Floats, to_river: Floats) -> None:
    """Rock on ridges, sand by the river, pits and eroded ground elsewhere until the share of bare ground is met."""
    open_land = np.isin(classes, (SAVANNA, GRASSLAND, PASTURE, FOREST))
    anywhere = open_land.astype(np.float32)
    rock, sand = anywhere + 3 * slope, 0.2 * anywhere - np.abs(to_river - 13) / 20
    start, missing, k = rng.uniform(), SHARES[BARE] * classes.size - (classes == BARE).sum(), 0
    while missing > 0:
        score = (rock, sand, anywhere)[k % 3]
        row, column = _site(rng, k, start, score, 10)
        window, mask = _blob(rng, classes.shape, row, column, rng.uniform(8, 21))
        new = mask & (classes[window] != URBAN) & (classes[window] != BARE)
        classes[window][new] = BARE
        missing, k = missing - new.sum(), k + 1


def _flood(rng: np.random.Generator, classes: NDArray[np.uint8], water: Mask) -> None:
    """Open water of the river system, then farm ponds until the share of water is met."""
    classes[water & (classes != URBAN)] = WATER
    farmed = np.isin(classes, (PASTURE, CROP, SAVANNA)).astype(np.float32)
    start, wanted, k = rng.uniform(), SHARES[WATER] * classes.size, 0
    fewest = max(8, round(classes.size / 110_000))
    while (classes == WATER).sum() < wanted or k < fewest:
        row, column = _site(rng, k, start, farmed, 4)
        window, mask = _blob(rng, classes.shape, row, column, rng.uniform(5, 12))
        classes[window][mask & (classes[window] != URBAN)] = WATER
        k += 1


# ----------------------------------------------------------------------------------------------- patches and time


def _patches(rng: np.random.Generator, classes: NDArray[np.uint8], parcels: Ids) -> Ids:
    """Final parcels: fields and street blocks as they are, anything else in coherent cells; ids without gaps."""
    cell = cells(rng, classes.shape, 42, 11)
    whole = np.isin(classes, (PASTURE, CROP, PLANTATION))
    fine = classes == URBAN
    key = np.where(whole, parcels, cell).astype(np.int64)
    key[fine] = cell[fine].astype(np.int64) * 20_000 + parcels[fine]
    key = key * 64 + classes
    _, ids = np.unique(key, return_inverse=True)
    return ids.reshape(classes.shape).astype(np.int32)


def _a_year_before(
    rng: np.random.Generator, classes: NDArray[np.uint8], parcels: Ids, natural: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Classes of the year before: some fields were pasture, some pastures, stands and pits not yet cleared."""
    previous = classes.copy()
    sizes, budget = np.bincount(parcels.ravel()), CHANGED_SHARE * classes.size
    code = np.zeros(sizes.size, np.uint8)
    code[parcels.ravel()] = classes.ravel()
    before = np.zeros(sizes.size, np.uint8)  # 0 = no change, 255 = the natural cover
    for parcel in rng.permutation(np.flatnonzero(np.isin(code, (CROP, PASTURE, PLANTATION, BARE)))):
        if budget <= 0:
            break
        if rng.uniform() < {CROP: 0.5, PASTURE: 0.6, PLANTATION: 0.4, BARE: 0.15}[int(code[parcel])]:
            cleared = code[parcel] != CROP or rng.uniform() < 0.35
            before[parcel] = 255 if cleared else PASTURE
            budget -= sizes[parcel]
    change = before[parcels]
    previous[change == PASTURE] = PASTURE
    previous[change == 255] = natural[change == 255]
    return previous

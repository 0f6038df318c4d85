"""Pictures of what was seen: with fixed stretches, tones over what is masked, a scale bar and lines of figures.

Stretches are fixed, so that two dates can be compared by eye.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TRUE_COLOUR = ("B04", "B03", "B02")
LEAST_PIXELS = 480  # of a picture's longer side: smaller ones are enlarged
WHITE_REFLECTANCE, KNEE_REFLECTANCE = 1.2, 0.15
DB_RANGES = ((-20.0, 0.0), (-27.0, -7.0), (2.0, 14.0))  # co- and cross-polarised backscatter, and their difference
CHANNELS = {"red": (204, 0, 0), "green": (0, 150, 0), "blue": (0, 0, 204), "grey": (128, 128, 128)}
TONES = {
    "cloud": (232, 62, 140),
    "shadow": (84, 72, 214),
    "snow": (0, 178, 214),
    "defective": (214, 40, 40),
    "other": (120, 120, 120),
    "rim": (255, 216, 0),
    "layover, shadow": (214, 40, 40),
}
TONE_SHARE = 0.4
HATCH_PIXELS, HATCH = 8, (222, 205)
HATCHED = "hatched"  # the mark of what has no value
PAPER, INK = (252, 251, 248), (29, 31, 30)
OVER_DARK, OVER_BRIGHT = 45, 235  # greys of forest and of clouds, over which a swatch shows its tone
TEXT_PIXELS, LINE_PIXELS, GAP_PIXELS, MARGIN_PIXELS = 15, 23, 20, 12
SPACE_PIXELS, MINUS_PIXELS = 5, 9  # before the words behind a mark; a minus with the space around it
BAR_SHARE = 0.2  # of the picture's width, at most
Colour = tuple[int, int, int]
Mark = str | Colour | float | None  # a tone, channel or colour, or the length of a scale bar [px of the picture]
Note = tuple[Mark, str]  # what stands before the words, and the words


def draw_reflectance(bands: np.ndarray) -> np.ndarray:
    """Picture uint8 (y, x, 3) of reflectance, float (3, y, x) in red, green, blue or (1, y, x); hatched where NaN.

    Brightness is that of a hyperbola, steep over dark ground and flat over bright one: forest is no black hole, clouds
    keep their texture and stay brighter than roofs and sand.
    """
    steepness = 1 + KNEE_REFLECTANCE / WHITE_REFLECTANCE
    return _drawn(steepness * bands / (np.maximum(bands, 0) + KNEE_REFLECTANCE))


def draw_backscatter(decibels: np.ndarray) -> np.ndarray:
    """Picture uint8 (y, x, 3) of backscatter, float (polarisation, y, x) in dB; hatched where NaN.

    Red is the first polarisation, green the second, blue the first less the second; one alone is grey.
    """
    if len(decibels) > 1:
        decibels = np.stack([decibels[0], decibels[1], decibels[0] - decibels[1]])
    ranges = np.array(DB_RANGES[: len(decibels)])
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    return _drawn((decibels - low) / (high - low))


def colour_key(polarisations: Sequence[str]) -> list[Note]:
    """What the colours of `draw_backscatter` are."""
    if len(polarisations) > 1:
        first, second = polarisations[:2]
        shown = {"red": first, "green": second, "blue": f"{first} − {second}"}
    else:
        shown = {"grey": polarisations[0]}
    return [
        (channel, f"{name} {low:g} to {high:g} dB".replace("-", "−"))
        for (channel, name), (low, high) in zip(shown.items(), DB_RANGES, strict=False)
    ]


def _drawn(shares: np.ndarray) -> np.ndarray:
    """Picture of shares of white."""
    empty = ~np.isfinite(shares).all(axis=0)
    picture = np.rint(np.clip(np.where(empty, 0, shares), 0, 1) * 255).astype(np.uint8)
    drawn = np.where(empty, hatched(empty.shape), picture)
    return np.broadcast_to(drawn, (3, *empty.shape)).transpose(1, 2, 0).copy()


def hatched(shape: tuple[int, ...]) -> np.ndarray:
    """Hatching uint8 (y, x), which stands for nothing."""
    row, column = np.indices(shape)
    return np.where((row + column) // (HATCH_PIXELS // 2) % 2, *HATCH).astype(np.uint8)


def tint(picture: np.ndarray, mask: np.ndarray, tone: str) -> None:
    """Lay a tone half transparent over a part of a picture."""
    mixed = (1 - TONE_SHARE) * picture[mask] + TONE_SHARE * np.array(TONES[tone])
    picture[mask] = np.rint(mixed).astype(np.uint8)


def tone_over(tone: str, grey: int) -> tuple[int, int, int]:
    """A tone as it looks over a grey of the picture."""
    red, green, blue = (round((1 - TONE_SHARE) * grey + TONE_SHARE * part) for part in TONES[tone])
    return red, green, blue


def scale_bar(width_m: float, share: float) -> tuple[float, str]:
    """Length of a scale bar [m], round and at most a share of the width of a picture, and what is written at it."""
    length_m = round_below(width_m * share)
    return length_m, f"{length_m / 1000:g} km" if length_m >= 1000 else f"{length_m:g} m"


def round_below(value: float) -> float:
    """Greatest of 1, 2 and 5 times a power of ten that does not exceed ``value``."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= value * (1 + 1e-9))


def captioned(
    picture: np.ndarray, notes: Sequence[Sequence[Note]], pixel_m: float
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The picture with a scale bar and lines of notes under it, and where it lies: left, top, right, bottom [px].

    A narrow picture stands in the middle of a sheet that is as wide as the longest note.

    Parameters
    ----------
    picture : uint8 (y, x, 3).
    notes : by paragraph; a long one is broken between two notes.
    pixel_m : side of a pixel of the picture [m].
    """
    times = max(1, LEAST_PIXELS // max(picture.shape))
    picture = picture.repeat(times, 0).repeat(times, 1)
    height, width = picture.shape[:2]
    length_m, length = scale_bar(width * pixel_m / times, BAR_SHARE)
    notes = [[(length_m / pixel_m * times, length), *notes[0]], *notes[1:]]
    across = max(width, max(_length(note) for paragraph in notes for note in paragraph) + 2 * MARGIN_PIXELS)
    lines = [line for paragraph in notes for line in _lines(paragraph, across - 2 * MARGIN_PIXELS)]
    sheet = Image.new("RGB", (across, height + 2 * MARGIN_PIXELS + LINE_PIXELS * len(lines)), PAPER)
    left = (across - width) // 2
    sheet.paste(Image.fromarray(picture), (left, 0))
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        at = MARGIN_PIXELS
        for note in line:
            at = _write(draw, at, height + MARGIN_PIXELS + index * LINE_PIXELS, note) + GAP_PIXELS
    return sheet, (left, 0, left + width, height)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT_PIXELS)  # comes with Pillow, so it looks alike everywhere


def _lines(notes: Sequence[Note], width: int) -> list[list[Note]]:
    """Notes broken into lines that fit."""
    lines: list[list[Note]] = [[]]
    at = 0
    for note in notes:
        length = _length(note)
        if lines[-1] and at + length > width:
            lines.append([])
            at = 0
        lines[-1].append(note)
        at += length + GAP_PIXELS
    return lines


def _length(note: Note) -> int:
    mark, words = note
    if mark is None:
        return _words_length(words)
    return (round(mark) if isinstance(mark, float | int) else TEXT_PIXELS) + SPACE_PIXELS + _words_length(words)


def _words_length(words: str) -> int:
    return round(sum(map(_font().getlength, words.split("−"))) + MINUS_PIXELS * words.count("−"))


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, note: Note) -> int:
    """Write a note and return where it ends."""
    mark, words = note
    if isinstance(mark, str | tuple):
        _draw_swatch(draw, x, y + 2, mark)
    elif mark is not None:
        _draw_bar(draw, x, y + TEXT_PIXELS // 2, round(mark))
    _write_words(draw, x + _length(note) - _words_length(words), y, words)
    return x + _length(note)


def _write_words(draw: ImageDraw.ImageDraw, x: float, y: int, words: str) -> None:
    """The font that comes with Pillow has no minus: a line is one."""
    for index, part in enumerate(words.split("−")):
        if index:
            draw.line((x + 1, y + 10, x + MINUS_PIXELS - 2, y + 10), fill=INK)
            x += MINUS_PIXELS
        draw.text((x, y), part, font=_font(), fill=INK)
        x += _font().getlength(part)


def _draw_swatch(draw: ImageDraw.ImageDraw, x: int, y: int, name: str | Colour) -> None:
    """A colour, a channel's colour, hatching, or a tone over dark and over bright ground."""
    left, top, right, bottom = x, y, x + TEXT_PIXELS - 1, y + TEXT_PIXELS - 1
    if name == HATCHED:
        lines = hatched((TEXT_PIXELS, TEXT_PIXELS))
        for grey in HATCH:
            draw.point([(left + column, top + row) for row, column in np.argwhere(lines == grey)], (grey,) * 3)
        draw.rectangle((left, top, right, bottom), outline=INK)
        return
    if isinstance(name, tuple) or name in CHANNELS:
        fill = name if isinstance(name, tuple) else CHANNELS[name]
        draw.rectangle((left, top, right, bottom), fill=fill, outline=INK)
        return
    draw.rectangle((left, top, right, bottom), fill=tone_over(name, OVER_BRIGHT))
    draw.polygon([(left, top), (left, bottom), (right, top)], fill=tone_over(name, OVER_DARK))
    draw.rectangle((left, top, right, bottom), outline=INK)


def _draw_bar(draw: ImageDraw.ImageDraw, x: int, y: int, length: int) -> None:
    """A bar of two halves, the first one filled."""
    draw.rectangle((x, y, x + length - 1, y + 4), outline=INK)
    draw.rectangle((x, y, x + length // 2, y + 4), fill=INK)

"""Pictures of single scenes: what was seen, what is masked and why, and a line of figures under it.

Stretches are fixed, so that two dates can be compared by eye.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LEAST_PIXELS = 480  # of a picture's longer side: smaller ones are enlarged
WHITE_REFLECTANCE, GAMMA = 0.3, 0.7
WHITE_OF_ONE_BAND = 0.5  # it may be an infrared one
DB_RANGES = ((-20.0, 0.0), (-27.0, -7.0), (2.0, 14.0))  # co- and cross-polarised backscatter, and their difference
TONES = {
    "cloud": (232, 62, 140),
    "shadow": (84, 72, 214),
    "snow": (0, 178, 214),
    "defective": (214, 40, 40),
    "other classes": (120, 120, 120),
    "rim": (250, 176, 208),
    "layover, shadow": (214, 40, 40),
}
TONE_SHARE = 0.4
HATCH_PIXELS, HATCH = 8, (222, 205)
PAPER, INK = (252, 251, 248), (29, 31, 30)
TEXT_PIXELS, LINE_PIXELS, GAP_PIXELS, MARGIN_PIXELS = 15, 23, 20, 12
Note = tuple[str | None, str]  # a tone of the picture, and what is said


def draw_reflectance(bands: np.ndarray) -> np.ndarray:
    """Picture uint8 (y, x, 3) of reflectance, float (3, y, x) in red, green, blue or (1, y, x); hatched where NaN."""
    white = WHITE_REFLECTANCE if len(bands) == 3 else WHITE_OF_ONE_BAND
    return _drawn(bands / white, GAMMA)


def draw_backscatter(decibels: np.ndarray) -> np.ndarray:
    """Picture uint8 (y, x, 3) of backscatter, float (polarisation, y, x) in dB; hatched where NaN.

    Red is the first polarisation, green the second, blue the first less the second; one alone is grey.
    """
    if len(decibels) > 1:
        decibels = np.stack([decibels[0], decibels[1], decibels[0] - decibels[1]])
    ranges = np.array(DB_RANGES[: len(decibels)])
    low, high = ranges[:, 0, None, None], ranges[:, 1, None, None]
    return _drawn((decibels - low) / (high - low), 1)


def _drawn(shares: np.ndarray, gamma: float) -> np.ndarray:
    """Picture of shares of white."""
    empty = ~np.isfinite(shares).all(axis=0)
    picture = np.rint(np.clip(np.where(empty, 0, shares), 0, 1) ** gamma * 255).astype(np.uint8)
    row, column = np.indices(empty.shape)
    hatch = np.where((row + column) // (HATCH_PIXELS // 2) % 2, *HATCH).astype(np.uint8)
    return np.broadcast_to(np.where(empty, hatch, picture), (3, *empty.shape)).transpose(1, 2, 0).copy()


def tint(picture: np.ndarray, mask: np.ndarray, tone: str) -> None:
    """Lay a tone half transparent over a part of a picture."""
    mixed = (1 - TONE_SHARE) * picture[mask] + TONE_SHARE * np.array(TONES[tone])
    picture[mask] = np.rint(mixed).astype(np.uint8)


def captioned(picture: np.ndarray, notes: Iterable[Sequence[Note]]) -> tuple[Image.Image, tuple[int, int]]:
    """The picture with lines of notes under it, and the width and height of the picture itself.

    Parameters
    ----------
    picture : uint8 (y, x, 3).
    notes : by paragraph; a long one is broken between two notes.
    """
    times = max(1, LEAST_PIXELS // max(picture.shape))
    picture = picture.repeat(times, 0).repeat(times, 1)
    height, width = picture.shape[:2]
    across = max(width, LEAST_PIXELS)
    lines = [line for paragraph in notes for line in _lines(paragraph, across - 2 * MARGIN_PIXELS)]
    sheet = Image.new("RGB", (across, height + 2 * MARGIN_PIXELS + LINE_PIXELS * len(lines)), PAPER)
    sheet.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(sheet)
    for index, line in enumerate(lines):
        at = MARGIN_PIXELS
        for tone, text in line:
            at = _write(draw, at, height + MARGIN_PIXELS + index * LINE_PIXELS, tone, text) + GAP_PIXELS
    return sheet, (width, height)


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
    tone, text = note
    return round(_font().getlength(text)) + (TEXT_PIXELS + 5 if tone else 0)


def _over(tone: Sequence[int], grey: int) -> tuple[int, ...]:
    """A tone as it looks over a grey of the picture."""
    return tuple(round((1 - TONE_SHARE) * grey + TONE_SHARE * part) for part in tone)


def _write(draw: ImageDraw.ImageDraw, x: int, y: int, tone: str | None, text: str) -> int:
    """Write a note and return where it ends."""
    end = x + _length((tone, text))
    if tone:
        box = (x, y + 2, x + TEXT_PIXELS - 1, y + TEXT_PIXELS + 1)
        draw.rectangle(box, fill=_over(TONES[tone], 255))
        draw.polygon([box[:2], (box[0], box[3]), box[2:]], fill=_over(TONES[tone], 60))
        draw.rectangle(box, outline=INK)
        x += TEXT_PIXELS + 5
    draw.text((x, y), text, font=_font(), fill=INK)
    return end

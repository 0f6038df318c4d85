"""Pictures of how a network learns and of what it mixes up. Matplotlib is imported by who draws, never by the rules.

The same numbers give the same bytes with one version of matplotlib, whatever settings of its a person has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from covermap.files import whole
from covermap.legend import Legend

INK, PAPER, LINE, SOFT = "#1d1f1e", "#fcfbf8", "#dcd9d1", "#5d625f"  # as in the report
FIRST, SECOND = "#1b6390", "#b4480f"
DPI = 96
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": PAPER,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}
WIDE = 20  # highest by lowest loss from which on its axis is logarithmic
LEAST = 1e-3  # share of a row at which the logarithmic scale begins
CELL_PIXELS = {2: 110, 6: 76, 12: 58, 18: 46}  # side of a cell of a matrix of up to so many classes
NARROW_PIXELS = 34  # of more: there is room for the per cent, none for the counts
LABEL_LETTERS = 26  # of a class's name on one line
LETTER_PIXELS, LABEL_LINES = 6.6, 2
SWATCH_PIXELS = 10


# --- learning curves --------------------------------------------------------------------------------------------------


def draw_curves(rows: Sequence[Mapping[str, float]], picture: Path) -> None:
    """Draw the loss, the agreement with the validation tiles and the learning rate by epoch, the best one marked.

    Parameters
    ----------
    rows : of the training log, one an epoch: ``epoch``, ``train_loss``, ``val_loss``, ``val_overall``, ``val_macro_f1``
        and ``learning_rate``. What is not finite leaves a gap.
    picture : PNG.
    """
    epochs = [row["epoch"] for row in rows]
    best = max(rows, key=lambda row: row["val_macro_f1"])
    told = f"best: epoch {best['epoch']:g}, {best['val_macro_f1']:.3f}"
    with _sheet(picture, 720, 760) as figure:
        loss, agreement, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
        for axes in (loss, agreement, rate):
            axes.axvline(best["epoch"], color=INK, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        agreement.plot(best["epoch"], best["val_macro_f1"], "o", color=SECOND, markersize=7, zorder=3, label=told)
        _lines(loss, rows, "Loss", {"training": "train_loss", "validation": "val_loss"})
        _lines(agreement, rows, "Agreement, validation tiles", {"overall": "val_overall", "macro F1": "val_macro_f1"})
        _lines(rate, rows, "Learning rate", {"": "learning_rate"})
        _fit(loss, [row[column] for row in rows for column in ("train_loss", "val_loss")])
        agreement.set_ylim(0, 1)
        rate.set_ylim(bottom=0)
        rate.set_xlabel("epoch")
        rate.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        rate.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))


def _lines(axes: Axes, rows: Sequence[Mapping[str, float]], title: str, columns: dict[str, str]) -> None:
    """Columns of the log against the epoch; the second is dashed, so that they differ without colour too."""
    epochs, marker = [row["epoch"] for row in rows], "o" if len(rows) < 3 else None
    for (name, column), colour, dash in zip(columns.items(), (FIRST, SECOND), ("-", (0, (5, 2))), strict=False):
        values = [row[column] for row in rows]
        axes.plot(epochs, values, marker=marker, ls=dash, color=colour, linewidth=1.8, markersize=4, label=name)
    axes.set_title(title)
    axes.grid(axis="y")
    axes.yaxis.set_major_formatter("{x:g}")
    if len(columns) > 1:
        axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 0.99), borderaxespad=0)


def _fit(axes: Axes, values: Sequence[float]) -> None:
    """From 0 on; a loss that falls by far, or leaps, has a logarithmic axis, so that the rest of it can be read."""
    finite = [value for value in values if math.isfinite(value)] or [1.0]
    if 0 < WIDE * min(finite) < max(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0, 1.06 * max(finite) or 1)


# --- confusion matrices -----------------------------------------------------------------------------------------------


def draw_confusion(matrix: np.ndarray, legend: Legend, picture: Path, log: bool = False) -> None:
    """Draw a confusion matrix: per cent of each row, and the counts where there is room.

    Parameters
    ----------
    matrix : int (K, K), rows what was mapped, columns the label. Classes that neither has are left out.
    legend : names and colours of the K classes.
    picture : PNG.
    log : colours by the logarithm of the share, from 0.1 % on, so that rare confusions show.
    """
    matrix = np.asarray(matrix)
    there = np.flatnonzero(matrix.sum(0) + matrix.sum(1))
    there = there if there.size else np.arange(len(matrix))
    part, names = matrix[np.ix_(there, there)], [legend.classes[k].name for k in there]
    rows = part.sum(1, keepdims=True)
    shares = np.divide(part, rows, out=np.full(part.shape, np.nan), where=rows > 0)
    side = next((pixels for most, pixels in CELL_PIXELS.items() if len(part) <= most), NARROW_PIXELS)
    labels = [_wrapped(name) for name in names]
    left = 44 + LETTER_PIXELS * max(len(line) for label in labels for line in label.splitlines())
    top, right, bottom, inner = left + 8, 100, 34, side * len(part)
    width, height = left + max(inner, 240) + right, top + inner + bottom
    with _sheet(picture, width, height, arranged=False) as figure:
        axes = figure.add_axes((left / width, bottom / height, inner / width, inner / height))
        colours = _coloured(axes, shares, log)
        _written(axes, part, shares, colours, side)
        _named(axes, labels, [legend.classes[k].colour for k in there], side)
        bar = figure.add_axes(((left + inner + 24) / width, bottom / height, 12 / width, min(inner, 240) / height))
        _scale(figure, bar, colours, log)
        figure.text(8 / width, 1 - 8 / height, "rows: mapped\ncolumns: label", va="top", color=SOFT)
        figure.text(left / width, 10 / height, _told(part), va="bottom", color=SOFT)


def _coloured(axes: Axes, shares: np.ndarray, log: bool) -> ScalarMappable:
    """The cells, light to dark; one without any pixel is paper."""
    shades = LinearSegmentedColormap.from_list("paper", ["#f3f1ea", "#a9c6d6", FIRST, "#0b2a40"])
    scale = LogNorm(LEAST, 1, clip=True) if log else Normalize(0, 1)
    count = len(shares)
    shown = np.ma.masked_where(~(shares > 0), shares) if log else np.ma.masked_invalid(shares)
    return axes.pcolormesh(
        np.arange(count + 1) - 0.5,
        np.arange(count + 1) - 0.5,
        shown,
        cmap=shades.with_extremes(bad=PAPER),
        norm=scale,
        edgecolors=PAPER,
        linewidth=0.8,
    )


def _written(axes: Axes, counts: np.ndarray, shares: np.ndarray, colours: ScalarMappable, side: float) -> None:
    """Per cent, and below them the counts where there is room; an empty row says so."""
    light = colours.to_rgba(shares)[..., :3] @ (0.299, 0.587, 0.114) > 0.55
    for (row, column), count in np.ndenumerate(counts):
        share, narrow = float(shares[row, column]), side <= NARROW_PIXELS
        if not count or (narrow and share < LEAST):
            continue
        text = per_cent(share) + ("" if narrow else f"\n{_short(count)}")
        size = 7.5 if narrow else 9 if side >= CELL_PIXELS[12] else 8
        axes.text(
            column, row, text, ha="center", va="center", fontsize=size, color=INK if light[row, column] else PAPER
        )
    for row in np.flatnonzero(~counts.any(1)).tolist():
        axes.text(len(counts) / 2 - 0.5, row, "nothing was mapped", ha="center", va="center", fontsize=8, color=SOFT)


def per_cent(share: float) -> str:
    """A share 0..1 as per cent in at most three letters, for a narrow cell."""
    value = 100 * share
    if value < 0.1:
        return "<.1"
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:.0f}" if value < 99.5 or share == 1 else "99"


def _short(count: int) -> str:
    """A count in at most five letters."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if count >= size:
            value = count / (1e3 if unit == "k" else size)
            return f"{value:.1f}{unit}" if value < 100 else f"{value:.0f}{unit}"
    return str(count)


def _named(axes: Axes, labels: Sequence[str], colours: Sequence[str], side: float) -> None:
    """Names of the classes on the left and above, each with its colour on the map."""
    count = len(labels)
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.xaxis.tick_top()
    axes.set_xticks(range(count), labels, rotation=90, ha="center", va="bottom")
    axes.set_yticks(range(count), labels)
    axes.tick_params(length=0, pad=SWATCH_PIXELS + 2, labelcolor=INK)
    axes.spines[:].set_visible(False)
    wide = SWATCH_PIXELS / side
    for place, colour in enumerate(colours):
        for corner in ((-0.5 - wide - 4 / side, place - wide / 2), (place - wide / 2, -0.5 - wide - 4 / side)):
            axes.add_patch(
                Rectangle(corner, wide, wide, facecolor=colour, edgecolor=SOFT, linewidth=0.5, clip_on=False)
            )


def _wrapped(name: str) -> str:
    """A name on at most two lines, cut where it is longer."""
    lines = [""]
    for word in name.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > LABEL_LETTERS and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    cut = lines[:LABEL_LINES]
    if len(lines) > LABEL_LINES:
        cut[-1] += " …"
    return "\n".join(line if len(line) <= LABEL_LETTERS + 2 else line[:LABEL_LETTERS] + "…" for line in cut)


def _scale(figure: Figure, axes: Axes, colours: ScalarMappable, log: bool) -> None:
    bar = figure.colorbar(colours, cax=axes)
    ticks = [0.001, 0.01, 0.1, 1] if log else [0, 0.25, 0.5, 0.75, 1]
    bar.set_ticks(ticks, labels=[f"{100 * tick:g}" for tick in ticks], minor=False)
    bar.minorticks_off()
    bar.outline.set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("% of row", fontsize=8, color=SOFT, pad=6)


def _told(counts: np.ndarray) -> str:
    total = int(counts.sum())
    return f"{total:,} in all, {100 * counts.trace() / max(total, 1):.1f} % on the diagonal"


# --- sheets -----------------------------------------------------------------------------------------------------------


@contextmanager
def _sheet(picture: Path, width: float, height: float, arranged: bool = True) -> Iterator[Figure]:
    """A figure of so many pixels, written as PNG when the block ends well, without anything but the picture."""
    with style.context(["default", STYLE]):
        figure = Figure((width / DPI, height / DPI), DPI, layout="constrained" if arranged else None)
        canvas = FigureCanvasAgg(figure)
        yield figure
        with whole(picture) as part:
            canvas.print_png(part, metadata={"Software": None})

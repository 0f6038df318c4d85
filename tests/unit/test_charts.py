"""Pictures that show what the numbers say, for few classes and for many, and are the same bytes each time."""

import math

import matplotlib
import numpy as np
import pytest
from PIL import Image

from covermap.charts import CELL_PIXELS, NARROW_PIXELS, draw_confusion, draw_curves, per_cent
from covermap.legend import Legend, LegendClass

INK = (29, 31, 30)


def epochs(scores, **columns):
    row = {"train_loss": 1.0, "val_loss": 1.2, "val_overall": 0.9, "learning_rate": 1e-3, "seconds": 1.0, **columns}
    return [{**row, "epoch": number + 1, "val_macro_f1": score} for number, score in enumerate(scores)]


def legend_of(count, name="Class {}"):
    colours = (f"#{80 + k:02x}{7 * k:02x}ff" for k in range(count))
    classes = (
        LegendClass(id=k + 1, key=f"c{k}", name=name.format(k), colour=colour) for k, colour in enumerate(colours)
    )
    return Legend(classes=tuple(classes), codes={})


def pixels_of(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG" and not picture.text  # neither a date nor a version
        return np.asarray(picture.convert("RGB")).astype(int)


def best_column(path):
    """Where the dotted line from top to bottom stands."""
    return int((np.abs(pixels_of(path) - INK).sum(2) < 60).sum(0).argmax())


def test_the_first_of_the_best_epochs_is_marked(tmp_path):
    columns = []
    for best in range(5):
        scores = [0.2] * 5
        scores[best] = 0.7
        scores[4] = 0.7
        draw_curves(epochs(scores), tmp_path / "curves.png")
        columns.append(best_column(tmp_path / "curves.png"))
    steps = np.diff(columns)
    assert (steps > 100).all() and np.ptp(steps) <= 2


@pytest.mark.parametrize(
    "rows",
    [
        epochs([0.5]),
        epochs([0.1, 0.2], train_loss=math.nan),
        epochs([0.1, 0.2, 0.3], train_loss=0.0, val_loss=0.0),
        [*epochs([0.3] * 400), *epochs([0.4], train_loss=4000.0)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_odd_trainings_are_drawn_without_a_complaint(tmp_path, rows):
    draw_curves(rows, tmp_path / "curves.png")
    assert pixels_of(tmp_path / "curves.png").shape == (760, 720, 3)


def test_a_persons_own_settings_change_no_byte(tmp_path):
    draw_curves(epochs([0.1, 0.5, 0.4]), tmp_path / "first.png")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "savefig.dpi": 300, "axes.grid": True}):
        draw_curves(epochs([0.1, 0.5, 0.4]), tmp_path / "second.png")
        assert matplotlib.rcParams["font.size"] == 20
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(("count", "log"), [(3, False), (11, True), (28, False)])
@pytest.mark.filterwarnings("error")
def test_every_class_that_occurs_has_its_colour_twice(tmp_path, count, log):
    matrix = np.random.default_rng(0).integers(1, 2_000_000, (count, count))
    matrix[0], matrix[:, 0] = 0, 0  # neither mapped nor in the label
    matrix[1, :] = 0  # never mapped
    legend = legend_of(count, "A class with a name that is long, {}")
    draw_confusion(matrix, legend, tmp_path / "confusion.png", log)
    found = pixels_of(tmp_path / "confusion.png")
    swatch = 2 * 8**2
    for k, entry in enumerate(legend.classes):
        there = (found == entry.rgb).all(2).sum()
        assert there == 0 if k == 0 else there >= swatch
    side = next((pixels for most, pixels in CELL_PIXELS.items() if count - 1 <= most), NARROW_PIXELS)
    assert found.shape[0] > side * (count - 1) and max(found.shape) < 1700


def test_a_matrix_without_a_pixel_is_drawn(tmp_path):
    draw_confusion(np.zeros((3, 3), int), legend_of(3), tmp_path / "confusion.png", log=True)
    assert pixels_of(tmp_path / "confusion.png").min() < 100


def test_rare_confusions_show_on_the_logarithmic_scale_alone(tmp_path):
    pictures = {}
    for log in (False, True):
        for rare in (1, 10):
            path = tmp_path / f"{log}{rare}.png"
            draw_confusion(np.array([[990, rare], [0, 1000]]), legend_of(2), path, log)
            pictures[log, rare] = pixels_of(path)
    changed = {log: np.abs(pictures[log, 10] - pictures[log, 1]).sum(2) for log in (False, True)}
    cell = CELL_PIXELS[2] ** 2
    assert (changed[True] > 60).sum() > 0.8 * cell > (changed[False] > 60).sum()


def test_the_same_matrix_gives_the_same_bytes(tmp_path):
    matrix = np.random.default_rng(1).integers(0, 99, (12, 12))
    for name in ("first.png", "second.png"):
        draw_confusion(matrix, legend_of(12), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100"), (0.999, "99"), (0.994, "99"), (0.0996, "10"), (0.0994, "9.9"), (0.001, "0.1"), (0.0005, "<.1")],
)
def test_per_cent_never_say_all_or_nothing_where_it_is_not(share, text):
    assert per_cent(share) == text

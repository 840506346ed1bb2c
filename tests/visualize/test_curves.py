"""Plots of points."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from vidjax.visualize.curves import draw_points


def test_names_of_coinciding_points_do_not_overlap():
    points = {f"a_name_of_usual_length_{i}": (10 ** (i // 20), i % 2) for i in range(40)}
    figure = draw_points(points, "cost", "top-1", {})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = figure.axes[0].texts
    assert {text.get_text() for text in texts} == points.keys()
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in texts]  # without the line to the point
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(figure.bbox.containsx(x) for box in boxes for x in box.intervalx)
    assert all(figure.bbox.containsy(y) for box in boxes for y in box.intervaly)

"""benchmarks/drawing.py: what is drawn where, by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from benchmarks.drawing import COLOURS, Series, learning_plot, speed_plot


def drawn(figure: Figure) -> list[tuple[list[float], list[float]]]:
    """The points of the ideal line, then of everything measured and predicted."""
    (axes,) = figure.axes
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if len(line.get_xdata())]  # type: ignore[arg-type]


def words(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *legend.get_texts(), axes.xaxis.label]
    return [text.get_text() for text in texts]


def test_points_lie_on_logarithmic_axes() -> None:
    measured, predicted = {3: 1000.0, 6: 2000.0, 12: 2000.0}, {12: 4000.0}
    figure = speed_plot([Series("weak", measured, predicted)], {3: 1, 6: 2}, "nodes", "predicted from 3")
    assert drawn(figure) == [
        ([3, 12], [1000, 4000]),  # the ideal
        ([3, 6, 12], [1000, 2000, 2000]),
        ([12], [4000]),
    ]
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert list(axes.get_xticks()) == [3, 6]
    assert {"1", "2", "1,024", "2,048", "nodes", "ideal", "weak", "predicted from 3"} <= set(words(figure))


def test_who_gets_slower_or_is_faster_than_ideal_stays_in_the_picture() -> None:
    figure = speed_plot([Series("slow", {1: 80.0, 2: 20.0}), Series("fast", {1: 80.0, 2: 320.0})], {}, "workers")
    assert drawn(figure)[1:] == [([1, 2], [80, 20]), ([1, 2], [80, 320])]
    low, high = figure.axes[0].get_ylim()
    assert low < 20 and high > 320


@pytest.mark.parametrize("rates", [{1: 100.0}, {5: 100.0}])
def test_one_number_of_workers_is_a_point(rates: dict[int, float]) -> None:
    figure = speed_plot([Series("weak", rates)], {}, "workers")
    assert drawn(figure)[1] == (list(rates), [100])
    assert set(words(figure)) >= {"weak", "workers"}


def test_no_series_is_left_out() -> None:
    series = [Series(f"s{k}", {1: 100.0, 2: 150.0}) for k in range(len(COLOURS) + 1)]
    assert len(drawn(speed_plot(series[:-1], {}, "workers"))) == 1 + len(COLOURS)
    with pytest.raises(ValueError, match="9 series, but 8 colours"):
        speed_plot(series, {}, "workers")


def test_learning_curves_beside_other_controllers() -> None:
    figure = learning_plot({"seed 1": [(100, -3.0), (2000, -1.0)]}, {"no control": -3.5})
    assert drawn(figure) == [([100, 2000], [-3, -1]), ([0, 1], [-3.5, -3.5])]
    assert set(words(figure)) >= {"seed 1", "no control", "2,000", "environment steps"}
    with pytest.raises(ValueError, match="9 curves, but 8 colours"):
        learning_plot({str(k): [] for k in range(9)}, {})

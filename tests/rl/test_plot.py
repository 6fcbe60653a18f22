"""metrics.png: which panels it has, and what is in them."""

import pytest
from PIL import Image

from rl.run.curves import reward_curves, series
from rl.run.plot import plot_metrics, plt


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draws, and returns title → axis of each panel, and the figure."""

    def draw(lines, held_out_as=None):
        figures = []
        monkeypatch.setattr(plt, "close", figures.append)
        plot_metrics(lines, tmp_path / "metrics.png", held_out_as)
        return {axis.get_title(): axis for axis in figures[0].axes if axis.get_visible()}, figures[0]

    return draw


LINES = [
    {"step": 0, "eval_reward": 0.4, "eval_reward_se": None, "eval_shapes": 0.5, "eval_seconds": 3.0},
    {"step": 1, "reward": 0.7, "rewards/shapes/mean": 0.9, "rewards/ocr/mean": None, "kl": 0.0, "entropy": 0.6},
    {"step": 2, "reward": 0.8, "rewards/shapes/mean": 0.9, "rewards/ocr/mean": 0.1, "kl": None, "seconds/decode": 2.0},
    {"step": 2, "eval_reward": 0.6, "eval_reward_se": 0.02, "eval_understanding/exact_match": 0.8},
]


def test_every_reward_has_a_panel_and_what_the_run_lacks_has_none(drawn, tmp_path):
    panels, _ = drawn(LINES)
    assert list(panels) == [
        "total",
        "shapes",
        "ocr",
        "KL to the reference, nats per bit",
        "entropy, nats per bit",
        "seconds per update",
        "held-out questions",
    ]
    assert labels(panels["total"]) == ["held-out ± s.e.", "training"]
    assert labels(panels["shapes"]) == ["held-out", "training"]
    with Image.open(tmp_path / "metrics.png") as picture:
        assert picture.width > 1200
        assert len(picture.convert("L").getcolors(256)) > 20
    empty, _ = drawn([])
    assert list(empty) == ["total"]


def test_held_out_rewards_that_are_set_otherwise_have_axes_of_their_own(drawn):
    panels, figure = drawn(LINES, "other rewards, temperature 0.5")
    assert list(panels)[:5] == ["total, training", "total, held-out", "shapes, training", "shapes, held-out", "ocr"]
    assert figure.get_supxlabel() == "updates; held-out is set otherwise than training: other rewards, temperature 0.5"
    assert panels["total, training"].get_ylim() != panels["total, held-out"].get_ylim()
    panels, figure = drawn(LINES[1:3], "other rewards")  # nothing held out was drawn
    assert "total" in panels
    assert figure.get_supxlabel() == "updates"


def test_a_long_curve_is_smoothed_and_its_values_stay_visible(drawn):
    lines = [{"step": step, "reward": float(step % 2)} for step in range(1, 101)]
    panels, _ = drawn(lines)
    raw, smooth = (line.get_ydata() for line in panels["total"].get_lines())
    assert (min(raw), max(raw)) == (0.0, 1.0)
    assert 0.3 < min(smooth) <= max(smooth) < 0.7
    assert raw.shape == smooth.shape


def test_a_single_reward_is_not_drawn_twice():
    one = [{"step": 1, "reward": 0.5, "rewards/ocr/mean": 0.5}, {"step": 1, "eval_reward": 0.2, "eval_ocr": 0.2}]
    assert [name for *_, name in reward_curves(one)] == ["total"]
    one[1]["eval_ocr"] = 0.4  # of the reward alone, where it has a weight
    assert [name for *_, name in reward_curves(one)] == ["total", "ocr"]
    assert series([{"step": 1, "kl": float("nan")}, {"step": 2, "kl": 0.5}, {"step": 3}], "kl") == ([2], [0.5])


def labels(axis) -> list[str]:
    return sorted(text.get_text() for text in axis.get_legend().get_texts())

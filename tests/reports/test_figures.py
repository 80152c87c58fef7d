"""Figures: weights, scales and the small sums behind the pictures."""

import math

import numpy as np
import pytest

from manticore.reports.architecture import draw_architecture
from manticore.reports.curves_figure import curve_panels
from manticore.reports.effective_weights import effective_weights
from manticore.reports.mixture_figure import mixture_paths, searched_rows
from manticore.reports.numbers import DASH
from manticore.reports.palette import looks
from manticore.reports.svg import Drawing, Scale, first_that_fits, shorten, thinned, ticks
from tests.reports.fake_run import fake_hybrid, fake_metrics, fake_rows


@pytest.mark.parametrize("loyalty", [0.0, 2.0, 6.0])
def test_effective_weights_follow_their_formula(loyalty):
    row = np.array([0.5, 0.3, 0.2])
    logits = np.log(row)[None, :] + loyalty * np.eye(3)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(effective_weights(row.tolist(), loyalty), expected, atol=1e-12)


def test_a_removed_stream_is_read_by_nobody_however_loyal():
    assert effective_weights([0.0, 1.0], 6.0) == [[0.0, 1.0], [0.0, 1.0]]
    assert effective_weights([0.0, 1.0], math.inf) == [[0.0, 1.0], [0.0, 1.0]]


def test_endless_loyalty_reads_only_its_own_stream():
    assert effective_weights([0.9, 0.1], math.inf) == [[1.0, 0.0], [0.0, 1.0]]
    assert effective_weights([0.9, 0.1], 1e6)[1][1] == pytest.approx(1.0)


def test_a_translator_without_weight_is_not_drawn_and_its_block_is_marked():
    hybrid = fake_hybrid()
    hybrid["mixture"] = [[1.0, 0.0], [1.0, 0.0]]
    hybrid["embed_mixture"] = hybrid["head_mixture"] = [1.0, 0.0]
    picture = str(draw_architecture(hybrid, 880))
    assert "translator maths-mamba" not in picture
    assert picture.count("c1 box skipped") == 4
    assert picture.count("own stream novels-neox") == 2 * 3  # line and tip at three boundaries


def test_a_component_cut_unevenly_shows_its_layers_counted_from_one():
    hybrid = fake_hybrid()
    hybrid["partition"] = [[[0, 1], [1, 4]], [[0, 2], [2, 4]]]
    picture = str(draw_architecture(hybrid, 880))
    for text in (">layer 1<", f">layers 2{DASH}4<", f">layers 1{DASH}2<"):
        assert text in picture


def test_text_in_a_drawing_is_escaped():
    drawing = Drawing(10, 10, '"<a>"')
    drawing.text(0, 0, "<b>&")
    drawing.add("rect", title="<c>", class_='"x"')
    written = str(drawing.markup())
    assert "<a>" not in written
    assert "&lt;b&gt;&amp;" in written
    assert "<title>&lt;c&gt;</title>" in written
    assert 'class="&#34;x&#34;"' in written


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (3.39, 3.81, [3.4, 3.5, 3.6, 3.7, 3.8]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_numbers_within_the_bounds(low, high, expected):
    assert ticks(low, high) == expected


def test_ticks_and_scales_survive_a_single_value():
    assert ticks(3.0, 3.0) == [3.0]
    assert Scale(3.0, 3.0, 0, 100)(3.0) == 0


@pytest.mark.parametrize("count", [1, 89, 90, 91, 1000])
def test_thinning_keeps_the_mean_of_what_it_merges(count):
    points = [(float(i), float(i * i)) for i in range(count)]
    merged = thinned(points, 90)
    assert len(merged) == min(count, 90)
    if count % 90 == 0 or count <= 90:
        assert np.mean([y for _, y in merged]) == pytest.approx(np.mean([y for _, y in points]))


def test_text_that_does_not_fit_is_cut_with_an_ellipsis():
    assert shorten("a long name of a model", 60).endswith("…")
    assert shorten("short", 60) == "short"
    assert first_that_fits(["layers 1-12", "1-12"], 40) == "1-12"


def test_mixture_panels_are_embeddings_blocks_heads_in_order():
    metrics = fake_metrics(num_components=3, num_blocks=2, steps=8)
    paths = mixture_paths(metrics, "hybrid")
    assert list(paths) == ["Embeddings", "Block 1", "Block 2", "Heads"]
    assert paths["Block 2"][-1][1] == pytest.approx(metrics[30]["mixture"][1])
    assert searched_rows(metrics) == ["hybrid"]


def test_a_search_without_rows_for_embeddings_and_heads_shows_the_blocks():
    record = {"stage": "search", "step": 0, "mixture": [[0.5, 0.5]]}
    assert list(mixture_paths([record], "hybrid")) == ["Block 1"]


def test_curves_that_are_not_finite_are_left_out():
    metrics = [
        {"stage": "finetune", "row": "hybrid", "step": 1, "loss": 3.0},
        {"stage": "finetune", "row": "hybrid", "step": 2, "loss": float("nan")},
        {"stage": "finetune", "row": "hybrid", "step": 3, "loss": None},
        {"stage": "unheard-of", "row": "hybrid", "step": 4, "loss": 1.0},
    ]
    (panel,) = curve_panels(metrics)
    assert panel.curves == {"hybrid": [(1.0, 3.0)]}


def test_panels_start_with_fine_tuning_and_split_validation_by_kind():
    titles = [panel.title for panel in curve_panels(fake_metrics(steps=40))]
    assert titles == [
        "Fine-tuning", "Validation, prose", "Validation, maths", "Search: training loss",
        "Search: mixture loss",
    ]  # fmt: skip


def test_a_search_of_the_frozen_hybrid_has_one_loss():
    records = [{"stage": "search", "step": s, "loss": 4.0, "arch_loss": 4.0} for s in (1, 2)]
    assert [panel.title for panel in curve_panels(records)] == ["Search: mixture loss"]


def test_rows_of_one_colour_differ_in_their_dashes():
    styles = looks(fake_rows())
    assert styles["hybrid"].colour == "main"
    assert styles["component-1"].colour == styles["component-1-long"].colour == "c1"
    assert styles["component-1"].dash != styles["component-1-long"].dash
    assert styles["component-0"].colour == "c0"

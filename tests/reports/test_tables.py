"""Tables as text, and the numbers and sentences in them."""

import copy

import pytest

from manticore.reports.headline import compare, headline
from manticore.reports.numbers import (
    DASH,
    MINUS,
    TIMES,
    bytes_text,
    count_text,
    length_text,
    loss_text,
    power_text,
    seconds_text,
    signed_text,
)
from manticore.reports.records import combine_seeds
from manticore.reports.tables import markdown_table, text_table
from tests.reports.fake_run import KINDS, ROWS, fake_result, fake_rows


def row(name: str, loss: float, group: str = "hybrid", sd: float | None = None, **more) -> dict:
    spread = None if sd is None else {"mean": sd}
    base = {"id": name, "label": name.title(), "group": group, "seeds": 1, "tokens": 100}
    return {**base, "parameters": 1, "loss": {"mean": loss}, "loss_sd": spread, **more}


def three_seeds() -> list[dict]:
    return combine_seeds([fake_result(seed) for seed in (1, 2, 3)])


def test_the_terminal_table_shows_every_row_lowest_first_and_fits():
    table = text_table(fake_rows(), KINDS)
    lines = table.splitlines()
    assert len(lines) == len(ROWS) + 3
    assert all(any(line.startswith(row[1]) for line in lines) for row in ROWS)
    means = [_first_number(line) for line in lines[2:-1]]
    assert means == sorted(means)
    assert max(map(len, lines)) <= 100
    assert "one seed, so no spread" in lines[-1]


def _first_number(line: str) -> float:
    cells = [cell.strip().lstrip("*") for cell in line.split("  ") if cell.strip()]
    return float(cells[1])


def test_the_terminal_table_marks_the_best_of_each_column_and_ties_share_the_mark():
    rows = [row("a", 3.0001), row("b", 3.0004), row("c", 3.1)]
    marked = [line for line in text_table(rows, ["only"]).splitlines() if "*3.000" in line]
    assert [line[0] for line in marked] == ["A", "B"]


def test_the_terminal_table_shows_the_spread_over_seeds():
    table = text_table(three_seeds(), KINDS)
    assert "±0.00" in table
    assert "3 seeds, ± is the sample standard deviation" in table


def test_the_markdown_table_is_rectangular_with_the_best_in_bold():
    lines = markdown_table(three_seeds(), KINDS).splitlines()
    assert len(lines) == len(ROWS) + 2
    assert len({line.count("|") for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")] for line in lines[2:]]
    for column in (2, 3, 4):  # mean and two kinds
        numbers = [float(line[column].replace("*", "").split()[0]) for line in cells]
        bold = ["**" in line[column] for line in cells]
        assert bold == [number == min(numbers) for number in numbers]


def test_a_bar_or_a_line_break_in_a_label_does_not_break_the_markdown_table():
    rows = [row("a", 3.0, label="left | right\nbelow")]
    assert "left \\| right below" in markdown_table(rows, ["only"]).splitlines()[2]


@pytest.mark.parametrize(
    ("hybrid", "words"),
    [(3.0, "0.500 (14.3\u00a0%) better than"), (4.0, "0.500 (14.3\u00a0%) worse than"),
     (3.5, "the same to three digits as")],
)  # fmt: skip
def test_the_headline_is_honest_in_both_directions(hybrid, words):
    rows = [row("hybrid", hybrid), row("component-0", 3.5, "component")]
    sentence = headline(rows).sentence
    assert sentence == (
        f"The hybrid reaches {hybrid:.3f} nats per token, {words} "
        "the best fine-tuned component (Component-0, 3.500)."
    )


def test_a_difference_within_two_standard_deviations_is_no_win():
    # sd of the difference: hypot(0.03, 0.04) = 0.05
    one, other = row("a", 3.0, sd=0.03), row("b", 3.09, sd=0.04)
    assert compare(one, other) == "within two standard deviations (0.090, spread 0.050) of"
    assert "better than" in compare(one, row("b", 3.11, sd=0.04))


def test_the_headline_compares_at_equal_tokens_and_names_the_longer_run_apart():
    rows = [
        row("hybrid", 3.3),
        row("component-0", 3.5, "component"),
        row("component-0-long", 3.2, "component", tokens=240),
    ]
    found = headline(rows)
    assert "(Component-0, 3.500)" in found.sentence
    assert any("worse than the best component with more tokens (240)" in d for d in found.details)
    assert any(d.startswith("The lowest loss is not the hybrid's") for d in found.details)


@pytest.mark.parametrize(
    ("quiet", "sd", "words"),
    [(3.30, 0.01, "earn nothing measurable"), (3.40, 0.01, "the translators earn 0.100"),
     (3.20, 0.01, "the translators cost 0.100"), (3.40, None, "0.100 lower, in one seed")],
)  # fmt: skip
def test_the_headline_answers_whether_cross_talk_earns_anything(quiet, sd, words):
    rows = [row("hybrid", 3.3, sd=sd), row("no_cross_talk", quiet, "ablation", sd=sd)]
    assert any(words in detail for detail in headline(rows).details)


def test_a_hybrid_that_diverged_is_said_to_have_diverged():
    rows = [row("hybrid", float("nan")), row("component-0", 3.5, "component")]
    expected = "The hybrid diverged; the lowest loss is 3.500 nats per token (Component-0)."
    assert headline(rows).sentence == expected


def test_the_headline_names_the_committed_numbers():
    details = headline(fake_rows(), three_seeds()).details
    assert any(d.startswith("Over the 3 seeds of the committed table it is 3.3") for d in details)


def test_a_committed_table_of_another_budget_is_said_to_be_one():
    assert not any("fine-tuned on" in d for d in headline(fake_rows(), three_seeds()).details)
    longer = [{**row, "tokens": 2_000_000} for row in three_seeds()]
    said = headline(fake_rows(), longer).details[-1]
    assert said.startswith("Its hybrid was fine-tuned on 2.00 M tokens, this one on ")


def test_tables_leave_the_rows_as_they_were():
    rows = fake_rows()
    before = copy.deepcopy(rows)
    text_table(rows, KINDS)
    markdown_table(rows, KINDS)
    assert rows == before


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (count_text(None), DASH), (count_text(9600), "9,600"), (count_text(409600), "410 k"),
        (count_text(999_600), "1.00 M"), (count_text(1_320_000), "1.32 M"),
        (count_text(3e15), "3000 T"), (power_text(1.2e12), f"1.20 {TIMES} 10¹²"),
        (power_text(1.2e12, plain=True), "1.20e12"), (power_text(0), "0"),
        (bytes_text(100), "100 B"), (bytes_text(2**20), "1.00 MiB"),
        (seconds_text(0.04), "0.0 s"), (seconds_text(59.6), "1 min 00 s"),
        (seconds_text(7500), "2 h 05 min"), (loss_text(float("nan")), "diverged"),
        (signed_text(-0.0001), "0.000"), (signed_text(-0.25), f"{MINUS}0.250"),
        (length_text(32768), "32k"), (length_text(1000), "1,000"),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(written, expected):
    assert written == expected

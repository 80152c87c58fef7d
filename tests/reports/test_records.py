"""Records: what is refused and with which words, and how seeds are put together."""

import copy
import json
import statistics

import pytest

from manticore.reports.records import (
    check_result,
    combine_seeds,
    load_rows,
    load_run,
    sorted_rows,
)
from tests.reports.fake_run import KINDS, fake_result, make_run

SEEDS = (3, 5, 8)


@pytest.mark.parametrize("key", ["schema", "name", "seed", "kinds", "hybrid", "rows"])
def test_a_missing_key_is_named(key):
    result = fake_result()
    del result[key]
    with pytest.raises(ValueError, match=f"result.json lacks '{key}'"):
        check_result(result)


@pytest.mark.parametrize("key", ["id", "label", "group", "seeds", "tokens", "parameters", "loss"])
def test_a_missing_key_of_a_row_is_named_with_its_place(key):
    result = fake_result()
    del result["rows"][2][key]
    with pytest.raises(ValueError, match=rf"rows\[2\] lacks '{key}'"):
        check_result(result)


def test_a_misspelt_key_gets_a_suggestion():
    result = fake_result()
    result["hybrid"]["mixtures"] = result["hybrid"].pop("mixture")
    with pytest.raises(ValueError, match="Did you mean 'mixture' where it says 'mixtures'"):
        check_result(result)


def test_a_loss_that_a_kind_lacks_is_named():
    result = fake_result()
    del result["rows"][0]["loss"]["maths"]
    with pytest.raises(ValueError, match=r"rows\[0\] \(component-0\): loss lacks 'maths'"):
        check_result(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(schema=2), "has schema 2; this version reads schema 1"),
        (lambda r: r.update(rows=[]), "holds no rows"),
        (lambda r: r.update(kinds="prose"), "not a list of names"),
        (lambda r: r["rows"][1].update(group="other"), "unknown group 'other'. Known: hybrid"),
        (lambda r: r["rows"][1].update(id="component-0"), "'component-0' stands twice"),
        (lambda r: r["hybrid"]["mixture"].pop(), "mixture should be 2 x 2"),
        (lambda r: r["hybrid"]["partition"].pop(), "partition should be 2 x 2"),
        (lambda r: r["hybrid"].update(loyalty=[2.0]), "loyalty has 1 numbers, not 3"),
        (lambda r: r["goals"][0].pop("met"), r"goals\[0\] lacks 'met'"),
        (lambda r: r.update(samples=["text"]), r"samples\[0\] is 'text', not an object"),
    ],
)
def test_a_result_that_does_not_fit_is_refused(change, message):
    result = fake_result()
    change(result)
    with pytest.raises(ValueError, match=message):
        check_result(result)


def test_a_folder_without_a_result_says_that_the_run_has_not_finished(tmp_path):
    with pytest.raises(ValueError, match="the run has not finished"):
        load_run(tmp_path)


def test_a_broken_result_is_named(tmp_path):
    (tmp_path / "result.json").write_text('{"schema": 1,')
    with pytest.raises(ValueError, match="is not valid JSON"):
        load_run(tmp_path)


def test_a_line_that_a_crash_cut_short_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run", steps=8)
    whole = len(load_run(folder).metrics)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "finetune", "st')
    assert len(load_run(folder).metrics) == whole


def test_words_for_numbers_that_json_lacks_are_read_as_numbers(tmp_path):
    folder = make_run(tmp_path / "run", steps=8)
    result = fake_result()
    result["hybrid"]["loyalty"] = ["inf", 2.0, 2.0]
    (folder / "result.json").write_text(json.dumps(result))
    assert load_run(folder).result["hybrid"]["loyalty"][0] == float("inf")


def test_mean_and_spread_over_seeds_are_those_of_the_statistics_module():
    results = [fake_result(seed) for seed in SEEDS]
    for index, row in enumerate(combine_seeds(results)):
        for column in ("mean", *KINDS):
            values = [result["rows"][index]["loss"][column] for result in results]
            assert row["loss"][column] == pytest.approx(statistics.mean(values))
            assert row["loss_sd"][column] == pytest.approx(statistics.stdev(values))
        assert row["seeds"] == len(SEEDS)
        assert row["parameters"] == results[0]["rows"][index]["parameters"]


def test_one_seed_has_no_spread():
    assert all(row["loss_sd"] is None for row in combine_seeds([fake_result()]))


def test_combined_rows_are_rows_again(tmp_path):
    rows = combine_seeds([fake_result(seed) for seed in SEEDS])
    path = tmp_path / "expected.json"
    path.write_text(json.dumps({"rows": rows}))
    assert load_rows(path, KINDS) == rows


def test_a_row_that_one_seed_lacks_says_how_many_it_has():
    results = [fake_result(seed) for seed in SEEDS]
    results[1]["rows"] = [row for row in results[1]["rows"] if row["id"] != "uniform"]
    seeds = {row["id"]: row["seeds"] for row in combine_seeds(results)}
    assert seeds["uniform"] == 2
    assert seeds["hybrid"] == 3


def test_learning_rates_that_differ_are_listed_rather_than_averaged():
    results = [fake_result(seed) for seed in (1, 2)]
    results[1]["rows"][0]["lr"] = 5e-3
    row = combine_seeds(results)[0]
    assert row["lr"] is None
    assert row["note"] == "learning rates 0.003, 0.005"


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "got no results"),
        ([fake_result(1), fake_result(1)], "repeat"),
        ([fake_result(1), {**fake_result(2), "kinds": ["prose"]}], "different kinds"),
    ],
)
def test_results_that_cannot_be_combined_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        combine_seeds(results)


def test_combining_leaves_the_results_as_they_were():
    results = [fake_result(seed) for seed in SEEDS]
    before = copy.deepcopy(results)
    combine_seeds(results)
    assert results == before


def test_rows_are_sorted_by_mean_with_ensembles_among_them():
    rows = sorted_rows(fake_result()["rows"])
    means = [row["loss"]["mean"] for row in rows]
    assert means == sorted(means)
    groups = [row["group"] for row in rows]
    assert groups.index("ensemble") < len(groups) - 1 - groups[::-1].index("component")


def test_rates_that_diverged_stay_in_the_combined_row():
    results = [fake_result(seed) for seed in SEEDS]
    results[0]["rows"][0]["diverged_at"] = {"0.5": 3}
    rows = combine_seeds(results)
    assert rows[0]["diverged_at"] == {"0.5": 3}
    assert all(row["diverged_at"] == {} for row in rows[1:])

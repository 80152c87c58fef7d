"""Scores from records: what is chosen, what is averaged, and that nothing is dropped."""

from __future__ import annotations

import math

import pytest

from manticore.evaluation.mad import protocol, score
from manticore.evaluation.mad.intervals import bootstrap_interval, t_cdf, t_interval, t_quantile
from manticore.evaluation.mad.ranks import kendall, rank_agreement, spearman
from manticore.evaluation.mad.settings import BASELINES
from tests.evaluation.mad_records import make_record, make_records

FULL, BASELINE = protocol("full"), protocol("baseline")


def test_the_paper_s_protocol_has_66_settings_and_396_trainings():
    counts = {task: sum(s.task == task for s in FULL.settings) for task in BASELINES}
    assert list(counts.values()) == [11, 14, 11, 6, 11, 13]
    assert FULL.count() == 396
    assert FULL.count(seeds=3) == 3 * 396
    assert len({setting.label for setting in FULL.settings}) == 66
    assert BASELINE.count() == 36


def test_the_full_protocol_has_the_original_s_steps_and_tokens():
    # What athms/mad-lab's own list of configurations adds up to: 5.38 M steps, 1.82e11 tokens.
    steps = {s: FULL.steps_of(s) * len(FULL.grid) for s in FULL.settings}
    assert sum(steps.values()) == pytest.approx(5.38e6, rel=1e-3)
    tokens = sum(n * 128 * s.options["seq_len"] for s, n in steps.items())
    assert tokens == pytest.approx(1.82e11, rel=5e-3)


def test_all_396_trainings_score_as_the_mean_over_settings_of_the_best_of_six():
    # The accuracy depends on the rate, so the best of six has it from the middle one.
    def value(setting, lr, decay, seed):
        return 0.9 - 0.001 * FULL.settings.index(setting) - abs(math.log10(lr / 5e-4)) * 0.1

    (row,) = score(make_records("a", FULL, [0], value))
    for task, found in row.tasks.items():
        places = [i for i, s in enumerate(FULL.settings) if s.task == task]
        assert found.accuracy.mean == pytest.approx(0.9 - 0.001 * sum(places) / len(places))
    assert row.trials == 396
    assert not row.missing
    assert row.average6.interval is None  # one seed has no spread


def test_validation_chooses_and_test_is_reported():
    setting = BASELINE.settings[0]
    records = [
        make_record("a", BASELINE, setting, (1e-4, 0.0, 0), valid=0.9, test=0.5),
        make_record("a", BASELINE, setting, (1e-3, 0.0, 0), valid=0.8, test=0.7),
    ]
    (row,) = score(records)
    assert row.tasks[setting.task].accuracy.mean == 0.5


def test_compat_mad_lab_chooses_on_test_by_the_original_s_accuracy():
    rules = protocol("baseline", compat="mad-lab")
    setting = rules.settings[0]
    records = [
        make_record("a", rules, setting, (1e-4, 0.0, 0), valid=0.9, test=0.5),
        make_record("a", rules, setting, (1e-3, 0.0, 0), valid=0.8, test=0.7),
    ]
    (row,) = score(records)
    assert row.tasks[setting.task].accuracy.mean == pytest.approx(0.69)
    assert row.tasks[setting.task].normalised.mean is None


def test_equal_accuracies_are_told_apart_by_the_loss():
    setting = BASELINE.settings[0]
    worse = make_record("a", BASELINE, setting, (1e-4, 0.0, 0), valid=1.0, test=0.4)
    worse["result"]["valid"]["loss"] = 0.3
    better = make_record("a", BASELINE, setting, (1e-3, 0.0, 0), valid=1.0, test=0.6)
    for records in ([worse, better], [better, worse]):
        assert score(records)[0].tasks[setting.task].accuracy.mean == 0.6


def test_both_averages_weigh_recall_as_the_literature_does():
    by_task = dict(zip(BASELINES, (0.9, 0.7, 0.3, 0.6, 0.4, 0.8), strict=True))
    (row,) = score(make_records("a", BASELINE, [0], lambda s, *_: by_task[s.task]))
    assert row.average6.mean == pytest.approx((0.9 + 0.7 + 0.3 + 0.6 + 0.4 + 0.8) / 6)
    assert row.average5.mean == pytest.approx((0.8 + 0.3 + 0.6 + 0.4 + 0.8) / 5)


def test_normalised_scores_run_from_chance_to_the_ceiling():
    records = make_records("a", BASELINE, [0], lambda *_: 0.5)
    for record in records:
        record["result"] |= {"ceiling": 0.9, "chance": 0.1}
    assert score(records)[0].normalised6.mean == pytest.approx(0.5)


def test_the_interval_is_student_s_over_seeds():
    values = {0: 0.5, 1: 0.6, 2: 0.7}
    (row,) = score(make_records("a", BASELINE, [0, 1, 2], lambda s, lr, wd, seed: values[seed]))
    # t(0.975, 2) = 4.30265, standard error = 0.1 / sqrt(3)
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert row.average6.interval == pytest.approx((0.6 - half, 0.6 + half), abs=1e-5)
    assert dict(row.average6.per_seed) == pytest.approx(values)


def test_a_diverged_trial_is_reported_and_loses_to_one_that_learned():
    def value(setting, lr, decay, seed):
        return None if lr == 1e-3 else 0.8

    (row,) = score(make_records("a", BASELINE, [0], value))
    assert row.average6.mean == pytest.approx(0.8)
    assert len(row.diverged) == 12
    assert "lr 0.001" in row.diverged[0]


def test_a_setting_where_every_trial_diverged_scores_chance():
    (row,) = score(make_records("a", BASELINE, [0], lambda *_: None))
    assert row.average6.mean == pytest.approx(0.1)
    assert row.normalised6.mean == 0.0
    assert len(row.diverged) == BASELINE.count()


def test_missing_trainings_are_listed_and_leave_no_average():
    records = make_records("a", BASELINE, [0, 1], lambda *_: 0.8)
    is_dropped = {"task": "compression", "seed": 1}
    kept = [r for r in records if not all(r["settings"][k] == v for k, v in is_dropped.items())]
    (row,) = score(kept)
    assert set(row.average6.per_seed) == {0}
    assert set(row.tasks["compression"].accuracy.per_seed) == {0}
    assert len(row.missing) == len(BASELINE.grid)
    assert "C baseline" in row.missing[0]
    assert "seed 1" in row.missing[0]


def test_one_missing_point_is_listed_too():
    records = make_records("a", BASELINE, [0], lambda *_: 0.8)
    (row,) = score(records[1:])
    assert row.missing == ("CR baseline, lr 0.0001, weight decay 0, seed 0",)


def test_a_screened_point_is_not_missing_and_does_not_count():
    records = make_records("a", BASELINE, [0], lambda *_: 0.8)
    setting, point = BASELINE.settings[0], (*BASELINE.grid[0], 0)
    short = make_record("a", BASELINE, setting, point, valid=1.0, share=0.25)
    (row,) = score([short, *records[1:]])
    assert not row.missing
    assert row.tasks[setting.task].accuracy.mean == pytest.approx(0.8)
    assert row.trials == 35


def test_architectures_of_one_name_and_other_layers_are_told_apart():
    records = make_records("a", BASELINE, [0], lambda *_: 0.8)
    others = make_records("a", BASELINE, [0], lambda *_: 0.7)
    for record in others:
        record["settings"]["d_model"] = 16
    assert [row.name for row in score([*records, *others])] == ["a", "a #2"]


def test_records_of_an_older_version_score_by_what_they_show():
    records = make_records("a", BASELINE, [0], lambda *_: 0.8)
    for record in records:
        record["settings"]["protocol_version"] = 0
    (row,) = score(records)
    assert row.average6.mean == pytest.approx(0.8)
    assert row.protocol["protocol_version"] == 0


def test_t_quantiles_agree_with_printed_tables():
    # Any table of Student's t, two-sided 95 %.
    for degrees, printed in {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}.items():
        assert t_quantile(0.975, degrees) == pytest.approx(printed, abs=6e-4)
    assert t_cdf(0.0, 3) == 0.5
    assert t_interval([0.3]) is None


def test_the_bootstrap_interval_holds_the_mean_of_its_values():
    values = [0.1, 0.4, 0.35, 0.8, 0.6, 0.5]
    low, high = bootstrap_interval(6, lambda i: sum(values[j] for j in i) / 6)
    assert 0.1 < low < sum(values) / 6 < high < 0.8


def test_rank_correlations_of_a_worked_example():
    # Ranks (1, 2, 3, 4, 5) against (2, 1, 4, 3, 5): sum of squares 4, two of ten pairs reversed.
    a, b = [10, 20, 30, 40, 50], [0.2, 0.1, 0.4, 0.3, 0.5]
    assert spearman(a, b) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert kendall(a, b) == pytest.approx(6 / 10)
    assert spearman(a, a[::-1]) == pytest.approx(-1)
    assert math.isnan(spearman(a, [1] * 5))


def test_the_p_value_counts_orders():
    found = rank_agreement([1, 2, 3, 4], [1, 2, 3, 4])
    assert found is not None
    assert found.p_value == pytest.approx(1 / 24)
    assert rank_agreement([1, 2], [1, 2]) is None
    with pytest.raises(ValueError, match="cannot be ranked"):
        rank_agreement([1, 2, 3], [1, 2])


def test_unknown_profiles_and_tasks_list_the_known_ones():
    with pytest.raises(ValueError, match="Did you mean 'pocket'"):
        protocol("pockets")
    with pytest.raises(ValueError, match=r"Known: in-context-recall \(CR\)"):
        BASELINE.only(["recal"])
    assert BASELINE.only(["cr", "memorization"]).tasks == ("in-context-recall", "memorization")
    with pytest.raises(ValueError, match="not the original's"):
        protocol("pocket", compat="mad-lab")


def test_importing_scores_does_not_import_torch(run_python):
    code = "import sys, manticore.evaluation.mad, manticore.reports.mad_board; "
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert run_python("-c", code).stdout.split() == ["False", "False"]

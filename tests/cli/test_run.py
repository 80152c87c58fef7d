"""`manticore run` on a tiny hybrid: what it writes, what it skips, what it refuses."""

from __future__ import annotations

import json
import time

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from manticore.cli.main import main
from tests.cli.tiny_run import FEW_ROWS, make_project, snapshot


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with two models, text, a recipe, and in `run` what the recipe gave."""
    folder = tmp_path_factory.mktemp("project")
    recipe = make_project(folder)
    words = ["--out", str(folder / "run"), "--processes", "1", "--quiet"]
    assert main(["run", str(recipe), *words]) == 0
    return folder


@pytest.fixture
def run_again(project):
    """Run the recipe with more words; returns the exit status."""

    def run(*words, out=project / "run"):
        recipe = str(project / "recipes" / "small.yaml")
        return main(["run", recipe, "--out", str(out), "--processes", "1", "--quiet", *words])

    return run


def test_the_result_holds_every_row_and_no_row_is_hidden(project):
    result = json.loads((project / "run" / "result.json").read_text())
    assert {row["id"] for row in result["rows"]} == {
        "hybrid",
        "component-0",
        "component-1",
        "component-0-equal-flops",
        "component-1-equal-flops",
        "ensemble-logits",
        "ensemble-probabilities",
        "no-cross-talk",
        "uniform",
        "random",
    }
    assert all(row["loss"].keys() == {"mean", "tales", "sums"} for row in result["rows"])
    assert [phase["name"] for phase in result["phases"]][:2] == ["projectors", "search"]
    assert all(phase["tokens"] > 0 for phase in result["phases"][:4])
    assert len(result["samples"]) == 1


def test_equal_flops_means_equal_flops(project):
    result = json.loads((project / "run" / "result.json").read_text())
    flops = {row["id"]: row["train_flops"] for row in result["rows"]}
    spent = flops["hybrid"] + sum(phase["flops"] for phase in result["phases"][:2])
    for k in (0, 1):
        # Whole steps: half a step of the component is the most that rounding moves.
        step = flops[f"component-{k}"] / 2
        assert abs(flops[f"component-{k}-equal-flops"] - spent) <= 0.5 * step


def test_the_report_is_one_page_that_names_every_row(project):
    page = (project / "run" / "report.html").read_text(encoding="utf-8")
    result = json.loads((project / "run" / "result.json").read_text())
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert all(row["label"] in page for row in result["rows"])


def test_the_model_loads_generates_and_is_the_one_that_was_tested(project, capsys):
    folder = project / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("the old man", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4, pad_token_id=0).shape[1] > ids.shape[1]
    recipe = str(project / "recipes" / "small.yaml")
    assert main(["eval", str(folder), "--data", recipe, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    rows = json.loads((project / "run" / "result.json").read_text())["rows"]
    tested = next(row for row in rows if row["id"] == "hybrid")
    for kind in ("mean", "tales", "sums"):
        assert measured["loss"][kind] == pytest.approx(tested["loss"][kind], rel=1e-6)
        assert measured["bits_per_byte"][kind] == pytest.approx(
            tested["bits_per_byte"][kind], rel=1e-6
        )


def test_a_finished_run_is_read_back_and_changes_no_file(project, run_again, capsys):
    before = snapshot(project / "run")
    started = time.process_time()
    assert run_again() == 0
    assert time.process_time() - started < 3  # nothing is trained again
    assert snapshot(project / "run") == before
    assert "Hybrid (searched mixture)" in capsys.readouterr().out


def test_another_recipe_in_the_same_folder_is_refused(project, run_again, capsys):
    before = snapshot(project / "run")
    assert run_again("finetune.steps=3") == 2
    assert "finetune.steps" in capsys.readouterr().err
    assert snapshot(project / "run") == before


def test_several_seeds_become_one_table_with_spread(project, run_again, tmp_path, capsys):
    assert run_again("--seeds", "0,1", *FEW_ROWS, out=tmp_path / "seeds") == 0
    table = json.loads((tmp_path / "seeds" / "expected.json").read_text())
    assert table["seeds"] == [0, 1]
    single = [
        json.loads((tmp_path / "seeds" / f"seed-{seed}" / "result.json").read_text())["rows"]
        for seed in (0, 1)
    ]
    for row in table["rows"]:
        losses = [next(r for r in rows if r["id"] == row["id"])["loss"]["mean"] for rows in single]
        assert row["loss"]["mean"] == pytest.approx(sum(losses) / 2)
        # The sample standard deviation of two numbers.
        assert row["loss_sd"]["mean"] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5)
    assert "±" in capsys.readouterr().out


def test_seeds_that_are_no_numbers_or_given_twice_are_refused(run_again, tmp_path, capsys):
    for words in ("a,b", "0,0"):
        for more in ([], ["--dry-run"]):
            assert run_again("--seeds", words, *more, out=tmp_path / "x") == 2
            assert f"--seeds {words}" in capsys.readouterr().err
    assert run_again("--dry-run", "--processes", "0", out=tmp_path / "x") == 2
    assert "argument --processes: 0: give a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_lost_result_is_made_again_from_the_stages_that_are_there(project, run_again, tmp_path):
    result = project / "run" / "result.json"
    before, others = json.loads(result.read_text()), snapshot(project / "run" / "rows")
    result.unlink()
    assert run_again() == 0
    after = json.loads(result.read_text())
    assert after["rows"] == before["rows"]
    assert after["samples"] == before["samples"]
    assert snapshot(project / "run" / "rows") == others


def test_a_rate_that_diverges_is_finished_and_told_and_the_others_go_on(
    run_again, tmp_path, monkeypatch, capsys
):
    words, out = [*FEW_ROWS, "compare.lr_factors=1,1e9", "finetune.steps=4"], tmp_path / "steep"
    assert run_again(*words, out=out) == 0
    sentence = "Hybrid (searched mixture) diverged at learning rate 2e+06 (step"
    assert sentence in capsys.readouterr().out
    assert sentence in (out / "report.html").read_text(encoding="utf-8")
    before = json.loads((out / "result.json").read_text())["rows"]
    rates = {row["id"]: row["lr"] for row in before if row["group"] != "ensemble"}
    assert rates == {"hybrid": 0.002, "component-0": 0.002, "component-1": 0.002}
    assert not list((out / "trials").glob("*.error.txt"))

    # All trials are finished: another choice among them, and another report, train nothing.
    for lost in ("result.json", "stages/finetune.json", "stages/test.json"):
        (out / lost).unlink()
    monkeypatch.setattr("manticore.hybrids.trials._train_row", pytest.fail)
    assert run_again(*words, out=out) == 0
    after = json.loads((out / "result.json").read_text())["rows"]
    assert [row["loss"] for row in after] == [row["loss"] for row in before]


def test_a_row_that_diverges_at_every_rate_is_told(run_again, tmp_path, capsys):
    words = [*FEW_ROWS, "components.1.lr=1e6", "finetune.steps=4"]
    assert run_again(*words, out=tmp_path / "cliff") == 2
    error = capsys.readouterr().err
    assert "component-1 diverged at every learning rate that was tried (1e+06)" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("finetune.stpes=3", "Did you mean 'finetune.steps'?"),
        ("fintune.steps=3", "Did you mean 'finetune"),
        ("finetune.steps=many", "finetune.steps"),
        ("components.0.path=../nowhere", "There is no folder"),
        ("data.sources.0.path=../nowhere.txt", "There is no file or folder"),
        ("data.sources.0.field=words", "words"),
        ("data.seq_len=4000", "rows"),
        ("hybrid.num_blocks=9", "num_blocks=9"),
        ("hybrid.host=2", "host"),
    ],
)
def test_bad_input_ends_with_status_2_and_leaves_no_folder(
    run_again, tmp_path, capsys, override, message
):
    assert run_again(override, out=tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_refused(run_again, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert run_again(out=tmp_path / "taken") == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_of_something_else_is_refused(project, run_again, capsys):
    before = snapshot(project / "neox")
    assert run_again(out=project / "neox") == 2
    assert "is not a run's folder" in capsys.readouterr().err
    assert snapshot(project / "neox") == before

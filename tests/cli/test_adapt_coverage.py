"""The verb that says which layers an adapter reaches."""

import json

from manticore.cli.main import main


def test_lora_by_default_reaches_one_layer_of_four_and_our_targets_all(tmp_path, capsys):
    out = tmp_path / "cover.json"
    words = ["adapt", "coverage", "nemotron_h", "--family", "--method", "lora"]
    assert main([*words, "--out", str(out)]) == 0
    assert "learns in 1 of 4 layers" in capsys.readouterr().out
    assert json.loads(out.read_text())
    assert main([*words, "--strict"]) == 1
    capsys.readouterr()
    assert main([*words, "--targets", "default", "--gradient"]) == 0
    assert "learns in 4 of 4 layers" in capsys.readouterr().out


def test_a_method_without_targets_of_its_own_asks_for_them_by_their_name_here(capsys):
    assert main(["adapt", "coverage", "gpt_neox", "--family", "--method", "ln_tuning"]) == 2
    assert "--targets of `manticore adapt coverage`" in capsys.readouterr().err


def test_a_family_that_does_not_exist_is_refused(capsys):
    assert main(["adapt", "coverage", "nemotron", "--family"]) == 2
    assert capsys.readouterr().err
    assert main(["adapt", "coverage", "t5", "--family"]) == 2
    said = capsys.readouterr().err
    assert "No tiny t5 can be made" in said
    assert len(said.splitlines()) == 1  # transformers' list of its models is left out

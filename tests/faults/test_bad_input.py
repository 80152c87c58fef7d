"""Whatever a user gets wrong is said before any compute, with status 2 and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manticore.cli.main import main
from manticore.text.tokenizers import train_bpe
from manticore.training.checkpoint_folder import damage
from tests.faults.jobs import VOCAB_SIZE, partial_files, write_job, write_recipe

SHEEP = [f"{n} sheep and {n} goats went to {n * n} meadows" for n in range(900)]
LEAN = {
    "component_equal_tokens": False,
    "component_equal_flops": False,
    "no_cross_talk": False,
    "uniform_mixture": False,
    "random_mixture": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    write_job(folder)
    return folder


@pytest.fixture
def job(made: Path, tmp_path: Path) -> Path:
    """A job of one's own, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "job"))


@pytest.fixture
def refused(tmp_path: Path, capsys) -> Callable[..., str]:
    """Run a recipe that must be refused before anything is written; returns the message."""

    def run(recipe: Path, *words: str, out: Path | None = None) -> str:
        out = out or tmp_path / "out"
        status = main(["run", str(recipe), "--out", str(out), "--quiet", *words])
        message = capsys.readouterr().err
        assert status == 2, message
        assert "Traceback" not in message
        assert not out.exists(), sorted(out.rglob("*"))
        return message

    return run


def says(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, message


# The recipe itself


def test_an_unknown_key_is_named_with_the_one_that_was_meant(job: Path, refused):
    message = refused(write_recipe(job, finetune={"stesp": 3}))
    says(message, "finetune.stesp", "steps")


def test_an_unknown_key_in_a_variant_is_found_before_anything_runs(job: Path, refused):
    variant = {"id": "wide", "label": "wide", "overrides": ["hybrid.mixng=shared"]}
    says(refused(write_recipe(job, compare={"variants": [variant]})), "mixng", "mixing", "wide")


def test_a_variant_that_would_change_nothing_is_refused(job: Path, refused):
    variant = {"id": "long", "label": "long", "overrides": ["finetune.steps=9"]}
    says(refused(write_recipe(job, compare={"variants": [variant]})), "variant long", "projectors")


def test_a_rate_for_a_row_that_no_table_has_is_refused(job: Path, refused):
    rates = {"component-1-equal-flop": 0.1, "random": 0.1}
    message = refused(write_recipe(job, compare={"row_lr": rates, "random_mixture": False}))
    says(message, "'component-1-equal-flop'", "Did you mean 'component-1-equal-flops'")


def test_a_variant_that_cannot_be_built_is_found_before_anything_runs(job: Path, refused):
    variant = {"id": "deep", "label": "deep", "overrides": ["hybrid.num_blocks=9"]}
    message = refused(write_recipe(job, compare={"variants": [variant]}))
    says(message, "variant deep", "num_blocks=9", "Choose 1 to 2")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("finetune.steps=0", "at least 1"),
        ("finetune.lr=-1", "above 0"),
        ("finetune.batch_size=0", "at least 1"),
        ("search.steps=0", "at least 1"),
        ("data.eval_rows=0", "at least 1"),
        ("data.seq_len=1", "at least 2"),
        ("hybrid.host=2", "from 0 to 1"),
        ("search.method=annealing", "gaea"),
    ],
)
def test_a_number_out_of_range_is_named(job: Path, refused, override: str, allowed: str):
    key, _, value = override.partition("=")
    says(refused(job / "recipe.yaml", override), key.rpartition(".")[2], value, allowed)


# Components


def test_a_missing_checkpoint_is_named(job: Path, refused):
    shutil.rmtree(job / "mamba")
    says(refused(job / "recipe.yaml"), str(job / "mamba"), "There is no folder", "save_pretrained")


def test_a_cut_off_checkpoint_is_named(job: Path, refused):
    weights = job / "mamba" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    says(refused(job / "recipe.yaml"), str(weights), "corrupt", "again")


def test_a_pickle_is_never_read(job: Path, refused):
    (job / "mamba" / "model.safetensors").unlink()
    pickle = job / "mamba" / "pytorch_model.bin"
    pickle.write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    says(refused(job / "recipe.yaml"), pickle.name, "pickle", "safetensors only", "convert")


def test_a_family_without_a_row_lists_the_known_ones(job: Path, refused):
    change_config(job / "mamba", model_type="xlnet")
    says(refused(job / "recipe.yaml"), "xlnet", "gpt_neox", "mamba")


def test_a_weight_that_is_not_finite_is_named(job: Path, tmp_path: Path, capsys):
    """Found when the weights are read: after the folder is opened, before anything is computed."""
    file = job / "mamba" / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("out_proj.weight"))
    weights[name][0, 0] = torch.inf
    save_file(weights, file, metadata={"format": "pt"})
    assert main(["run", str(job / "recipe.yaml"), "--out", str(tmp_path / "out")]) == 2
    says(capsys.readouterr().err, name, str(job / "mamba"), "not finite")
    assert not (tmp_path / "out" / "stages").exists()
    assert not partial_files(tmp_path)


# Text and tokenizers


def test_an_empty_corpus_is_named(job: Path, refused):
    (job / "sums.jsonl").write_text("")
    says(refused(job / "recipe.yaml"), str(job / "sums.jsonl"), "empty")


def test_a_binary_corpus_is_named(job: Path, refused):
    (job / "sums.txt").write_bytes(bytes(range(256)) * 40)
    recipe = write_recipe(job, data={"sources": [{"kind": "sums", "path": "./sums.txt"}]})
    says(refused(recipe), str(job / "sums.txt"), "text")


def test_a_corpus_too_small_for_its_splits_is_refused(job: Path, refused):
    lines = (job / "sums.jsonl").read_text().splitlines()[:2]
    (job / "sums.jsonl").write_text("\n".join(lines))
    says(refused(job / "recipe.yaml"), "2 documents", "more text")


def test_a_split_that_a_stage_needs_cannot_be_empty(job: Path, refused):
    message = refused(job / "recipe.yaml", "data.splits={train: 0.93, architecture: 0.0}")
    says(message, "architecture", "above 0", "search.method=none")


def test_a_table_shorter_than_the_tokenizer_is_refused(job: Path, refused):
    longer = train_bpe(SHEEP, VOCAB_SIZE + 40)
    longer.save_pretrained(str(job / "longer"))
    shutil.copy(job / "longer" / "tokenizer.json", job / "gpt2" / "tokenizer.json")
    shutil.copy(job / "longer" / "tokenizer.json", job / "mamba" / "tokenizer.json")
    message = refused(job / "recipe.yaml")
    says(message, f"table of {VOCAB_SIZE} rows", f"{VOCAB_SIZE + 40} tokens", "trained with")


def test_components_with_different_tokenizers_must_say_so(job: Path, refused):
    other = train_bpe(SHEEP, VOCAB_SIZE)
    other.save_pretrained(str(job / "mamba"))
    message = refused(job / "recipe.yaml")
    says(message, "components.1 (mamba)", "differs", "Set components.1.tokenizer: ./mamba")


def test_a_tokenizer_that_is_not_the_hosts_is_refused(job: Path, refused):
    other = train_bpe(SHEEP, VOCAB_SIZE)
    other.save_pretrained(str(job / "other"))
    message = refused(job / "recipe.yaml", "data.tokenizer=./other")
    says(message, "components.0 (gpt2)", "data.tokenizer", "Leave data.tokenizer out")


# The hybrid's shape


@pytest.mark.parametrize(
    ("ranges", "problem"),
    [
        ([[0, 1], [2, 3]], "skips a layer"),
        ([[0, 2], [1, 3]], "repeats a layer"),
        ([[0, 1], [1, 2]], "ends at layer 2"),
        ([[0, 3]], "1 ranges for num_blocks=2"),
        ([[0, 0], [0, 3]], "without a layer"),
    ],
)
def test_a_wrong_partition_is_explained(job: Path, refused, ranges: list, problem: str):
    recipe = write_recipe(job, hybrid={"partition": [ranges, [[0, 1], [1, 2]]]})
    says(refused(recipe), problem, "component 0")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[1.2, -0.2], [0.5, 0.5]], "negative"),
        ([[0.5, 0.6], [0.5, 0.5]], "not to 1"),
        ([[0.5, 0.5]], "(2, 2)"),
        ([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], "(2, 2)"),
    ],
)
def test_a_wrong_mixture_is_explained(job: Path, refused, rows: list, problem: str):
    says(refused(write_recipe(job, hybrid={"mixture": rows})), problem, "hybrid.mixture")


def test_more_blocks_than_layers_are_refused(job: Path, refused):
    says(refused(write_recipe(job, hybrid={"num_blocks": 3})), "num_blocks=3", "Choose 1 to 2")


def test_a_row_longer_than_a_position_table_is_refused(job: Path, refused):
    says(
        refused(write_recipe(job, data={"seq_len": 65})), "65 tokens", "64 positions", "at most 64"
    )


# Where it is written


def test_a_path_below_a_file_is_refused(job: Path, refused, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    message = refused(job / "recipe.yaml", out=tmp_path / "file" / "out")
    says(message, str(tmp_path / "file"), "--out")


def test_a_folder_of_something_else_is_left_alone(job: Path, tmp_path: Path, capsys):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Anna")
    assert main(["run", str(job / "recipe.yaml"), "--out", str(tmp_path / "letters")]) == 2
    says(capsys.readouterr().err, "not a run's folder", "dear.txt", "--out")
    assert [p.name for p in (tmp_path / "letters").iterdir()] == ["dear.txt"]


def test_a_run_of_another_recipe_is_left_alone(job: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    recipe = write_recipe(job, compare=LEAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("manticore.hybrids.experiment.Experiment.projectors", stop_here)
        assert main(["run", str(recipe), "--out", str(out), "--quiet"]) == 2
    capsys.readouterr()
    before = (out / "recipe.yaml").read_text()
    assert main(["run", str(recipe), "--out", str(out), "finetune.lr=0.1"]) == 2
    says(capsys.readouterr().err, "finetune.lr", "0.1", "--out")
    assert (out / "recipe.yaml").read_text() == before


def test_no_space_left_says_what_to_do_and_leaves_nothing_half_written(
    job: Path, small_disk: Path, capsys
):
    """The disk fills up in the first stage; once there is space, the same command goes on."""
    recipe, out, ballast = write_recipe(job, compare=LEAN), small_disk / "out", small_disk / "full"
    words = ["run", str(recipe), "--out", str(out), "--quiet", "--processes", "1"]
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 150_000))
    assert main(words) == 2
    says(capsys.readouterr().err, str(out), "o space left", "same command")
    assert not partial_files(out)
    assert not (out / "stages").exists()
    ballast.unlink()
    assert main(words) == 0


@pytest.mark.parametrize("write", [0, 2, 6, 12, 17, 25])
def test_a_full_disk_at_any_write_is_said_and_the_run_goes_on_later(
    job: Path, tmp_path: Path, capsys, monkeypatch, write: int
):
    """Every lasting write ends in fsync, so that is where the disk is made full."""
    recipe, out = write_recipe(job, compare=LEAN), tmp_path / "out"
    words = ["run", str(recipe), "--out", str(out), "--quiet", "--processes", "1"]
    with FullDisk(write) as disk:
        status = main(words)
    message = capsys.readouterr().err
    assert disk.was_hit
    assert status == 2, message
    says(message, "No space left", "same command")
    assert not partial_files(out)
    assert all(not damage(path) for path in out.rglob("step-*"))
    if write == 25:
        assert main(words) == 0
        assert (out / "result.json").exists()


# Numbers that run away


def test_a_loss_that_becomes_nan_stops_and_keeps_the_last_good_checkpoint(
    job: Path, tmp_path: Path, capsys
):
    changes = {"lr": 1.0e30, "steps": 20, "checkpoint_every": 1, "warmup_steps": 0}
    recipe, out = write_recipe(job, compare=LEAN, finetune=changes), tmp_path / "out"
    assert main(["run", str(recipe), "--out", str(out), "--quiet", "--processes", "1"]) == 2
    message = capsys.readouterr().err
    kept = sorted(out.glob("rows/hybrid-*/train/step-*"))
    assert kept
    says(message, "hybrid", "is not finite", "step", str(kept[-1]), "learning rate")
    assert not damage(kept[-1])
    assert all(
        value.isfinite().all() for value in load_file(kept[-1] / "weights.safetensors").values()
    )
    assert not (out / "result.json").exists()
    assert not partial_files(out)


def stop_here(*_: Any) -> None:
    raise ValueError("stopped by the test")


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class FullDisk:
    """From the given fsync on the disk is full."""

    def __init__(self, first: int) -> None:
        self.first, self.calls, self.was_hit = first, 0, False
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> FullDisk:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if self.calls >= self.first:
                self.was_hit = True
                raise OSError(28, "No space left on device")
            self.calls += 1
            real(descriptor)

        self.patch.setattr(os, "fsync", fsync)
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.undo()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("mounting a small disk needs root; full disks are also simulated")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)

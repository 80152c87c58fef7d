"""The page: complete, escaped, self-contained, reproducible, whole when pieces are missing."""

import json
import re
from pathlib import Path

import pytest

from manticore.reports.page import write_report
from tests.reports.fake_run import NAMES, ROWS, fake_result, make_run
from tests.reports.html_checks import PageReader

EVIL = '<script>alert(\'x\')</script>"onload="a()" & <b>bold</b>'


def read(folder: Path, **options: object) -> tuple[str, PageReader]:
    page = write_report(folder, **options).read_text(encoding="utf-8")  # type: ignore[arg-type]
    return page, PageReader(page)


def change_result(folder: Path, **changes: object) -> None:
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "quickstart", steps=40)


@pytest.fixture(scope="module")
def page(run: Path) -> tuple[str, PageReader]:
    return read(run)


def test_every_row_goal_sample_and_component_is_on_the_page(page):
    reader, result = page[1], fake_result()
    for row in ROWS:
        # twice as text: this run's table and the committed one; figures and costs come on top
        assert reader.text.count(row[1]) >= 4
    for goal in result["goals"]:
        assert goal["text"] in reader.text
        assert goal["detail"] in reader.text
    for state in ("✓ met", "✗ not met", "○ not measured"):
        assert state in reader.text
    for sample in result["samples"]:
        assert " ".join(sample["text"].split()) in reader.text
    for name in NAMES[:2]:
        assert name in reader.text


def test_sections_come_in_their_order(page):
    ids = [attributes["id"] for tag, attributes in page[1].elements if tag == "section"]
    assert ids == [
        "architecture", "results", "goals", "mixture", "curves", "kinds", "fit", "cost",
        "samples", "data", "recipe",
    ]  # fmt: skip


def test_the_committed_table_is_labelled_and_shows_its_spread(page):
    assert "Committed table, 3 seeds: mean ± standard deviation over seeds" in page[1].text
    assert re.search(r"3\.\d{3} ±0\.00\d", page[1].text)


def test_costs_say_state_bytes_at_both_lengths_and_the_phases(page):
    for text in ("state, 1k", "state, 32k", "2.40 MiB", "76.8 MiB", "projectors", "evaluate"):
        assert text in page[1].text


def test_the_page_is_balanced_html_for_a_phone(page):
    text, reader = page
    assert reader.problems == []
    assert text.startswith("<!doctype html>")
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        reader.elements
    )
    assert "prefers-color-scheme: dark" in text


def test_nothing_is_loaded_and_nothing_runs(page):
    text, reader = page
    assert reader.loads == []
    assert reader.count("script") == reader.count("link") == reader.count("iframe") == 0
    assert not re.search(r"url\(|@import|https?://", text)
    assert "default-src 'none'" in text


def test_every_figure_has_a_description(page):
    pictures = [a for tag, a in page[1].elements if tag == "svg"]
    assert len(pictures) > 10
    for attributes in pictures:
        described = attributes.get("role") == "img" and attributes.get("aria-label")
        assert described or attributes.get("aria-hidden") == "true"


def test_no_number_went_wrong_in_a_figure(page):
    drawn = re.findall(r'(?:d|x|y|x1|x2|cx|width|height)="([^"]*)"', page[0])
    assert drawn
    assert not [value for value in drawn if re.search(r"nan|inf|e[+-]", value)]
    assert not [value for value in drawn if re.fullmatch(r"-[0-9.]+", value)]


def test_text_from_a_run_is_escaped_everywhere(tmp_path):
    folder = make_run(tmp_path / "run", steps=8)
    result = json.loads((folder / "result.json").read_text())
    result["name"] = result["command"] = EVIL
    result["kinds"] = [EVIL, "maths"]
    result["data"] = {EVIL: {"tokens": 1, "bytes": 2, "sha256": EVIL, "licence": EVIL}}
    result["goals"][0].update(text=EVIL, detail=EVIL)
    result["samples"] = [{"prompt": EVIL, "text": EVIL + EVIL, "settings": {EVIL: EVIL}}]
    result["phases"][0]["name"] = EVIL
    result["hybrid"]["components"][0].update(name=EVIL, family=EVIL, licence=EVIL)
    for row in result["rows"]:
        row.update(label=row["label"] + EVIL, note=EVIL)
        row["loss"][EVIL] = row["loss"].pop("prose")
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "expected.json").unlink()
    (folder / "recipe.yaml").write_text(f"name: {EVIL}\n")
    (folder / "environment.json").write_text(json.dumps({EVIL: EVIL}))
    text, reader = read(folder)
    assert reader.problems == []
    assert reader.count("script") == 0
    assert "<script" not in text
    assert "onload" not in {name for _, attributes in reader.elements for name in attributes}
    assert EVIL in reader.text


def test_the_same_records_give_the_same_bytes(run, tmp_path):
    first = write_report(run, tmp_path / "a.html").read_bytes()
    assert write_report(run, tmp_path / "b.html").read_bytes() == first


@pytest.mark.parametrize(
    ("components", "blocks", "mixing"),
    [(1, 1, "streams"), (2, 24, "streams"), (3, 3, "shared"), (4, 4, "streams"), (6, 12, "shared")],
)
def test_any_shape_of_hybrid_is_drawn(tmp_path, components, blocks, mixing):
    shape = {"num_components": components, "num_blocks": blocks, "mixing": mixing}
    text, reader = read(make_run(tmp_path / "run", steps=8, committed=False, **shape))
    assert reader.problems == []
    boxes = re.findall(r'<rect [^>]*class="c\d box"', text)
    assert len(boxes) == 2 * components * (blocks + 2)  # drawn for a desk and for a phone
    for name in NAMES[:components]:
        assert name in reader.text


def test_a_result_alone_still_makes_a_page(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    result = fake_result()
    kept = ("schema", "name", "seed", "kinds", "hybrid", "rows")
    for key in ("fit", "loyalty", "embed_mixture", "head_mixture", "router"):
        del result["hybrid"][key]
    for key in ("projector_parameters", "projector_flops_share"):
        result["hybrid"][key] = None
    for row in result["rows"]:
        for key in set(row) - {"id", "label", "group", "seeds", "tokens", "parameters", "loss"}:
            del row[key]
    (folder / "result.json").write_text(json.dumps({key: result[key] for key in kept}))
    _, reader = read(folder)
    assert reader.problems == []
    assert "The mixture was not searched in this run" in reader.text
    assert "No metrics were recorded" in reader.text
    assert "Committed" not in reader.text
    for row in ROWS:
        assert row[1] in reader.text


def test_a_row_that_diverged_is_shown_last(tmp_path):
    folder = make_run(tmp_path / "run", committed=False, steps=8)
    rows = fake_result()["rows"]
    # as a run folder writes numbers that JSON lacks
    rows[0].update(loss={"mean": "nan", "prose": "nan", "maths": "inf"}, label="Lost its way")
    change_result(folder, rows=rows)
    _, reader = read(folder)
    table = reader.text[reader.text.index("This run, seed") : reader.text.index("Goals")]
    assert table.index("5-gram") < table.index("Lost its way") < table.index("diverged")


def test_one_kind_of_text_has_one_column_of_losses(tmp_path):
    folder = make_run(tmp_path / "run", committed=False, steps=8)
    change_result(folder, kinds=["prose"])
    _, reader = read(folder)
    assert reader.problems == []
    assert "model mean vs hybrid" in reader.text


def test_a_report_is_not_written_over_a_folder(run, tmp_path):
    with pytest.raises(ValueError, match=r"is a folder. Give a file"):
        write_report(run, tmp_path)


def test_a_report_goes_to_a_new_folder_when_asked(run, tmp_path):
    assert write_report(run, tmp_path / "new" / "page.html").is_file()


def test_reports_need_neither_torch_nor_transformers(run, tmp_path, run_python):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'matplotlib'): sys.modules[name] = None\n"
        "from manticore.reports import combine_seeds, markdown_table, text_table, write_report\n"
        f"print(write_report({str(run)!r}, {str(tmp_path / 'page.html')!r}))\n"
    )
    assert run_python("-c", code).stdout.strip() == str(tmp_path / "page.html")


def test_the_verb_writes_the_page_and_says_where(run, tmp_path, run_python):
    out = tmp_path / "page.html"
    dry = run_python("-m", "manticore", "report", str(run), "--out", str(out), "--dry-run")
    assert f"would write {out}" in dry.stdout
    assert not out.exists()
    done = run_python("-m", "manticore", "report", str(run), "--out", str(out))
    assert done.stdout.strip() == f"Report: {out}"
    assert out.read_text().startswith("<!doctype html>")


def test_the_verb_leaves_with_2_when_there_is_no_run(tmp_path, run_python):
    done = run_python("-m", "manticore", "report", str(tmp_path / "nowhere"), check=False)
    assert done.returncode == 2
    assert "No run folder at" in done.stderr

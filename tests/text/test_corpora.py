"""Reading corpora: every source gives documents, every bad one a message that helps."""

import gzip
import json
import lzma
import sys
from pathlib import Path

import pytest

from manticore.text.corpora import cut_text, read_documents, source_hashes
from manticore.text.documents import Document, documents_hash, text_hash

STORY = "\n\n".join(f"Paragraph {n} says {'something ' * (n % 7 + 1)}." for n in range(60)) + "\n"
ROWS = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}."} for n in range(5)]


def words(documents):
    return " ".join(d.text for d in documents).split()


def write_rows(path: Path, rows=ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("story.txt", lambda path, data: path.write_bytes(data)),
        ("story.txt.xz", lambda path, data: path.write_bytes(lzma.compress(data))),
        ("story.txt.gz", lambda path, data: path.write_bytes(gzip.compress(data, mtime=0))),
    ],
)
def test_plain_and_compressed_text_give_the_same_documents(tmp_path, name, write):
    write(tmp_path / name, STORY.encode())
    documents = read_documents(tmp_path / name, kind="prose", document_chars=200)
    assert words(documents) == STORY.split()
    assert {d.kind for d in documents} == {"prose"}
    assert documents[0].group == "story#0000"


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path):
    (tmp_path / "a.txt").write_bytes(STORY.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + STORY.replace("\n", "\r\n").encode())
    first = read_documents(tmp_path / "a.txt", kind="x")
    second = read_documents(tmp_path / "b.txt", kind="x")
    assert [d.text for d in first] == [d.text for d in second]


def test_no_word_is_lost_or_doubled_and_documents_keep_to_their_size():
    cut = list(cut_text(STORY, name="s", kind="x", document_chars=150, region_chars=600))
    assert words(cut) == STORY.split()
    assert max(len(d.text) for d in cut) <= 150 + 2  # the last blank line is not counted
    assert len(cut) > 10


def test_paragraphs_stay_whole_and_blank_lines_are_kept_between_them():
    cut = list(cut_text(STORY, name="s", kind="x", document_chars=300, region_chars=600))
    paragraphs = [p for d in cut for p in d.text.split("\n\n")]
    assert paragraphs == STORY.strip().split("\n\n")


@pytest.mark.parametrize("text", ["word " * 4000, "x" * 20000, "short line\n" * 2000])
def test_text_without_blank_lines_is_still_cut(text):
    cut = list(cut_text(text, name="s", kind="x", document_chars=500, region_chars=2000))
    assert "".join("".join(d.text for d in cut).split()) == "".join(text.split())
    assert max(len(d.text) for d in cut) <= 1000
    assert len({d.group for d in cut}) > 5


def test_indentation_of_a_first_line_is_kept():
    cut = list(cut_text("a\n\n    verse one\n    verse two\n", name="s", kind="x", **SIZES))
    assert cut[0].text == "a\n\n    verse one\n    verse two"


SIZES = {"document_chars": 500, "region_chars": 2000}


def test_groups_do_not_depend_on_the_size_of_documents():
    def group_of_paragraph(document_chars):
        cut = cut_text(STORY, name="s", kind="x", document_chars=document_chars, region_chars=900)
        return {p: d.group for d in cut for p in d.text.split("\n\n")}

    assert group_of_paragraph(100) == group_of_paragraph(400)


def test_a_file_alone_has_the_groups_that_it_has_in_its_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "one.txt"
    file.write_text(STORY)
    assert read_documents(file, kind="x") == read_documents(tmp_path, kind="x")


def test_a_folder_is_read_in_order_of_names_without_notes_and_hidden_files(tmp_path):
    for name in ("b.txt", "a.txt", "README.md", "LICENSE.txt", ".hidden.txt", "picture.png"):
        (tmp_path / name).write_text(f"text of {name}")
    documents = read_documents(tmp_path, kind="x")
    assert [d.text for d in documents] == ["text of a.txt", "text of b.txt"]


@pytest.mark.parametrize("field", ["{question}\n{answer}", ["question", "answer"]])
def test_fields_of_json_lines_are_joined(tmp_path, field):
    documents = read_documents(write_rows(tmp_path / "rows.jsonl"), kind="maths", field=field)
    assert [d.text for d in documents] == [f"{r['question']}\n{r['answer']}" for r in ROWS]
    assert documents[0].source == "rows.jsonl, row 1"


def test_json_lines_json_parquet_and_saved_datasets_agree(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.to_parquet(tmp_path / "rows.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": dataset}).save_to_disk(tmp_path / "dict")
    texts = []
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "saved", "dict"):
        found = read_documents(tmp_path / name, kind="x", field=["question", "answer"])
        texts.append([(d.text, d.group) for d in found])
    assert all(text == texts[0] for text in texts)


def test_rows_that_share_a_prompt_share_a_group_in_any_file(tmp_path):
    rows = [{"question": "Why?", "answer": "So."}, {"question": "Why? ", "answer": "Thus."}]
    write_rows(tmp_path / "a.jsonl", rows[:1])
    write_rows(tmp_path / "b.jsonl", rows[1:])
    for field in ("{question}\n{answer}", "answer"):
        first, second = read_documents(tmp_path, kind="x", field=field)
        assert first.group == second.group


def test_a_group_field_decides_the_group(tmp_path):
    rows = [{"text": "a", "page": "1"}, {"text": "b", "page": "1"}, {"text": "c", "page": "2"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    a, b, c = read_documents(path, kind="x", group_field="page")
    assert a.group == b.group != c.group


def test_limit_keeps_the_first_documents(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl")
    some = read_documents(path, kind="x", field="answer", limit=2)
    assert some == read_documents(path, kind="x", field="answer")[:2]


def test_hashes_ignore_spacing_and_order_but_not_words():
    a, b = (Document(t, "x", "g", "s") for t in ("one  two\n", "three"))
    assert a.hash == text_hash(" one two") != text_hash("onetwo")
    assert documents_hash([a, b]) == documents_hash([b, a]) != documents_hash([a])
    # Pinned: records of earlier runs must stay comparable.
    assert text_hash("one two").startswith("8ab63e29a4ba14e4")


def test_source_hashes_name_every_file(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    assert source_hashes(tmp_path) == {"a.txt": digest}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n ", "is empty"),
        ("a.txt", b"abc\0def", "is binary: it holds a zero byte at 3"),
        ("a.txt", "caf\xe9".encode("latin1"), "is not UTF-8 text: byte 0xe9 at 3"),
        ("a.txt.xz", b"not xz", "is not a whole .xz file"),
        ("a.txt.xz", lzma.compress(b"abc" * 1000)[:-9], "is not a whole .xz file"),
        ("a.txt.gz", gzip.compress(b"abc" * 1000, mtime=0)[:-9], "is not a whole .gz file"),
        ("a.bin", b"abc", "is of no known format. Known: .txt"),
        ("a.jsonl", b'{"text": "a"}\n{oops}\n', "Line 2 of .* is not JSON"),
        ("a.jsonl", b"[1]\n", "row 1 is list, not an object"),
        ("a.json", b"{}", "holds dict, not a list"),
        ("a.json", b"{", "is not JSON"),
        ("a.jsonl", b'{"body": "a", "id": "b"}\n', "no field 'text'. It has: body, id"),
        ("a.jsonl", b'{"text": 3}\n', "'text' of .* is int, not text"),
        ("a.jsonl", b'{"text": " "}\n', "is empty: no row"),
        ("a.parquet", b"PAR0", "is not a whole Parquet file"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_reason(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_documents(tmp_path / name, kind="x")
    assert name in str(error.value)


@pytest.mark.parametrize("field", ["{question.__class__}", "{}", "{a[0]}", "no { close"])
def test_a_template_reaches_plain_fields_only(tmp_path, field):
    with pytest.raises(ValueError, match="names no plain fields"):
        read_documents(write_rows(tmp_path / "rows.jsonl"), kind="x", field=field)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit": 0}, "limit=0"),
        ({"document_chars": 0}, "document_chars=0"),
        ({"document_chars": 90000}, "document_chars=90000 must be"),
        ({"split": "train"}, "split='train' is for Hugging Face datasets"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=message):
        read_documents(tmp_path / "a.txt", kind="x", **settings)


def test_a_missing_path_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere"):
        read_documents(tmp_path / "nowhere", kind="x")
    with pytest.raises(ValueError, match="holds no corpus file"):
        read_documents(tmp_path, kind="x")


def test_an_unknown_split_of_a_dataset_lists_the_known_ones(tmp_path):
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": part, "dev": part}).save_to_disk(tmp_path / "d")
    for split in (None, "test"):
        with pytest.raises(ValueError, match="one of: train, dev"):
            read_documents(tmp_path / "d", kind="x", field="answer", split=split)
    assert len(read_documents(tmp_path / "d", kind="x", field="answer", split="dev")) == 5


@pytest.mark.parametrize("source", ["hf:owner/name", "rows.parquet"])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, source):
    for package in ("datasets", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    path = source if source.startswith("hf:") else tmp_path / source
    with pytest.raises(ValueError, match=r"pip install 'manticore-lm\[eval\]'"):
        read_documents(path, kind="x")


def test_a_hub_name_is_loaded_with_its_configuration(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": ROWS, "test": ROWS[:1]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_documents("hf:owner/name@part", kind="x", field="answer", split="test")
    assert asked == [("owner/name", "part")]
    assert [d.text for d in found] == ["It is 1."]


def test_a_dataset_that_cannot_be_fetched_is_named(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"hf:owner/name could not be loaded: no route"):
        read_documents("hf:owner/name", kind="x")

"""Importing the text room loads nothing heavy."""

import json

MODULES = ("corpora", "splits", "tokenizers", "packing", "batches", "ngram")


def test_no_heavy_package_is_imported_before_it_is_needed(run_python):
    code = (
        "import json, sys\n"
        f"for name in {MODULES!r}: __import__('manticore.text.' + name)\n"
        "print(json.dumps(list(sys.modules)))"
    )
    loaded = set(json.loads(run_python("-c", code).stdout))
    assert "manticore.text.packing" in loaded
    assert not loaded & {"torch", "transformers", "datasets", "pyarrow", "tokenizers"}

"""The command line: one table of verbs, clean errors, fast help."""

from __future__ import annotations

import errno
import shlex
import sys
import types

import pytest

from manticore.cli import main as cli
from manticore.cli import options
from manticore.cli.main import VERBS, Verb, main, verb_parser


@pytest.fixture
def verb(monkeypatch):
    """Install a verb `probe` whose action the test sets."""
    module = types.ModuleType("probe", "Probe things.\n\nExample:\n    manticore probe x.yaml\n")
    module.add_arguments = lambda parser: (options.add_recipe(parser), options.add_out(parser))
    module.run = lambda args: 0
    monkeypatch.setitem(sys.modules, "manticore_probe", module)
    probe = Verb(module="manticore_probe", group="look", help="probe")
    monkeypatch.setitem(VERBS, "probe", probe)
    return module


def fail_with(error):
    def run(args):
        raise error

    return run


@pytest.mark.parametrize("name", sorted(VERBS))
def test_every_verb_has_help_with_an_example_that_parses(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    lines = out[out.index("example:") :].splitlines()[1:]
    examples = [shlex.split(line) for line in lines if line.strip().startswith("manticore ")]
    assert examples
    for words in examples:
        prefix = ["manticore", *name.split()]
        assert words[: len(prefix)] == prefix
        parser, _ = verb_parser(name)
        parser.parse_intermixed_args(words[len(prefix) :])


def test_every_verb_is_in_a_group_that_the_help_shows(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in VERBS)


def test_an_unknown_verb_is_answered_with_a_suggestion(capsys):
    assert main(["reprot"]) == 2
    assert "Unknown verb 'reprot'. Did you mean 'report'? Known: " in capsys.readouterr().err
    assert main(["maad", "run"]) == 2
    assert "Unknown verb 'maad'. Did you mean 'mad run'?" in capsys.readouterr().err
    assert main(["evl", "model"]) == 2
    assert "Unknown verb 'evl'. Did you mean 'eval'?" in capsys.readouterr().err


def test_a_verb_of_two_words_is_found_and_its_first_word_lists_its_family(monkeypatch, capsys):
    called = []
    module = types.ModuleType("toy_verb", "Toys.\n\nExample:\n    manticore toy play")
    module.add_arguments = lambda parser: parser.add_argument("what")
    module.run = lambda args: called.append(args.what) or 0
    monkeypatch.setitem(sys.modules, "toy_verb", module)
    verb = Verb(module="toy_verb", group="look", help="play with a toy")
    monkeypatch.setitem(VERBS, "toy play", verb)
    assert main(["toy", "play", "ball"]) == 0
    assert called == ["ball"]
    assert main(["toy", "--help"]) == 0
    assert "play with a toy" in capsys.readouterr().out
    assert main(["toy"]) == 2
    assert main(["toy", "pley"]) == 2
    assert "Unknown verb 'toy pley'. Did you mean 'toy play'?" in capsys.readouterr().err


def test_no_verb_at_all_shows_the_verbs_and_fails(capsys):
    assert main([]) == 2
    assert "usage: manticore VERB" in capsys.readouterr().out


def test_an_unknown_option_exits_with_2(verb, capsys):
    assert main(["probe", "x.yaml", "--nothing"]) == 2
    assert "--nothing" in capsys.readouterr().err


def test_overrides_may_stand_anywhere(verb):
    seen = []
    verb.run = lambda args: seen.append((args.recipe, options.overrides_of(args), str(args.out)))
    main(["probe", "x.yaml", "a.b=1", "--out", "runs/x", "c=2", "--set", "d=3"])
    assert seen == [("x.yaml", ("a.b=1", "c=2", "d=3"), "runs/x")]


def test_the_verb_decides_the_exit_status(verb):
    verb.run = lambda args: 1
    assert main(["probe", "x.yaml"]) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("n_heads=3 does not divide 8."), "manticore: n_heads=3 does not divide 8.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), "a.txt: No such file."),
        (OSError(errno.ENOSPC, "No space left. Free some", "w.json"), "w.json: No space left. Fr"),
        (PermissionError(errno.EACCES, "Cannot write there", "/x"), "/x: Cannot write there."),
        (OSError("no weights in a/b"), "manticore: no weights in a/b\n"),
    ],
)
def test_bad_input_gives_one_message_and_status_2(verb, capsys, error, expected):
    verb.run = fail_with(error)
    assert main(["probe", "x.yaml"]) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("words", [["--debug", "probe", "x"], ["probe", "x", "--debug"]])
def test_debug_adds_the_traceback(verb, capsys, words):
    verb.run = fail_with(ValueError("wrong"))
    assert main(words) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(verb):
    verb.run = fail_with(KeyError("defect"))
    with pytest.raises(KeyError):
        main(["probe", "x"])


def test_an_interrupt_exits_with_130(verb, capsys):
    verb.run = fail_with(KeyboardInterrupt())
    assert main(["probe", "x"]) == 130
    assert "goes on from the last checkpoint" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_error(run_python):
    code = (
        "import os, sys, types\nfrom manticore.cli.main import VERBS, Verb, main\n"
        "m = types.ModuleType('m', 'x'); m.add_arguments = lambda p: None\n"
        "m.run = lambda a: [print('x' * 1000) for _ in range(1000)] and 0\n"
        "sys.modules['m'] = m; VERBS['m'] = Verb(module='m', group='look', help='')\n"
        "r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "sys.exit(main(['m']))"
    )
    assert run_python("-c", code).stderr == ""


def test_help_starts_fast_and_without_torch(run_python):
    code = (
        "import sys, time\nfrom manticore.cli.main import main\nmain(['--help'])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    # Processor time since the interpreter's start: what else the machine does is not ours.
    seconds = min(float(run_python("-c", code).stdout.split()[-1]) for _ in range(3))
    assert seconds < 0.7


def test_python_m_manticore_is_the_command(run_python):
    done = run_python("-m", "manticore", "nothing", check=False)
    assert done.returncode == 2
    assert "Unknown verb 'nothing'" in done.stderr
    assert run_python("-m", "manticore", "--version").stdout.startswith("manticore ")


def test_verbs_are_not_loaded_before_they_are_used(monkeypatch, capsys):
    monkeypatch.setattr(cli.importlib, "import_module", pytest.fail)
    assert main(["--help"]) == 0

"""The command `manticore`: one table of verbs, each loaded only when it is used."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

_EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One verb: a module with `add_arguments(parser)`, `run(args) -> int` and an example."""

    module: str
    """Holds the verb; its docstring is the help text."""
    group: str
    """Heading in `manticore --help`."""
    help: str
    """One line for `manticore --help`."""


# A new verb is one line here and one module.
VERBS: dict[str, Verb] = {
    "run": Verb(module="manticore.cli.run", group="run", help="run a recipe from beginning to end"),
    "build": Verb(
        module="manticore.cli.build", group="stage", help="put a hybrid together (phase A)"
    ),
    "search": Verb(
        module="manticore.cli.search", group="stage", help="search its mixture (phases A and B)"
    ),
    "finetune": Verb(
        module="manticore.cli.finetune",
        group="stage",
        help="fine-tune it and its baselines (phases A to C)",
    ),
    "eval": Verb(
        module="manticore.cli.eval", group="use", help="measure a model on text, by kind of text"
    ),
    "generate": Verb(
        module="manticore.cli.generate", group="use", help="continue prompts with a model"
    ),
    "prune": Verb(
        module="manticore.cli.prune", group="use", help="drop a hybrid's branches of little weight"
    ),
    "export": Verb(
        module="manticore.cli.export", group="use", help="write a model for plain transformers"
    ),
    "adapt run": Verb(
        module="manticore.cli.adapt_run", group="adapt", help="fine-tune by several methods"
    ),
    "adapt search": Verb(
        module="manticore.cli.adapt_search", group="adapt", help="search the shape of an adapter"
    ),
    "adapt coverage": Verb(
        module="manticore.cli.adapt_coverage", group="adapt", help="layers that an adapter reaches"
    ),
    "transfer run": Verb(
        module="manticore.cli.transfer_run", group="transfer", help="convert, train and compare"
    ),
    "transfer place": Verb(
        module="manticore.cli.transfer_place", group="transfer", help="layers to keep attention in"
    ),
    "transfer show": Verb(
        module="manticore.cli.transfer_show", group="transfer", help="plan of a conversion"
    ),
    "mad run": Verb(
        module="manticore.cli.mad_run", group="mad", help="train an architecture on MAD's tasks"
    ),
    "mad show": Verb(
        module="manticore.cli.mad_show", group="mad", help="parameters, state, FLOPs of layers"
    ),
    "mad search": Verb(
        module="manticore.cli.mad_search", group="mad", help="search layouts by their MAD score"
    ),
    "mad board": Verb(
        module="manticore.cli.mad_board", group="mad", help="table and heat map of all scores"
    ),
    "recipe": Verb(
        module="manticore.cli.recipe", group="look", help="recipes that are shipped, and their keys"
    ),
    "plan": Verb(
        module="manticore.cli.plan", group="look", help="memory of a recipe, and how to need less"
    ),
    "doctor": Verb(
        module="manticore.cli.doctor", group="look", help="examine a model for silent faults"
    ),
    "report": Verb(
        module="manticore.cli.report", group="look", help="write a run's report as one HTML file"
    ),
    "env": Verb(
        module="manticore.cli.env", group="look", help="show versions, devices and fast paths"
    ),
}
_EXAMPLE = "manticore run recipes/hybrids/quickstart.yaml --out runs/quickstart"
_GROUPS = {
    "run": "Whole runs",
    "stage": "Single stages",
    "use": "Use a model",
    "adapt": "Adapters",
    "transfer": "Convert a transformer (XATL)",
    "mad": "Test an architecture (MAD)",
    "look": "Look",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 2 bad input, 130 interrupted.

    Args:
        argv: the words after `manticore`; default `sys.argv`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    is_debug = "--debug" in words
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if words else _EXIT_BAD_INPUT
    if words[0] == "--version":
        from manticore import __version__

        print(f"manticore {__version__}")
        return 0
    words = [word for word in words if word != "--debug"]
    name, rest = _split_verb(words)
    if name in VERBS:
        return _guarded(name, rest, is_debug)
    if any(verb.startswith(f"{name} ") for verb in VERBS):
        return _run_family(name, rest)
    return _complain(_unknown_verb(" ".join(words[:2]) or "--debug"))


def _run_family(family: str, rest: list[str]) -> int:
    """Answer the first word of a two-word verb whose second word is missing or unknown."""
    if rest and rest[0] not in ("-h", "--help", "help"):
        return _complain(_unknown_verb(f"{family} {rest[0]}"))
    print(_family_overview(family))
    return 0 if rest else _EXIT_BAD_INPUT


def _split_verb(words: list[str]) -> tuple[str, list[str]]:
    """Return the verb, of one word (`run`) or two (`mad run`), and the words after it."""
    if " ".join(words[:2]) in VERBS:
        return " ".join(words[:2]), words[2:]
    return " ".join(words[:1]), words[1:]


def verb_parser(name: str) -> tuple[argparse.ArgumentParser, ModuleType]:
    """Return a verb's parser and its module."""
    module = importlib.import_module(VERBS[name].module)
    description, _, example = (module.__doc__ or "").partition("Example:")
    parser = argparse.ArgumentParser(
        prog=f"manticore {name}",
        description=description.strip(),
        epilog=f"example:{example.rstrip()}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser, module


def _guarded(name: str, words: list[str], is_debug: bool) -> int:
    """Run a verb; turn what the user can mend into one message and exit status 2."""
    try:
        parser, module = verb_parser(name)
        args = parser.parse_intermixed_args(words)
        args.debug = is_debug
        status: int = module.run(args)
        sys.stdout.flush()
        return status
    except SystemExit as error:  # argparse has printed what it wanted to say
        return error.code if isinstance(error.code, int) else _complain(str(error.code))
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from the last checkpoint.", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`| head`): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        if is_debug:
            traceback.print_exc()
        return _complain(_message(error))


def _message(error: ValueError | OSError) -> str:
    """Return the error without Python's decoration."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or f"{type(error).__name__} without a message; see --debug."
    about = f"{error.filename}: " if error.filename else ""
    message = f"{about}{error.strerror}."
    if error.errno == errno.ENOENT:
        message += " Check the path."
    return message


def _complain(message: str) -> int:
    print(f"manticore: {message}", file=sys.stderr)
    return _EXIT_BAD_INPUT


def _unknown_verb(given: str) -> str:
    first = given.split()[0]
    close = [match for text in (given, first) for match in difflib.get_close_matches(text, VERBS)]
    hint = f" Did you mean '{close[0]}'?" if close else ""
    unknown = given if any(verb.startswith(f"{first} ") for verb in VERBS) else first
    return f"Unknown verb '{unknown}'.{hint} Known: {', '.join(VERBS)}."


def _family_overview(family: str) -> str:
    """Return the verbs that share a first word."""
    verbs = {name: verb for name, verb in VERBS.items() if name.startswith(f"{family} ")}
    lines = [f"usage: manticore {family} VERB ...", ""]
    lines += [f"  {name:14} {verb.help}" for name, verb in verbs.items()]
    return "\n".join([*lines, "", f"manticore {family} VERB --help   shows a command that works"])


def _overview() -> str:
    lines = [
        "usage: manticore VERB ...",
        "",
        "Pretrained language models in, one fine-tuned hybrid out.",
    ]
    for group, title in _GROUPS.items():
        verbs = {name: verb for name, verb in VERBS.items() if verb.group == group}
        if verbs:
            lines += ["", f"{title}:"]
            lines += [f"  {name:14} {verb.help}" for name, verb in verbs.items()]
    lines += [
        "",
        "manticore VERB --help   shows a command that works",
        "manticore --version     shows the version",
    ]
    return "\n".join([*lines, "", "example:", f"    {_EXAMPLE}"])

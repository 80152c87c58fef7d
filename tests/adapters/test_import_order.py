"""Every module of the room may be the first that is imported."""

import pkgutil
import subprocess
import sys

import manticore.adapters


def test_each_module_can_be_imported_first():
    names = [
        m.name for m in pkgutil.walk_packages(manticore.adapters.__path__, "manticore.adapters.")
    ]
    assert "manticore.adapters.stack" in names
    # One process for all: each name in an interpreter state of its own would take minutes.
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    for loaded in [m for m in sys.modules if m.startswith(('manticore', 'peft'))]:\n"
        "        del sys.modules[loaded]\n"
        "    importlib.import_module('manticore')\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

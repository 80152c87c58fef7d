"""`manticore env` tells what a run depends on, quickly."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

from manticore.cli.main import main


def test_the_json_holds_versions_devices_fast_paths_and_recipes(capsys):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["python"] == platform.python_version()
    assert found["versions"]["torch"] == version("torch")
    assert Path(found["recipes"]).is_dir()
    scans = {"selective_scan", "decayed_scan", "delta_scan", "wkv_scan"}
    assert scans <= set(found["fast_paths"])
    assert isinstance(found["gpus"], list)


def test_the_check_computes_on_each_device(capsys):
    assert main(["env", "--check"]) == 0
    assert "torch on cpu  works" in capsys.readouterr().out


def test_it_starts_fast_and_without_torch(run_python):
    code = (
        "import sys, time\nfrom manticore.cli.main import main\nmain(['env'])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    # Processor time since the interpreter's start: what else the machine does is not ours.
    seconds = min(float(run_python("-c", code).stdout.split()[-1]) for _ in range(3))
    assert seconds < 0.7

"""Show versions, devices, fast paths and where the recipes live.

By default nothing heavy is imported, so devices are what the system knows of. With --check, torch
is asked as well: what it can use, and a small computation on each device.

Example:
    manticore env --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import shutil
import subprocess
from typing import Any

from manticore.config import recipes_root
from manticore.runs import environment

# Scan that a run's record names -> whose layers it runs.
_SCANS = {
    "selective_scan": "Mamba",
    "decayed_scan": "Mamba-2",
    "delta_scan": "gated DeltaNet",
    "wkv_scan": "RWKV-4",
}
_ALWAYS = "plain torch, exact, linear in the length (always there)"
# Package -> what it makes faster. Without it the plain torch path is used, with equal results.
_FAST_PATHS = {
    "mamba_ssm": "selective scan of Mamba layers on CUDA",
    "causal_conv1d": "convolution of Mamba layers on CUDA",
    "kernels": "prebuilt CUDA kernels, fetched by name",
    "flash_attn": "FlashAttention",
    "bitsandbytes": "frozen components in 4 and 8 bit",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `manticore env`."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="ask torch about the devices (slower)")


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    found = describe(check=args.check)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"python        {found['python']} on {found['platform']}, {found['cpu_count']} cores")
    for name, version in found["versions"].items():
        print(f"{name:13} {version}")
    print(f"GPUs          {', '.join(found['gpus']) or 'none found'}")
    for device, state in found.get("torch_devices", {}).items():
        print(f"torch on {device:5}{state}")
    for name, state in found["fast_paths"].items():
        print(f"{name:13} {state}")
    print(f"recipes       {found['recipes']}")
    return 0


def describe(check: bool = False) -> dict[str, Any]:
    """Return the environment as plain values.

    Args:
        check: import torch and run a small matrix product on each device.
    """
    found = {
        **environment(),
        "gpus": _system_gpus(),
        "fast_paths": _fast_paths(),
        "recipes": str(recipes_root()),
    }
    return {**found, "torch_devices": _torch_devices()} if check else found


def _fast_paths() -> dict[str, str]:
    states = {name: f"{whose}: {_ALWAYS}" for name, whose in _SCANS.items()}
    for package, purpose in _FAST_PATHS.items():
        is_installed = importlib.util.find_spec(package) is not None
        states[package] = f"{'installed' if is_installed else 'not installed'} ({purpose})"
    return states


def _system_gpus() -> list[str]:
    """Names of the GPUs, without importing torch."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return ["Apple GPU (mps)"]
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = listed.stdout.splitlines() if listed.returncode == 0 else []
    return [line.partition(" (UUID")[0] for line in lines if line.startswith("GPU")]


def _torch_devices() -> dict[str, str]:
    import torch

    names = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return {name: _try_device(torch.device(name)) for name in names}


def _try_device(device: Any) -> str:
    import torch

    try:
        total = torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:
        return f"fails: {str(error).splitlines()[0]}"
    return "works" if total == 512 else f"computes wrongly: {total} instead of 512"

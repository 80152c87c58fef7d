"""The loop beneath every training: take steps, log, evaluate, checkpoint, resume.

It knows a function that takes one step and the objects whose state must survive. What a
step does (one optimizer, two, whose turn it is) is the caller's.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from manticore.runs import write_json
from manticore.training.checkpoint_folder import newest_checkpoint
from manticore.training.checkpoints import save_checkpoint, save_weights
from manticore.training.interrupts import StopRequests
from manticore.training.randomness import step_randomness
from manticore.training.resuming import check_settings, read_finished, restore_state
from manticore.training.state import LoopResult, LoopState, NonFiniteLossError

StepFunction = Callable[[int], Mapping[str, Any]]
LogFunction = Callable[[dict[str, Any]], None]


class Processes(Protocol):
    """What the loop needs of ``accelerate.Accelerator`` to run on several processes."""

    @property
    def is_main_process(self) -> bool: ...
    @property
    def process_index(self) -> int: ...
    def wait_for_everyone(self) -> None: ...


def run_loop(
    step_fn: StepFunction,
    *,
    steps: int,
    state: LoopState,
    folder: str | Path | None = None,
    name: str = "train",
    seed: int = 0,
    checkpoint_every: int = 50,
    log_every: int = 10,
    log: LogFunction | None = None,
    on_start: Callable[[int], None] | None = None,
    eval_fn: Callable[[], Mapping[str, Any] | float] | None = None,
    eval_every: int = 0,
    settings: Mapping[str, Any] | None = None,
    processes: Processes | None = None,
    progress: bool = True,
    final_only: bool = False,
) -> LoopResult:
    """Run ``step_fn(0)`` to ``step_fn(steps - 1)``, continuing where a killed run stopped.

    Args:
        step_fn: takes one step and returns numbers: ``loss``, and if it likes ``tokens``
            (counted), ``grad_norm`` and ``..._loss`` (checked like the loss) and others
            (logged). It should not update anything when its loss is not finite.
        state: restored in place when ``folder`` holds a checkpoint.
        folder: checkpoints and ``result.json`` go here; None keeps nothing. A folder whose
            result is there is not run again: weights and result are read back.
        seed: with ``name`` and the step it seeds the global torch stream inside each step.
        log: gets a dict every ``log_every`` steps and at the end, and one per evaluation.
            ``step`` in it counts finished steps.
        on_start: told how many steps are already done, before the first new one; log
            lines beyond that step come again.
        eval_fn: called after every ``eval_every`` steps and after the last one.
        settings: JSON that decides the outcome; resuming with another value is an error.
        final_only: when done, keep complete weights in ``folder/final`` and no moments.
    """
    _check_numbers(steps, checkpoint_every, log_every, eval_every)
    home = None if folder is None else Path(folder)
    agreed = json.loads(json.dumps({**(settings or {}), "steps": steps}))
    finished = read_finished(home, state, agreed)
    if finished is not None:
        return finished
    loop = _Loop(step_fn, steps, state, home, name, seed, log, processes, agreed)
    loop.resume()
    if on_start and loop.is_main:
        on_start(loop.done.steps)
    every = (checkpoint_every, log_every, eval_every)
    loop.run(every, eval_fn, progress and loop.is_main)
    loop.close(final_only)
    return loop.done


class _Loop:
    def __init__(
        self,
        step_fn: StepFunction,
        steps: int,
        state: LoopState,
        home: Path | None,
        name: str,
        seed: int,
        log: LogFunction | None,
        processes: Processes | None,
        settings: dict[str, Any],
    ) -> None:
        self.step_fn, self.steps, self.state = step_fn, steps, state
        self.home, self.name, self.seed, self.settings = home, name, seed, settings
        self.is_main = processes is None or processes.is_main_process
        self.rank = 0 if processes is None else processes.process_index
        self.processes = processes
        self.log = log if self.is_main else None
        self.done = LoopResult()

    def run(
        self,
        every: tuple[int, int, int],
        eval_fn: Callable[[], Mapping[str, Any] | float] | None,
        progress: bool,
    ) -> None:
        checkpoint_every, log_every, eval_every = every
        started = time.perf_counter() - self.done.seconds
        with StopRequests(self.home is not None) as stop, self._bar(progress) as bar:
            for step in range(self.done.steps, self.steps):
                metrics = self._step(step)
                self.done.seconds = time.perf_counter() - started
                self._show(bar, metrics)
                if self._due(log_every):
                    self._write_log(metrics)
                if eval_fn is not None and self._due(eval_every):
                    self._evaluate(eval_fn)
                    self.done.seconds = time.perf_counter() - started
                if self._due(checkpoint_every) or stop.received is not None:
                    self.save()
                if stop.received is not None and self.done.steps < self.steps:
                    stop.leave(
                        f"{self.name}: stopped after step {self.done.steps} of {self.steps}; "
                        f"run the same command to go on from {self.home}"
                    )

    def _step(self, step: int) -> dict[str, Any]:
        with step_randomness(self.seed, self.name, step, self.rank):
            raw = self.step_fn(step)
        metrics = {key: float(value) for key, value in raw.items()}
        for what in ("loss", *(key for key in metrics if key.endswith("_loss")), "grad_norm"):
            if not math.isfinite(metrics.get(what, 0.0)):
                self._fail(step, "gradient norm" if what == "grad_norm" else what)
        self.done.losses.append(metrics["loss"])
        self.done.tokens += int(metrics.pop("tokens", 0))
        self.done.steps = step + 1
        return metrics

    def _fail(self, step: int, what: str) -> None:
        last = self.done.losses[-1] if self.done.losses else None
        newest = newest_checkpoint(self.home) if self.home is not None else None
        raise NonFiniteLossError(self.name, step, what, last, newest[0] if newest else None)

    def _due(self, every: int) -> bool:
        return self.done.steps == self.steps or (every > 0 and self.done.steps % every == 0)

    def _write_log(self, metrics: Mapping[str, float]) -> None:
        if self.log is not None:
            spent = {"tokens": self.done.tokens, "seconds": round(self.done.seconds, 3)}
            self.log({"stage": self.name, "step": self.done.steps, **metrics, **spent})

    def _evaluate(self, eval_fn: Callable[[], Mapping[str, Any] | float]) -> None:
        found = eval_fn()
        values = dict(found) if isinstance(found, Mapping) else {"loss": float(found)}
        self.done.evaluations.append({"step": self.done.steps, **values})
        if self.log is not None:
            named = {f"eval_{key}": value for key, value in values.items()}
            self.log({"stage": self.name, "step": self.done.steps, **named})

    def save(self) -> None:
        if self.home is not None and self.is_main:
            record = {"loop": asdict(self.done), "settings": self.settings}
            save_checkpoint(
                self.home,
                step=self.done.steps,
                modules=self.state.modules,
                optimizers=self.state.optimizers,
                generators=self.state.generators,
                extra={**record, "extra": self.state.extra},
            )

    def resume(self) -> None:
        if self.home is None:
            return
        newest = newest_checkpoint(self.home)
        if newest is not None:
            check_settings(self.home, newest[1]["extra"]["settings"], self.settings)
            restore_state(*newest, self.state)
            self.done = LoopResult(**newest[1]["extra"]["loop"])
        if self.processes is not None:
            # The first checkpoint written removes an old one: all must have read theirs.
            self.processes.wait_for_everyone()

    def close(self, final_only: bool) -> None:
        if self.home is not None and self.is_main:
            if final_only:
                save_weights(self.home / "final", self.state.modules, self.state.extra)
            record = {"settings": self.settings, "loop": asdict(self.done)}
            write_json(self.home / "result.json", record)
            if final_only:
                (self.home / "latest.json").unlink(missing_ok=True)
                for old in self.home.glob("step-*"):
                    shutil.rmtree(old)
        if self.processes is not None:
            self.processes.wait_for_everyone()

    def _bar(self, progress: bool) -> tqdm:
        return tqdm(
            total=self.steps,
            initial=self.done.steps,
            desc=self.name,
            unit="step",
            disable=not (progress and sys.stderr.isatty()),
            leave=True,
        )

    def _show(self, bar: tqdm, metrics: Mapping[str, float]) -> None:
        if not bar.disable:
            speed = self.done.tokens / max(self.done.seconds, 1e-9)
            bar.set_postfix_str(f"loss {metrics['loss']:.4f}, {speed:,.0f} tokens/s", refresh=False)
            bar.update(1)


def _check_numbers(steps: int, checkpoint_every: int, log_every: int, eval_every: int) -> None:
    if steps < 1:
        raise ValueError(f"steps={steps}: at least 1 is needed.")
    counts = {
        "checkpoint_every": checkpoint_every,
        "log_every": log_every,
        "eval_every": eval_every,
    }
    for key, value in counts.items():
        if value < 0:
            raise ValueError(f"{key}={value}: use 0 for only at the end, or a positive number.")

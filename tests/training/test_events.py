"""Event files hold the numbers of the records."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manticore.training.events import write_events

RECORDS = [
    {"stage": "finetune", "row": "hybrid", "step": 10, "loss": 3.5, "note": "text"},
    {"stage": "finetune", "row": "hybrid", "step": 20, "loss": 3.25},
    {"stage": "search", "row": "hybrid", "step": 1, "loss": 4.0, "mixture": [[0.5, 0.5]]},
    {"stage": "test"},
]


def test_event_files_hold_the_numbers_by_stage_and_row(tmp_path):
    write_events(RECORDS, tmp_path / "tensorboard")
    write_events(RECORDS, tmp_path / "tensorboard")  # made anew, not doubled
    events = EventAccumulator(str(tmp_path / "tensorboard" / "finetune" / "hybrid")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(10, 3.5), (20, 3.25)]
    assert events.Tags()["scalars"] == ["loss"]
    assert (tmp_path / "tensorboard" / "search" / "hybrid").is_dir()

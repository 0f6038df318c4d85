"""The training log for TensorBoard, as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from covermap.recipe import Row

F1 = "f1_"  # begins the columns of the classes
NAMES = {  # under which TensorBoard shows the columns of the log
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "val_overall": "validation/overall",
    "val_macro_f1": "validation/macro_f1",
    "val_kappa": "validation/kappa",
    "learning_rate": "training/learning_rate",
    "tiles_per_s": "training/tiles_per_s",
    "waiting": "training/waiting",
}


@contextmanager
def event_file(path: Path, rows: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """A function that adds an epoch to a new file of events, which has those of ``rows`` from the start.

    A writer of tensorboardX would name the file by host and time; its records alone do not. The epochs of a run that
    is resumed are told as if it had never stopped.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    def add(row: Row, at: float | None = None) -> None:
        tags = NAMES | {name: f"f1/{name.removeprefix(F1)}" for name in row if name.startswith(F1)}
        values = [Summary.Value(tag=tag, simple_value=row[name]) for name, tag in tags.items()]
        event = Event(wall_time=at or time.time(), step=int(row["epoch"]), summary=Summary(value=values))
        writer.write(event.SerializeToString())
        writer.flush()

    begin = time.time() - sum(row["seconds"] for row in rows)
    writer = RecordWriter(str(path))
    try:
        writer.write(Event(wall_time=begin, file_version="brain.Event:2").SerializeToString())
        for row in rows:
            begin += row["seconds"]
            add(row, begin)
        yield add
    finally:
        writer.close()

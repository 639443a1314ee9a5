"""Versions as a trainer publishes them from a real click stream, kept, so that they can be announced again at will."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from model.checkpoint import encoded
from model.delta import Changes, encode_delta, read_delta
from model.settings import ModelSettings
from stream.events import ModelAnnouncement
from stream.examples import ClickExample, ExampleId
from stream.settings import KafkaSettings
from trainer.cut import Cut
from trainer.learner import Learner
from trainer.lock import only_trainer
from trainer.publish import Publisher, Workshop, new_lineage
from trainer.settings import TrainerSettings
from trainer.state import documents_of, tensors_of

KEPT_ITEMS = 50
MICRO_BATCH = 64
NEVER_SECONDS = 1e9


def click_examples(rows: pa.Table) -> Iterator[ClickExample]:
    """Every row of a log as the click that the stream worker would send to the trainer."""
    histories: defaultdict[str, tuple[str, ...]] = defaultdict(tuple)
    columns = (rows[name].to_pylist() for name in ("user_id", "item_id", "time_ms"))
    for place, (user_id, item_id, time_ms) in enumerate(zip(*columns, strict=True)):
        yield ClickExample(
            id=ExampleId("clicks", 0, place, 0),
            user_id=user_id,
            context=histories[user_id],
            item_id=item_id,
            timestamp_ms=time_ms,
            arrived_at_ms=time_ms,
            served=None,
        )
        histories[user_id] = (*histories[user_id], item_id)[-KEPT_ITEMS:]


class Sizes(NamedTuple):
    """Bytes of one version."""

    clicks: int
    items: int
    changed_rows: int
    delta: int
    rounded: int
    """The same delta with `trainer.publish_precision = "bfloat16"`."""
    full: int
    """All files of a full checkpoint."""
    serving: int
    """Those of them that a scoring worker reads: weights and catalogue."""


class _Heard:
    """Stands for `models`."""

    def __init__(self) -> None:
        self.announcements: list[ModelAnnouncement] = []

    def send(self, topic: str, *, key: bytes, value: bytes | None, headers: object = None) -> _Heard:  # noqa: ARG002 - as a producer has it
        """Keeps what is announced."""
        if value is not None:
            self.announcements.append(msgspec.json.decode(value, type=ModelAnnouncement))
        return self

    def get(self, timeout: float) -> None:
        """Acknowledged."""


class Recorder:
    """A trainer without Kafka whose every version is also kept in the folder `kept`."""

    def __init__(self, examples: Iterator[ClickExample], publisher: Publisher, heard: _Heard, root: Path) -> None:
        self.learner = Learner(ModelSettings(), TrainerSettings())
        self.kept = root / "kept"
        self._examples = examples
        self._publisher = publisher
        self._heard = heard
        self._root = root
        self.clicks = 0
        """Taken from the log."""
        self._lineage = new_lineage()
        publisher.begin(self._lineage, generation=1, live=None)

    def learn(self, count: int) -> None:
        """So many clicks, in micro-batches as under a steady load."""
        for _ in range(count // MICRO_BATCH):
            self.learner.learn([next(self._examples) for _ in range(MICRO_BATCH)])
            self.clicks += MICRO_BATCH

    def publish(self, *, full: bool = False) -> ModelAnnouncement:
        """A version; it and what it needs are linked into `kept`, where no pruning comes."""
        cut = Cut(offsets={0: self.learner.examples_trained})
        self._publisher.publish(self.learner, cut, [], final=full)
        published = self._publisher.finished(wait=True)
        if published is None:
            raise ValueError("the disk does not take a checkpoint; make room in the temporary folder")
        announcement = self._heard.announcements[-1]
        self._keep(announcement.version)
        path = self.kept / self._lineage / Path(announcement.path).name
        return msgspec.structs.replace(announcement, path=str(path))

    def sizes(self, delta: ModelAnnouncement, *, changed_rows: int) -> Sizes:
        """Of a delta, and of a full checkpoint at the same moment."""
        cut = Cut(offsets={0: self.learner.examples_trained})
        files = encoded(tensors_of(self.learner), documents_of(self.learner, cut, ()))
        serving = sum(len(files[name]) for name in ("model.safetensors", "catalogue.msgpack"))
        return Sizes(
            self.clicks,
            len(self.learner.catalogue),
            changed_rows,
            Path(delta.path).stat().st_size,
            _rounded_bytes(delta),
            sum(map(len, files.values())),
            serving,
        )

    def _keep(self, version: int) -> None:
        source, kept = self._root / self._lineage, self.kept / self._lineage
        kept.mkdir(parents=True, exist_ok=True)
        for name in (f"{version:08d}", f"{version:08d}.delta"):
            if (source / name).is_dir():
                (kept / name).mkdir()
                for file in (source / name).iterdir():
                    os.link(file, kept / name / file.name)
            elif (source / name).exists():
                os.link(source / name, kept / name)


def _rounded_bytes(announcement: ModelAnnouncement) -> int:
    delta = read_delta(Path(announcement.path), sha256=announcement.manifest_sha256)
    header = delta.header
    manifest = msgspec.structs.replace(header.manifest, precision="bfloat16")
    changes = Changes(delta.rows_U, delta.item_UD, delta.dense, header.table_rows, delta.changes, delta.cut)
    return len(encode_delta(manifest, changes, parent=header.parent, base=header.base))


@contextlib.contextmanager
def recorder(rows: pa.Table, root: Path) -> Iterator[Recorder]:
    """Learns the log from its beginning."""
    heard: Any = _Heard()
    settings = TrainerSettings(publish_seconds=1e-6, full_seconds=NEVER_SECONDS)
    with only_trainer(root) as term:
        workshop = Workshop(KafkaSettings(), heard, settings, root, term)
        with contextlib.closing(Publisher(workshop)) as publisher:
            yield Recorder(click_examples(rows), publisher, heard, root)

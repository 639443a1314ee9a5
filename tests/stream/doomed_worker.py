"""Runs the stream worker as a process of its own, which can kill itself at a step of its protocol.

    python doomed_worker.py BOOTSTRAP PREFIX DIRECTORY [STEP BATCHES [SIGNAL]]

It prints `ready` when it reads. With STEP, the process ends as by kill -9 at that step of the BATCHES-th batch that
has something to write; with SIGNAL, it sends itself that signal instead, and goes on if that lets it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import structlog

from stream.app import run_worker
from stream.batches import PartitionWriter
from stream.dead_letters import Headers
from stream.folding import FoldedBatch
from stream.settings import KafkaSettings, StreamSettings
from stream.worker import StreamWorker


class DoomedWorker(StreamWorker):
    """Dies where the command line says; each step is named after what has just been done."""

    step = ""
    batches_left = 0
    doom = signal.SIGKILL

    async def _write_examples(self, writer: PartitionWriter, folded: FoldedBatch, headers: Headers) -> None:
        self.die_at("folded", folded)
        if self.is_the_end("half the examples", folded):
            half = folded._replace(examples=folded.examples[: len(folded.examples) // 2])
            await super()._write_examples(writer, half, headers)
            self.die()
        await super()._write_examples(writer, folded, headers)
        self.die_at("examples", folded)

    async def _write_states(self, writer: PartitionWriter, folded: FoldedBatch) -> int | None:
        offset = await super()._write_states(writer, folded)
        self.die_at("states", folded)
        return offset

    def _store_states(self, partition: int, folded: FoldedBatch, offset: int | None) -> None:
        super()._store_states(partition, folded, offset)
        self.die_at("stored", folded)

    def die_at(self, step: str, folded: FoldedBatch) -> None:
        if self.is_the_end(step, folded):
            self.die()

    def is_the_end(self, step: str, folded: FoldedBatch) -> bool:
        if step != self.step or not folded.states:
            return False
        DoomedWorker.batches_left -= 1
        return self.batches_left == 0

    def die(self) -> None:
        os.kill(os.getpid(), self.doom)


def main() -> None:
    bootstrap_servers, prefix, directory, *doom = sys.argv[1:]
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if doom:
        DoomedWorker.step, DoomedWorker.batches_left = doom[0], int(doom[1])
        DoomedWorker.doom = signal.Signals[doom[2]] if len(doom) > 2 else signal.SIGKILL
    run_worker(
        KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=prefix, partitions=2),
        StreamSettings(chunk_records=50),
        Path(directory),
        instance=Path(directory).name,
        worker=DoomedWorker,
        on_ready=lambda: print("ready", flush=True),  # noqa: T201 - the test waits for it
    )


if __name__ == "__main__":
    main()

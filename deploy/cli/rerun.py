"""`sasrec-stream rerun`: learns again what the last checkpoint learnt, and compares every byte."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.settings import Settings
from model.store import Place, RemotePlace


def rerun(
    context: typer.Context,
    after: Annotated[Path | None, typer.Argument(help="A checkpoint folder; the newest of all if absent.")] = None,
) -> None:
    """Learn the micro-batches that a checkpoint recorded again, from the one before it, and compare the bytes.

    Exit status: 0 every file is the same, 1 one differs.
    """
    import torch  # noqa: PLC0415 - nobody who asks for help waits for it

    from trainer.rerun import rerun as learn_again  # noqa: PLC0415 - the same

    settings: Settings = context.obj
    torch.set_num_threads(settings.trainer.threads)
    after = after or newest_of_all(settings.checkpoints)
    result = learn_again(settings.kafka, settings.trainer, before=before(after), after=after)
    for name, digest in sorted(result.recorded.items()):
        typer.echo(f"{'DIFFERS' if name in result.differing else 'same':8}{digest[:16]}  {name}")
    typer.echo(f"{result.micro_batches} micro-batches from {before(after).name} to {after.name} learnt again")
    raise typer.Exit(1 if result.differing else 0)


def newest_of_all(checkpoints: Place) -> Path:
    """The newest checkpoint of the lineage that was written last.

    Raises:
        ValueError: there is none, or they stand in a remote store.
    """
    if isinstance(checkpoints, RemotePlace):
        raise ValueError(  # noqa: TRY004 - a setting, not a slip of ours
            f"copy the last two full checkpoints of {checkpoints} here and give the folder of the newer one"
        )
    folders = [path for path in checkpoints.glob("*/*") if path.is_dir() and path.name.isdigit()]
    if not folders:
        raise ValueError(f"no checkpoint in {checkpoints}; start the trainer or set state.directory")
    return max(folders, key=lambda path: (path.stat().st_mtime, path.name))


def before(after: Path) -> Path:
    """The checkpoint that came before it in its lineage.

    Raises:
        ValueError: it is the first, or the one before was pruned.
    """
    earlier = [
        path for path in after.parent.glob("*") if path.is_dir() and path.name.isdigit() and path.name < after.name
    ]
    if not earlier:
        raise ValueError(f"nothing stands before {after}; keep more with trainer.keep_checkpoints")
    return max(earlier)

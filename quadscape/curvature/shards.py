"""Where the shards of a Hessian lie: beside the stage that gathers them, so that either can go without the other."""

from pathlib import Path


def shard_name(number: int | str, count: int | str) -> str:
    """Name of a shard, which is that of its directory.

    Args:
        number: Which shard, from 1.
        count: Number of shards.

    Returns:
        The name.
    """
    return f"{number}-of-{count}"


def shard_directory(hessian: str | Path, name: str) -> Path:
    """Where a shard lies.

    Args:
        hessian: Directory of the stage `hessian`.
        name: The shard's name.

    Returns:
        The shard's directory.
    """
    hessian = Path(hessian)
    return hessian.with_name(f"{hessian.name}_shards") / name


def is_shard(directory: Path) -> bool:
    """Whether a directory is that of a shard."""
    return directory.parent.name == "hessian_shards"


def checkpoint_of(stage: Path) -> Path:
    """The directory of the checkpoint that a stage of curvature belongs to."""
    return stage.parents[1] if is_shard(stage) else stage.parent

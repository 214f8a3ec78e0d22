"""Files that appear whole or not at all.

Whatever ends a process in the middle of writing (an error, a full disk, ``kill -9``), the file that was there before is
still there, and no half of a new one is. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A path beside ``path`` to write to; renamed to ``path`` when the block ends, removed when it raises.

    It keeps the ending of ``path``, by which many writers choose a format. Where ``path`` is a link, the file that it
    points at is replaced. Folders are made.

    Raises:
        OSError: the folder cannot be made, or the file not be put there.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Long names must not become too long by the addition.
    partial = target.with_name(f".{target.stem[:80]}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        yield partial
        _to_disk(partial)
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all. Raises OSError as ``replacing``."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` (UTF-8, line ends as they are) to ``path``, whole or not at all. Raises as ``replacing``."""
    write_bytes(path, text.encode("utf-8"))


def _to_disk(path: Path) -> None:
    """Wait until the content is on the disk: a rename may get there earlier, and leave an empty file after a crash."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())

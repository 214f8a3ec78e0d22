"""What lies in folders, for drop-downs, and the way from a choice back to its file.

A drop-down is filled while the server answers ``/object_info``: it must not raise, whatever lies in a folder, and must
not take long, however much that is. A choice can be any text when it comes through the API: it is only ever looked for
inside the folder that it was offered from.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

LOOKED_AT = 25_000
"""Entries of folders that one listing looks at; beyond them the newest folders win."""
SETTLED = 2.0
"""Seconds after which a folder's time stamp can be trusted to tell a change (FAT counts in steps of two)."""

Listing = tuple[list[tuple[float, str]], list[tuple[float, str]]]
"""Files and sub-folders of a folder as (time of the last change, name)."""


def is_inside(name: str) -> bool:
    """Whether a choice is a plain relative path: nothing absolute, no drive or share, no way up, on any system.

    Nothing is looked up, because on Windows the look at a share alone sends a user's credentials there.
    """
    parts = PureWindowsPath(name).parts  # split at both kinds of slashes
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or "\x00" in name:
        return False
    return bool(parts) and all(part.strip(" .") for part in parts)  # Windows takes ".. " for ".."


def find_inside(roots: Iterable[Path | str], name: str, exists: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The first of ``roots / name`` that ``exists``; None where there is none, or ``name`` would lead out of its root.

    Links inside a root may point anywhere: whoever made them may write there.
    """
    if not isinstance(name, str) or not is_inside(name):
        return None
    for root in roots:
        try:
            if exists(Path(root) / name):
                return Path(root) / name
        except (OSError, ValueError):  # a name that this file system cannot have
            continue
    return None


def file_names(kind: str) -> list[str]:
    """The files of a kind of models, as the host lists them; none where a folder went away meanwhile."""
    try:
        return folder_paths.get_filename_list(kind)
    except (OSError, KeyError):
        return []


def folders_with(marker: str, roots: Iterable[Path | str]) -> list[str]:
    """Names of the folders directly inside ``roots`` that hold a file called ``marker`` (``*.ENDING``: any such)."""
    found = []
    for root in roots:
        try:
            with os.scandir(root) as entries:
                names = sorted(entry.name for _, entry in zip(range(LOOKED_AT), entries, strict=False))
        except OSError:
            continue
        found += [name for name in names if _holds(Path(root) / name, marker)]
    return found


def _holds(folder: Path, marker: str) -> bool:
    try:
        if marker.startswith("*"):
            return any(entry.endswith(marker[1:]) for entry in os.listdir(folder))
        return (folder / marker).is_file()
    except OSError:
        return False


class Lister:
    """The newest files with one of ``suffixes`` below a folder, to a depth.

    A folder is read again only when it has changed. Neither links that lead nowhere nor folders that may not be read
    are an error.
    """

    def __init__(self, suffixes: Sequence[str], depth: int, limit: int):
        self._suffixes, self._depth, self._limit = tuple(suffixes), depth, limit
        self._known: dict[str, tuple[float, Listing]] = {}

    def newest(self, base: Path | str) -> list[tuple[float, str]]:
        """(time of the last change, path relative to ``base`` with /) of at most ``limit`` files, newest first."""
        found: list[tuple[float, str]] = []
        level, left = [(0.0, "")], LOOKED_AT
        seen: dict[str, tuple[float, Listing]] = {}
        for _ in range(self._depth):
            deeper: list[tuple[float, str]] = []
            for _, folder in sorted(level, reverse=True):
                if left <= 0:
                    break
                path = os.path.join(base, folder) if folder else str(base)
                files, folders, looked = self._list(path, left, seen)
                left -= looked
                prefix = f"{folder}/" if folder else ""
                found += [(changed, prefix + name) for changed, name in files]
                deeper += [(changed, prefix + name) for changed, name in folders]
            level = deeper
        mine = str(base)
        self._known = {k: v for k, v in self._known.items() if not k.startswith(mine)} | seen
        return sorted(found, reverse=True)[: self._limit]

    def _list(self, path: str, left: int, seen: dict) -> tuple[list, list, int]:
        """(files, folders, entries looked at) directly inside ``path``; a listing that is still true costs nothing."""
        try:
            changed = os.stat(path).st_mtime
            known = self._known.get(path)
            if known is not None and known[0] == changed:
                seen[path] = known
                return *known[1], 1
            files, folders, looked = [], [], 0
            with os.scandir(path) as entries:
                for entry in entries:
                    looked += 1
                    if looked > left:
                        break
                    self._take(entry, files, folders)
        except OSError:
            return [], [], 1
        files = sorted(files, reverse=True)[: self._limit]
        # A change within the same tick of the file system's clock would not show: keep only what has settled.
        if looked <= left and time.time() - changed > SETTLED:
            seen[path] = (changed, (files, folders))
        return files, folders, looked

    def _take(self, entry: os.DirEntry, files: list, folders: list) -> None:
        try:
            if entry.name.lower().endswith(self._suffixes):
                if entry.is_file():
                    files.append((entry.stat().st_mtime, entry.name))
            elif entry.is_dir():
                folders.append((entry.stat().st_mtime, entry.name))
        except OSError:  # a link that leads nowhere or in a circle, or a file that was removed meanwhile
            pass

"""The books of a batch: one line per event, only ever appended to, so that they survive whatever ends the driver."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...installation.errors import BadInput
from ...installation.files import write_text

log = logging.getLogger("testtime")
NAME = "manifest.jsonl"
ROW_FILE = "row.json"
FSYNC_LINES, FSYNC_SECONDS = 100, 1.0


@dataclass
class Entry:
    """What is known of a row.

    Attributes:
        status: "new", "done" or "failed".
        attempts: that ended with an error or with the worker.
        record: the last line about it.
    """

    status: str = "new"
    attempts: int = 0
    record: dict[str, Any] = field(default_factory=dict)


class Manifest:
    """``DIR/manifest.jsonl`` and the folders beside it.

    An output is made in ``DIR/.part``, then renamed to ``DIR/items/KEY`` (the first to arrive stays), then noted.
    Lines reach the operating system at once, so a killed driver loses none; the disk at the latest after a second.

    Args:
        folder: of the batch; made where it is missing.
        what: stands for workflow and settings; a batch of something else in the same folder is refused.
        title: for messages. version: of the pack; rows made by another one are told of.

    Raises:
        BadInput: the folder holds another batch, or another driver is at work in it.
    """

    def __init__(self, folder: Path, what: str, title: str, version: str = ""):
        self.folder, self.items, self.parts = folder, folder / "items", folder / ".part"
        self.items.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / ".lock")
        self.entries: dict[str, Entry] = {}
        path = folder / NAME
        self._version = version
        torn = self._read(path, what, title) if path.exists() else False
        self._file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115 - open as long as the batch
        if torn:
            self._file.write("\n")
        self._unsynced, self._synced_at = 0, time.monotonic()
        shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir(parents=True, exist_ok=True)
        if self._file.tell() == 0:
            self.note({"batch": what, "title": title, "version": version})
        self._adopt()

    def entry(self, key: str) -> Entry:
        """What is known of a row."""
        return self.entries.setdefault(key, Entry())

    def note(self, line: dict[str, Any]) -> None:
        """Append a line."""
        self._file.write(json.dumps({**line, "time": round(time.time(), 3)}, ensure_ascii=False) + "\n")
        self._file.flush()
        self._unsynced += 1
        if self._unsynced >= FSYNC_LINES or time.monotonic() - self._synced_at > FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._unsynced, self._synced_at = 0, time.monotonic()

    def started(self, key: str, worker: str) -> Path:
        """Note the beginning of an attempt; the folder for its outputs."""
        attempt = self.entry(key).attempts + 1
        self.note({"key": key, "status": "started", "attempt": attempt, "worker": worker})
        # A name of its own: a worker that outlives its driver may still be writing into the folder of its attempt.
        folder = self.parts / f"{key}.{attempt}.{secrets.token_hex(4)}"
        folder.mkdir(parents=True)
        return folder

    def done(self, key: str, part: Path, values: dict[str, Any], facts: dict[str, Any]) -> None:
        """Keep the outputs in ``part``: the row's one output from now on."""
        record = {"row": values, "files": listed(part), **facts}
        write_text(part / ROW_FILE, json.dumps({"key": key, **record}, ensure_ascii=False, indent=1))
        target = self.items / key
        if (target / ROW_FILE).is_file():
            shutil.rmtree(part)
            record = {name: value for name, value in _load(target / ROW_FILE).items() if name != "key"}
        else:
            shutil.rmtree(target, ignore_errors=True)
            os.rename(part, target)
        self._done(key, record)

    def failed_attempt(self, key: str, worker: str, error: str, final: bool) -> None:
        """Note an attempt that brought nothing; ``final``: the row is set aside."""
        entry = self.entry(key)
        entry.attempts += 1
        status = "failed" if final else "retry"
        entry.record = {"key": key, "status": status, "attempt": entry.attempts, "worker": worker, "error": error}
        entry.status = "failed" if final else "new"
        self.note(entry.record)

    def forget_failures(self) -> None:
        """Give rows that were set aside new attempts."""
        for key, entry in self.entries.items():
            if entry.status == "failed":
                self.entries[key] = Entry()
                self.note({"key": key, "status": "again"})

    def close(self) -> None:
        """Write everything to the disk and let other drivers in."""
        os.fsync(self._file.fileno())
        self._file.close()
        self._lock.close()
        shutil.rmtree(self.parts, ignore_errors=True)

    def _done(self, key: str, record: dict[str, Any]) -> None:
        entry = self.entry(key)
        entry.status, entry.record = "done", {"key": key, "status": "done", "attempts": entry.attempts + 1, **record}
        self.note(entry.record)

    def _adopt(self) -> None:
        """Note outputs whose driver was killed between the rename and the line."""
        for folder in sorted(self.items.iterdir()):
            if self.entry(folder.name).status != "done" and (folder / ROW_FILE).is_file():
                record = _load(folder / ROW_FILE)
                record.pop("key", None)
                if self._is_there(folder.name, record):
                    self._done(folder.name, record)

    def _read(self, path: Path, what: str, title: str) -> bool:
        """Fill in ``entries``; whether the last line was cut off."""
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
        for number, line in enumerate(lines):
            try:
                told = json.loads(line)
            except ValueError:
                continue  # a line that a power cut tore; its row is simply not done
            if not isinstance(told, dict):
                continue
            if "batch" in told:
                if told["batch"] != what:
                    raise BadInput(
                        f"--out {path.parent} holds another batch ({told.get('title', '?')}; this is {title}, or has "
                        f"other settings): choose another folder"
                    )
                if self._version and told.get("version", self._version) != self._version:
                    log.warning("rows that are done were made by version %s", told["version"])
            elif number == 0:
                raise BadInput(f"{path} is no manifest of a batch: choose another --out")
            else:
                self._take(told)
        for key, entry in self.entries.items():  # the last word counts: earlier lines name files of the time
            if entry.status == "done" and not self._is_there(key, entry.record):
                self.entries[key] = Entry(attempts=entry.attempts)
        return bool(lines[-1])

    def _take(self, told: dict[str, Any]) -> None:
        key, status = str(told.get("key")), told.get("status")
        entry = self.entry(key)
        if status == "done":
            entry.status, entry.record = "done", told
        elif status in ("retry", "failed"):
            entry.attempts = int(told.get("attempt", entry.attempts + 1))
            entry.status, entry.record = ("failed" if status == "failed" else "new"), told
        elif status == "again":
            self.entries[key] = Entry()

    def _is_there(self, key: str, told: dict[str, Any]) -> bool:
        """Whether the files of a row are there and as long as they were."""
        for file in told.get("files", []):
            path = self.items / key / file["name"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                shutil.rmtree(self.items / key, ignore_errors=True)  # half an output must not stand in the way
                return False
        return (self.items / key).is_dir()


def listed(folder: Path) -> list[dict[str, Any]]:
    """Name, bytes and sha256 of every file in a folder."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ROW_FILE):
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        found.append({"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})
    return found


def fingerprint(parts: Sequence[Any]) -> str:
    """Digest of JSON values: what a manifest belongs to."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _locked(path: Path):
    """The open file, locked until it is closed or the process ends. Raises BadInput where another one holds it."""
    file = open(path, "a+b")  # noqa: SIM115 - for the caller
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BadInput(f"--out {path.parent}: another testtime is at work in this folder") from None
    return file

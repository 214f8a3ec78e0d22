"""Run the tests: ``python tools/run_tests.py [PYTEST ARGUMENTS]``, as ``make test`` does.

All tests run in ``.venv`` with the first ComfyUI that is found; then those of them that need a ComfyUI run again for
every further one, each in a process and an environment of its own (``tools/environment.py`` makes them). The last lines
say for each which version ran, how many tests, or why none. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import PYTHON, ROOT, host_environment, load_locate, python_of

# Exit statuses of pytest.
INTERRUPTED, NOTHING_COLLECTED = 2, 5


def run(python: Path, host, arguments: list[str], only_host: bool) -> tuple[int, str]:
    """Run pytest inside one ComfyUI (an ``Installation``, or None); returns its exit status and a line about it."""
    environment = dict(os.environ)
    if only_host:
        environment.update(COMFYUI_PATH=str(host.root), TESTTIME_ONLY_HOST_TESTS="1")
        environment.pop("COMFYUI_PYTHON", None)  # it belongs to the first one
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        summary = Path(folder, "host.json")
        environment["TESTTIME_HOST_SUMMARY"] = str(summary)
        status = subprocess.run([str(python), "-m", "pytest", *arguments], cwd=ROOT, env=environment).returncode
        line = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else "no host test was selected"
    name = f"ComfyUI {host.version} in {host.root}" if host else "no ComfyUI"
    return status, f"{name}: {line} ({time.monotonic() - started:.0f} s)"


def run_further(host, arguments: list[str]) -> tuple[int, str]:
    """Run the host tests inside a further ComfyUI, if it can be tested; the same as ``run`` returns."""
    name, venv = f"ComfyUI {host.version or 'of unknown version'} in {host.root}", host_environment(host)
    if not host.supported:
        return 0, f"{name}: not run, it is older than what the pack needs"
    if not (venv / "installed").exists():
        return 0, f"{name}: not run, it has no environment for tests (`make env` says why)"
    print(f"\nhost tests again, inside {name}", flush=True)
    status, line = run(python_of(venv), host, arguments, only_host=True)
    return 0 if status == NOTHING_COLLECTED else status, line


def main(arguments: list[str]) -> int:
    """Run everything; returns the exit status, 0 where no test failed anywhere."""
    hosts = load_locate().find_hosts()
    statuses, lines = [], []
    for number, host in enumerate(hosts or [None]):
        status, line = run_further(host, arguments) if number else run(PYTHON, host, arguments, only_host=False)
        statuses.append(status)
        lines.append(line)
        if status == INTERRUPTED:
            break
    print("\n" + "\n".join(lines), flush=True)
    return next((status for status in statuses if status), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

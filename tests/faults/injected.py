"""Faults that are injected into searches: part x kind x moment x once or always, on real code around a closed form.

``FAULTS`` lists them, ``injected(fault, folder)`` runs one and says what was there when it struck, what can be had
afterwards (from the result, from what is rescued, or from the journal) and what the user was told. The table in
docs/reliability.md is made of the same outcomes by ``tools/build_reliability.py``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from testtime.chat import client
from testtime.samplers import ledger
from testtime.samplers.after.recovery import recover
from testtime.samplers.methods import RBF, SMC, SVDD, BeamSearch, BestOfN, FKSteering, RandomSearch
from testtime.samplers.protocols import Interrupted
from testtime.samplers.run.journal import Journal
from testtime.samplers.run.search import run_search
from testtime.samplers.smc.tempering import Alpha
from testtime.verifiers.human import Answer, HumanVerifier
from testtime.verifiers.vlm.endpoint import endpoint_judge
from testtime.verifiers.vlm.rubric import AXES, OVERALL

from ..unit import oracles

SHARP = Alpha(0.3, "absolute")
SEARCHES = {
    "SVDD": SVDD(3),
    "SMC": SMC(4, alpha=SHARP, start=0.0, end=1.0),
    "Best-of-N": BestOfN(3),
    "FK Steering": FKSteering(4, alpha=SHARP, every=2),
    "Beam Search": BeamSearch(2, 2),
    "Rollover Budget Forcing": RBF(budget=30, chains=1, initial=3),
    "Random Search": RandomSearch(4),
}
LOOKING = [name for name in SEARCHES if name not in ("Best-of-N", "Random Search")]
"""Searches that look at every step or so."""
MOMENTS = ("early", "mid", "late")
OFTEN = ("once", "always")
GROUPS = 2


@dataclass(frozen=True)
class Fault:
    """What goes wrong: in which part, how, when, how often, and in which search."""

    part: str
    kind: str
    moment: str
    often: str
    search: str

    def __str__(self) -> str:
        return "-".join((self.part, self.kind, self.moment, self.often)).replace(" ", "_")


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        had: images of which something was found when the fault struck. got: images that can be had afterwards.
        ended: status of the run, or the type of the error that went through.
        said: what the user is told, or reads in the log.
    """

    fault: Fault
    had: int = 0
    got: int = 0
    ended: str = ""
    said: list[str] = field(default_factory=list)

    @property
    def headline(self) -> str:
        """The sentence that says most: of a server's failures the reason, else what the user is told first."""
        reasons = [line for line in self.said if "gave no score" in line]
        return (reasons or self.said or ["-"])[0]

    @property
    def lost(self) -> int:
        """Images that were there and are no more."""
        return max(0, self.had - self.got)


@dataclass
class World:
    """A search that a fault may be put into."""

    folder: Path
    process: Any
    verifier: Any
    journal: Journal
    options: dict[str, Any] = field(default_factory=dict)
    sound: int = 0  # images with something sound so far
    listening: Callable[[], None] = lambda: None

    def listener(self, record, state, images) -> None:
        good = torch.isfinite(state.x0 if state.x0 is not None else state.x).flatten(1).all(1)
        self.sound = max(self.sound, len(set(state.group[good].tolist())))
        self.listening()


class Trigger:
    """Counts calls and strikes at call ``at``, and from there on where it is to strike ``always``."""

    def __init__(self, world: World, at: int, always: bool):
        self.world, self.at, self.always = world, at, always
        self.calls, self.had = 0, None

    def struck(self) -> bool:
        self.calls += 1
        if self.calls != self.at and not (self.always and self.calls > self.at):
            return False
        self.had = self.world.sound if self.had is None else self.had
        return True


Injector = Callable[[World, Trigger], None]


def _raises(error: Callable[[], BaseException]) -> Callable[[Any], Any]:
    def action(value):
        raise error()

    return action


def _out_of_memory(at_once: int) -> Callable[[Any], Any]:
    def action(value):
        raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")

    return action


class _Clock:
    """The ledger's clock, which stands still but for what takes too long."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = _Clock()


def _late(value):
    CLOCK.now += 60.0
    return value


def _around(owner: str, name: str, action: Callable[[Any], Any], pick=lambda value: value, put=lambda _, new: new):
    """An injector that lets ``action`` loose on what ``world.owner.name`` gives."""

    def inject(world: World, trigger: Trigger) -> None:
        target = getattr(world, owner)
        inner = getattr(target, name)

        def call(*arguments, **options):
            struck = trigger.struck()
            said = inner(*arguments, **options)
            return put(said, action(pick(said))) if struck else said

        for attribute in ("nfe_per_call", "can_encode", "prompt_embedding"):
            if hasattr(inner, attribute):
                setattr(call, attribute, getattr(inner, attribute))
        setattr(target, name, call)

    return inject


def _with_limit(inject: Injector) -> Injector:
    def limited(world: World, trigger: Trigger) -> None:
        world.options["max_seconds"] = 30.0
        inject(world, trigger)

    return limited


def _model(action):
    return _around("process", "denoise", action, lambda said: said.x0, lambda said, x0: said._replace(x0=x0))


def _decoder(action):
    return _around("process", "decode", action)


def _judge(action):
    return _around("verifier", "function", action)


def _in_listener(action):
    def inject(world: World, trigger: Trigger) -> None:
        world.listening = lambda: action(None) if trigger.struck() else None

    return inject


def _journal(name: str, error: Callable[[], BaseException]) -> Injector:
    return _around("journal", name, _raises(error))


def _half_a_line(world: World, trigger: Trigger) -> None:
    inner = world.journal._line

    def line(body):
        if trigger.struck():
            world.journal._file.write('{"record": {"st')
            raise OSError(28, "No space left on device")
        inner(body)

    world.journal._line = line


def _person(action: Callable[[Any], Any]) -> Injector:
    def inject(world: World, trigger: Trigger) -> None:
        def ask(question):
            return action(question) if trigger.struck() else Answer(ranked=(0,))

        marks = (0.2, 0.4, 0.6, 0.8, 1.0)
        world.verifier = HumanVerifier(world.verifier, ask, marks)

    return inject


def _drops_all(question) -> Answer:
    return Answer(dropped=frozenset(range(len(question.group))))


def _sent(kind: str) -> Injector:
    """A judge behind a server that fails in a way of ``SERVERS``."""

    def inject(world: World, trigger: Trigger) -> None:
        server = _Server(trigger, SERVERS[kind])
        world.options["server"] = server
        decode = world.process.decode
        world.process.decode = lambda x0: torch.sigmoid(decode(x0).float())[:, None, None, :].expand(-1, 8, 8, -1)
        judge = endpoint_judge(server.url, "judge", rubric="axes", timeout=0.1, retries=1, parallel=1)
        world.verifier = judge

    return inject


def _answer(text: str) -> bytes:
    return json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
    ).encode()


def _reply(handler, body: bytes, code: int = 200) -> None:
    handler.send_response(code)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _breaks_off(handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.close()


def _hangs_up(handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.connection.close()


SERVERS = {
    "hangs up": _hangs_up,
    "HTTP 500": lambda handler: _reply(handler, b'{"error": {"message": "no luck"}}', 500),
    "breaks off": _breaks_off,
    "says nonsense": lambda handler: _reply(handler, _answer("purple")),
    "is silent": lambda handler: time.sleep(0.15),
}


class _Server:
    """A judge on this machine that gives every picture the same grades, and fails when the trigger strikes."""

    def __init__(self, trigger: Trigger, failure):
        grades = json.dumps({name: {"explanation": "-", "score": 6} for name in (*AXES, OVERALL)})

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                failure(self) if trigger.struck() else _reply(self, _answer(grades))

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, address: None
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _full() -> OSError:
    return OSError(28, "No space left on device")


INJECTORS: dict[tuple[str, str], Injector] = {
    ("verifier", "raises"): _judge(_raises(lambda: RuntimeError("the judge has left"))),
    ("verifier", "gives NaN"): _judge(lambda score: score * math.nan),
    ("verifier", "gives infinity"): _judge(lambda score: torch.full_like(score, math.inf)),
    ("verifier", "gives a wrong shape"): _judge(lambda score: score[:, None]),
    ("verifier", "runs out of memory"): _judge(_out_of_memory(1)),
    ("verifier", "takes too long"): _with_limit(_judge(_late)),
    ("model", "raises"): _model(_raises(lambda: RuntimeError("CUDA error: device-side assert triggered"))),
    ("model", "gives NaN"): _model(lambda x0: x0 * math.nan),
    ("model", "gives infinity"): _model(lambda x0: torch.full_like(x0, -math.inf)),
    ("model", "runs out of memory"): _model(_out_of_memory(1)),
    ("model", "takes too long"): _with_limit(_model(_late)),
    ("VAE", "raises"): _decoder(_raises(lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))),
    ("VAE", "gives NaN"): _decoder(lambda images: images * math.nan),
    ("VAE", "runs out of memory"): _decoder(_out_of_memory(1)),
    ("disk", "is full"): _journal("_line", _full),
    ("disk", "is full in the middle of a line"): _half_a_line,
    ("disk", "is full for latents"): _journal("_write_latents", _full),
    ("disk", "is read only"): _journal("_line", lambda: PermissionError(13, "Permission denied")),
    **{("network", kind): _sent(kind) for kind in SERVERS},
    ("person", "does not answer"): _person(lambda question: None),
    ("person", "drops everything"): _person(_drops_all),
    ("person", "cancels"): _person(_raises(lambda: Interrupted("Cancel"))),
    ("person", "loses the window"): _person(_raises(lambda: ConnectionResetError("the window is gone"))),
    ("process", "is cancelled in the model"): _model(_raises(lambda: Interrupted("Cancel"))),
    ("process", "is cancelled in the VAE"): _decoder(_raises(lambda: Interrupted("Cancel"))),
    ("process", "is cancelled after a step"): _in_listener(_raises(lambda: Interrupted("Cancel"))),
    ("process", "gets Ctrl-C"): _model(_raises(KeyboardInterrupt)),
    ("process", "loses its display"): _in_listener(_raises(lambda: OSError("the display is gone"))),
}
ONLY_ONCE = ("cancel", "Ctrl-C", "display")
"""What ends the run, or is switched off, at its first time."""


def _listed() -> list[Fault]:
    names, looking = itertools.cycle(SEARCHES), itertools.cycle(LOOKING)
    found = []
    for part, kind in INJECTORS:
        for often in OFTEN[: 1 if any(word in kind for word in ONLY_ONCE) else 2]:
            for moment in MOMENTS:
                few = part in ("verifier", "VAE", "network", "person") or "VAE" in kind
                found.append(Fault(part, kind, moment, often, next(looking if few else names)))
    return found


FAULTS = _listed()


def _world(folder: Path) -> World:
    process = oracles.keyed(steps=6, groups=GROUPS)
    verifier = oracles.FunctionVerifier(lambda x: -(x - 1).square().mean(1), "target")
    verifier.differentiable = False
    return World(folder, process, verifier, Journal(folder))


def _calls(fault: Fault, folder: Path) -> int:
    """How often the part is called when nothing goes wrong."""
    world = _world(folder)
    trigger = Trigger(world, 0, always=False)
    with _settled(world, fault, trigger):
        world.options.pop("max_seconds", None)
        _run(fault, world, None)
    return trigger.calls


@contextlib.contextmanager
def _settled(world: World, fault: Fault, trigger: Trigger) -> Iterator[None]:
    """The fault is in the world while the context lasts; nobody sleeps between retries."""
    INJECTORS[fault.part, fault.kind](world, trigger)
    sleep, client._sleep = client._sleep, lambda seconds, poll: poll()
    clock, ledger.time = ledger.time, CLOCK
    try:
        yield
    finally:
        client._sleep, ledger.time = sleep, clock
        if "server" in world.options:
            world.options.pop("server").close()


def _run(fault: Fault, world: World, rescue) -> Any:
    options = {name: value for name, value in world.options.items() if name != "server"}
    return run_search(
        SEARCHES[fault.search],
        world.process,
        world.verifier,
        ["a red star"] * GROUPS,
        listener=world.listener,
        journal=world.journal,
        rescue=rescue,
        **options,
    )


class _Log(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


_COUNTED: dict[tuple[str, str, str], int] = {}


def injected(fault: Fault, folder: Path) -> Outcome:
    """Run the search with the fault in it."""
    key = fault.part, fault.kind, fault.search
    if key not in _COUNTED:
        _COUNTED[key] = _calls(fault, folder / "undisturbed")
    at = {"early": 1, "mid": max(1, (_COUNTED[key] + 1) // 2), "late": _COUNTED[key]}[fault.moment]
    outcome, rescued, heard = Outcome(fault), [], _Log()
    world = _world(folder)
    trigger = Trigger(world, at, fault.often == "always")
    logger = logging.getLogger("testtime")
    logger.addHandler(heard)
    told: list[str] = []
    try:
        with _settled(world, fault, trigger):
            result = _run(fault, world, rescued.append)
        outcome.ended, told, rescued = result.status, list(result.warnings), [result]
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is looked at
        outcome.ended, told = type(error).__name__, [str(error)] if str(error) else []
    finally:
        logger.removeHandler(heard)
    assert trigger.had is not None, f"{fault} never struck"
    outcome.had = trigger.had
    outcome.got = _had(rescued[-1].latents if rescued else None) or _had(_from_journal(world.journal.path))
    outcome.said = [_settled_text(line, folder) for line in dict.fromkeys([*told, *heard.lines])]
    return outcome


def _had(latents) -> int:
    return 0 if latents is None else int(torch.isfinite(latents).flatten(1).all(1).sum())


def _from_journal(path: Path):
    try:
        return recover(path).latents
    except (OSError, ValueError):
        return None


def _settled_text(text: str, folder: Path) -> str:
    """A message without what differs from run to run."""
    text = " ".join(text.replace(str(folder), "FOLDER").split())
    return re.sub(r"\d{8}-\d{6}-[0-9a-f]{6}", "RUN", re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text))

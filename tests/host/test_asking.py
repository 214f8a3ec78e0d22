"""Questions to a person: shown whole, answered once, over in time, and never asked where nobody can answer."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host


def question(n: int = 4, group=None, size: int = 300):
    from testtime.verifiers.human import Question

    images = torch.zeros(n, size, size, 3)
    images[0, ..., 0] = 1.0
    scores = torch.arange(n, dtype=torch.float64)
    scores[-1] = torch.nan
    return Question(images, ["a <b>star</b>"] * n, group or [0] * n, scores, 3, 9, "redness")


@pytest.fixture
def office():
    """A desk with the windows "anna" and "ben" open, a run of anna's, and the messages that were sent."""
    from testtime.nodes.host.asking import Desk

    made = SimpleNamespace(windows={"anna", "ben"}, owner="anna", sent=[])
    made.desk = Desk(lambda: set(made.windows), lambda: made.owner)
    made.desk.sink = lambda event, payload: made.sent.append((event, payload))
    made.desk.hello("anna")
    made.desk.hello("ben")
    return made


def asked(office, seconds: float = 20.0, **options):
    """Ask on a thread: (thread, list that gets the answer or the exception) once the question is open."""
    found = []

    def work():
        try:
            found.append(office.desk.ask(question(**options), seconds))
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(6000):
        if office.desk.current("anna") or found:
            break
        time.sleep(0.01)
    return thread, found


def test_an_answer_reaches_the_search(office):
    thread, found = asked(office)
    body = office.desk.current()
    assert 15 < body["seconds"] <= 20 and body["prompts"] == ["a <b>star</b>"] and body["fallback"] == "redness"
    assert [c["score"] for c in body["candidates"]] == [0.0, 1.0, 2.0, None]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["candidates"][0]["picture"]))))
    assert picture.shape == (256, 256, 3) and picture[..., 0].mean() > 250
    json.dumps(body)
    reply = {"client": "ben", "ranked": [2, 0], "dropped": [1]}
    assert office.desk.answer(body["question"], reply) == (200, {"how": "person"})
    thread.join(5)
    assert found[0].ranked == (2, 0) and found[0].dropped == {1}
    assert office.desk.current() is None
    (first, told), (last, over) = office.sent
    assert (first, last) == ("testtime.ask", "testtime.answered") and "candidates" not in told
    assert over == {"question": body["question"], "how": "person", "by": "ben"}


def test_the_first_of_two_windows_counts(office):
    thread, found = asked(office)
    number = office.desk.current()["question"]
    assert office.desk.answer(number, {"client": "anna", "ranked": [3]})[0] == 200
    status, said = office.desk.answer(number, {"client": "ben", "ranked": [1]})
    assert status == 409 and said["by"] == "anna" and "already" in said["error"]
    thread.join(5)
    assert found[0].ranked == (3,)
    assert office.desk.answer(number, {"client": "ben", "ranked": [1]})[0] == 409
    assert office.desk.answer("000000000000", {"ranked": [1]})[0] == 404


@pytest.mark.parametrize(
    ("message", "part"),
    [
        ({"ranked": [9]}, "numbered 0 to 3"),
        ({"ranked": [1, 1]}, "twice"),
        ({"dropped": [0, 1, 2, 3]}, "nothing is left"),
        ({"ranked": 3}, "lists"),
        ({"ranked": [[1]]}, "numbered"),
        ({"ranked": ["<script>"]}, "numbered"),
        ({"dropped": [{}]}, "lists"),
        (None, "send"),
        ([1], "send"),
    ],
)
def test_nonsense_is_refused_and_the_question_stays_open(office, message, part):
    thread, found = asked(office)
    number = office.desk.current()["question"]
    status, said = office.desk.answer(number, message)
    assert status == 400 and part in said["error"]
    assert office.desk.current() is not None
    assert office.desk.answer(number, {"skip": True}) == (200, {"how": "verifier"})
    thread.join(5)
    assert found == [None]


def test_no_answer_in_time_leaves_it_to_the_other_verifier(office):
    begun = time.monotonic()
    thread, found = asked(office, seconds=0.4)
    thread.join(5)
    assert found == [None] and 0.3 < time.monotonic() - begun < 4
    assert office.sent[-1][1]["how"] == "time"


@pytest.mark.parametrize("change", [{"owner": None}, {"owner": "script"}, {"windows": set()}, {"windows": {"script"}}])
def test_runs_that_nobody_watches_never_wait(office, change):
    """Bare API, a client without a panel, and a browser that was closed: the answer comes at once, nothing is sent."""
    for name, value in change.items():
        setattr(office, name, value)
    begun = time.monotonic()
    assert office.desk.ask(question(), 600) is None
    assert time.monotonic() - begun < 0.5 and not office.sent


def test_a_closed_browser_ends_the_waiting_after_a_while_and_a_reload_does_not(office, monkeypatch):
    from testtime.nodes.host import asking

    monkeypatch.setattr(asking, "GRACE", 0.6)
    thread, found = asked(office)
    office.windows = set()
    time.sleep(0.3)
    office.windows = {"anna"}  # reloaded
    time.sleep(0.6)
    assert office.desk.current() is not None and not found
    office.windows = set()
    thread.join(5)
    assert found == [None] and office.sent[-1][1]["how"] == "nobody"


def test_cancel_works_while_waiting(office):
    import comfy.model_management as management

    from testtime.nodes.host.compat import InterruptProcessing

    thread, found = asked(office)
    management.interrupt_current_processing(True)
    thread.join(5)
    management.interrupt_current_processing(False)
    assert isinstance(found[0], InterruptProcessing) and office.sent[-1][1]["how"] == "cancelled"
    assert office.desk.current() is None


def test_five_hundred_candidates_stay_small(office):
    thread, _ = asked(office, n=512, size=200)
    body = office.desk.current()
    assert len(body["candidates"]) == 512 and len(json.dumps(body)) < 3_000_000
    picture = Image.open(io.BytesIO(base64.b64decode(body["candidates"][511]["picture"])))
    assert picture.size == (128, 128)
    office.desk.answer(body["question"], {"skip": True})
    thread.join(5)


def test_the_node_makes_a_judge_that_searches_can_use(setup, search_ksampler):
    """In process there is no server and so nobody to ask: the search is the one of the fallback."""
    from testtime.nodes.human_node import PickByHandNode
    from testtime.samplers.methods import SMC
    from testtime.samplers.smc.tempering import Alpha

    given = setup()
    alone = search_ksampler(given, SMC(3, alpha=Alpha(0.5, "absolute")))
    given.verifier = PickByHandNode.execute(given.verifier, "50%, end", 600.0).args[0]
    asked_for = search_ksampler(given, SMC(3, alpha=Alpha(0.5, "absolute")))
    assert torch.equal(alone.best["samples"], asked_for.best["samples"])
    assert asked_for.scores.verifier == "human, redness"
    assert PickByHandNode.validate_inputs("50%") is True
    assert "'soon'" in PickByHandNode.validate_inputs("soon")


def test_greetings_of_strangers_push_no_window_out(office):
    from testtime.nodes.host.asking import WINDOWS_KEPT

    assert not any(office.desk.hello(f"stranger {k}") for k in range(3 * WINDOWS_KEPT))
    assert office.desk.attended() and office.desk.somebody()
    office.windows |= {f"window {k}" for k in range(3 * WINDOWS_KEPT)}
    assert all(office.desk.hello(f"window {k}") for k in range(3 * WINDOWS_KEPT))
    assert office.desk.attended()  # anna greeted first, and her window is still open
    office.windows = {"anna"}
    office.desk.hello("anna")
    assert len(office.desk._panels) == WINDOWS_KEPT + 1  # what is remembered of closed windows is bounded


def test_a_question_is_for_everyone_its_owner_or_nobody(office, monkeypatch):
    from testtime.nodes.host.audience import VARIABLE

    monkeypatch.setenv(VARIABLE, "own")
    thread, found = asked(office)
    number = office.desk.current("anna")["question"]
    assert office.desk.current("ben") is None and office.desk.current() is None
    assert office.desk.answer(number, {"client": "ben", "ranked": [1]})[0] == 404
    assert office.desk.answer(number, {"client": "anna", "ranked": [1]})[0] == 200
    thread.join(5)
    assert found[0].ranked == (1,)
    monkeypatch.setenv(VARIABLE, "off")
    assert not office.desk.attended() and office.desk.ask(question(), 5.0) is None

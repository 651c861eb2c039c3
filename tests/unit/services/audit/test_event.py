"""An event is one line of JSON, whatever the texts in it hold."""

from __future__ import annotations

import json

import pytest

from services.audit import HOST, Event, EventKind, Outcome
from services.identity.principal import Principal, Role

ANN = Principal("ann", "acme", frozenset({Role.OPERATOR}))


def test_a_line_says_who_did_what_to_what_and_when() -> None:
    event = Event(EventKind.CANCEL, Outcome.REFUSED, "r1", ANN, "ipv4:10.0.0.7", "no such request", "abc")
    assert json.loads(event.line("router-1", 1_800_000_000.25)) == {
        "time": "2027-01-15T08:00:00.250Z",
        "process": "router-1",
        "event": "cancel",
        "outcome": "refused",
        "target": "r1",
        "who": "ann",
        "authenticated": True,
        "tenant": "acme",
        "peer": "ipv4:10.0.0.7",
        "detail": "no such request",
        "trace_id": "abc",
    }


def test_what_is_not_known_has_no_field() -> None:
    line = json.loads(Event(EventKind.DRAIN, Outcome.DONE, "w1", HOST).line("w1", 1_800_000_000.0))
    assert not line.keys() & {"tenant", "peer", "detail", "trace_id"}


def test_a_caller_whose_credential_nobody_checked_is_not_called_authenticated() -> None:
    line = json.loads(Event(EventKind.CANCEL, Outcome.DONE, "r1").line("router-1", 1_800_000_000.0))
    assert (line["who"], line["authenticated"]) == ("anybody", False)


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2Jgone", "\u202eabc", '"}\r\n{"event": "key"}', "\ud800"])
def test_control_characters_never_reach_the_line(text: str) -> None:
    line = Event(EventKind.CANCEL, Outcome.DONE, text, detail=text).line("router-1", 1_800_000_000.0)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["target"] == text


def test_long_texts_are_shortened_and_passwords_in_urls_hidden() -> None:
    event = Event(EventKind.KEY, Outcome.FAILED, "x" * 5000, detail="redis://user:hunter2@host:1/0 does not answer")
    line = json.loads(event.line("router-1", 1_800_000_000.0))
    assert len(line["target"]) == 256
    assert "hunter2" not in line["detail"]

"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from services.telemetry import logs


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [known for known in root.handlers if known.get_name() == logs.HANDLER_NAME]:
        root.removeHandler(handler)
    root.setLevel(level)


def test_a_json_line_names_request_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "router", "json")
    logging.getLogger("somewhere").warning("it %s", "broke\nhere", extra=logs.about("r1", "0af7"))
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "process": "router",
        "logger": "somewhere",
        "message": "it broke\nhere",
        "request_id": "r1",
        "trace_id": "0af7",
    }


def test_a_json_line_has_only_the_ids_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "router", "json")
    logging.getLogger("somewhere").info("no request", extra=logs.about(""))
    assert not {"request_id", "trace_id"} & json.loads(capsys.readouterr().err).keys()


@pytest.mark.parametrize("form", ["line", "json"])
def test_an_exception_stays_on_one_line(capsys: pytest.CaptureFixture[str], form: str) -> None:
    logs.configure("info", "router", "json" if form == "json" else "line")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("somewhere").exception("it broke")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError" in line
    assert "it broke" in line


def test_logging_that_is_configured_again_writes_each_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "first")
    logs.configure("warning", "second")
    logging.getLogger("somewhere").info("not written any more")
    logging.getLogger("somewhere").warning("once")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING second  once")


def test_times_are_utc_with_three_digits_of_milliseconds() -> None:
    record = logging.LogRecord("n", logging.INFO, __file__, 1, "ready", (), None)
    record.created, record.msecs = 1_700_000_000.007, 7.0
    assert logs.LineFormatter("router").format(record) == "2023-11-14T22:13:20.007Z INFO    router  ready"
    assert json.loads(logs.JsonFormatter("router").format(record))["time"] == "2023-11-14T22:13:20.007Z"


def test_empty_lines_of_a_message_are_left_out() -> None:
    record = logging.LogRecord("n", logging.INFO, __file__, 1, "first  \n\n  second\n", (), None)
    assert logs.LineFormatter("router").format(record).endswith("router  first |   second")


def test_a_line_for_people_says_when_how_bad_and_who(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info", "router")
    logging.getLogger("somewhere").info("ready")
    logging.getLogger("somewhere").debug("not written")
    time, level, process, message = capsys.readouterr().err.split()
    assert time.endswith("Z")
    assert (level, process, message) == ("INFO", "router", "ready")

"""What the demo prints."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

from cli.demo.farewell import Doors, how_to_go_on
from cli.demo.prompts import burst, document
from cli.demo.rehearsal import asked
from cli.demo.tables import comparison_table, head, promises_table, tail
from cli.demo.targets import Stretch, Targets
from tests.unit.cli.demo.outcomes import served

TERMINAL_COLUMNS = 80


def lines(picture: RenderableType) -> dict[str, list[str]]:
    """The words of each line of a table as an ordinary terminal shows it, by the first of them."""
    output = StringIO()
    Console(file=output, width=TERMINAL_COLUMNS).print(picture)
    rows = [line.split() for line in output.getvalue().splitlines()]
    return {row[0]: row[1:] for row in rows if row}


def test_targets_stand_beside_what_was_expected_and_what_came() -> None:
    table = lines(
        promises_table(
            [
                served("chatbot-1", ttft_s=0.5, tpot_s=0.1),
                served("coder-1", ttft_s=1.25, tpot_s=0.1),
                served("coder-2", ttft_s=0.5, tpot_s=0.1, promised=False),
                served("coder-3", ttft_s=0.5, tpot_s=0.4, promised=False),
            ]
        )
    )
    assert table["chatbot-1"] == ["800", "400", "500", "300", "50", "100", "kept"]
    assert table["coder-1"] == ["800", "400", "1,250", "300", "50", "100", "MISSED"]
    assert table["coder-2"][-3:] == ["none,", "in", "time"]
    assert table["coder-3"][-2:] == ["none,", "late"]


def test_a_failed_request_says_why() -> None:
    table = lines(promises_table([served("coder-1", error="gone [/]")]))
    assert table["coder-1"][:3] == ["800", "400", "300"]
    assert "failed:" in table["coder-1"]


def test_both_bursts_stand_side_by_side() -> None:
    with_promises = [served("chatbot-1"), served("chatbot-2", ttft_s=0.7), served("coder-1")]
    without = [
        served("chatbot-1", ttft_s=1.5, promised=False),
        served("chatbot-2", promised=False),
        served("coder-1", ttft_s=3.0, tpot_s=0.2, promised=False),
    ]
    table = lines(comparison_table(with_promises, without))
    assert table["chatbot"] == ["800", "300", "2", "of", "2", "700", "100", "1", "of", "2", "1,500", "100"]
    assert table["coder"] == ["800", "300", "1", "of", "1", "500", "100", "0", "of", "1", "3,000", "200"]
    assert table["all"] == ["3", "of", "3", "1", "of", "3"]


def test_long_texts_are_cut_at_the_far_end() -> None:
    text = "one\ntwo " + "x" * 200 + " three"
    assert head(text).startswith("one two xx")
    assert head(text).endswith("...")
    assert tail(text).startswith("...x")
    assert tail(text).endswith("xx three")
    assert head("one\n two") == tail("one\n two") == "one two"


def test_the_burst_sends_most_short_prompts_behind_the_long_ones() -> None:
    prompts = burst(1)
    profiles = [prompt.profile for prompt in prompts]
    assert len({prompt.name for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 16
    assert all(profiles.count(profile) == 4 for profile in profiles)
    assert profiles.index("summarizer") == 3
    assert profiles[3:7] == ["summarizer"] * 4
    longest_short = max(len(prompt.text) for prompt in prompts if prompt.profile != "summarizer")
    assert min(len(prompt.text) for prompt in prompts[3:7]) > 10 * longest_short


def test_documents_grow_by_the_text_and_differ_in_their_beginning() -> None:
    assert len(document(6)) > 5 * len(document(1))
    beginnings = {document(1, first)[:200] for first in range(4)}
    assert len(beginnings) == 4


def test_what_is_asked_for_is_said_profile_by_profile() -> None:
    targets = {prompt.name: Targets(0.5, 0.25) for prompt in burst(1)}
    targets["coder-3"] = Targets(0.75, 0.25)
    heading, *profiles = asked(Stretch(ttft=2.0, tpot=6.8), burst(1), targets)
    assert "TTFT times 2.0 and TPOT times 6.8" in heading
    assert [line.split()[0] for line in profiles] == ["chatbot", "coder", "tool_use", "summarizer"]
    assert "0.50 to 0.75 s, then 250 ms a token" in profiles[1]


def test_a_cluster_that_is_kept_says_where_its_doors_are() -> None:
    doors = Doors("127.0.0.1:50051", "127.0.0.1:8000", "http://127.0.0.1:8001/", "slos-serve down --run-dir /a")
    text = "\n".join(how_to_go_on(doors, Targets(ttft_s=0.8, tpot_s=0.3)))
    assert "console  http://127.0.0.1:8001/" in text
    assert "http://127.0.0.1:8000/v1/chat/completions -H 'x-slo-ttft-ms: 800' -H 'x-slo-tpot-ms: 300'" in text
    assert "Contract.latency(ttft_s=0.80, tpot_s=0.30)" in text
    assert "stop     slos-serve down --run-dir /a" in text
    assert "slos-serve top --address 127.0.0.1:50051" in text


def test_a_cluster_that_is_stopped_names_no_addresses() -> None:
    text = "\n".join(how_to_go_on(None, Targets(ttft_s=0.8, tpot_s=0.3)))
    assert "demo --keep" in text
    assert "slos-serve up" in text
    assert "127.0.0.1" not in text

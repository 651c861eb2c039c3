"""Generated parts of the documentation are what the code makes of them now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from cli.reference.blocks import BLOCKS
from cli.reference.errors import ONLY_HTTP, WHAT_TO_DO
from cli.reference.page import UnknownBlockError, blocks_in, filled, table
from cli.reference.protocol import FilePage, MissingCommentError
from gateway import http_errors
from services.rpc.errors import STATUS_OF

REPOSITORY = Path(__file__).resolve().parents[4]
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))
PAGES_WITH_BLOCKS = [page for page in PAGES if "<!-- generated: " in page.read_text()]


@pytest.mark.parametrize("page", PAGES_WITH_BLOCKS, ids=lambda page: str(page.relative_to(REPOSITORY / "docs")))
def test_a_page_shows_what_the_code_says(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- generated: ") == len(blocks_in(text)), "a block has no end, or a misspelt one"
    assert filled(text, BLOCKS) == text, "stale: run `make reference`"


def test_every_block_is_shown_somewhere() -> None:
    shown = {name for page in PAGES for name in blocks_in(page.read_text())}
    assert shown == set(BLOCKS)


def test_only_what_stands_in_a_block_is_replaced() -> None:
    text = "before\n<!-- generated: a; run `make reference` -->\nold\n<!-- end of a -->\nafter\n"
    assert filled(text, {"a": lambda: "new\n"}) == text.replace("\nold\n", "\n\nnew\n\n")


def test_a_block_that_nothing_writes_is_an_error() -> None:
    with pytest.raises(UnknownBlockError, match="'b'"):
        filled("<!-- generated: b; run `make reference` -->\n<!-- end of b -->", {})


def test_cells_cannot_break_a_table() -> None:
    assert table(("a", "b"), [("x|y", "one\n two")]) == "| a | b |\n|---|---|\n| x\\|y | one two |\n"


def test_every_error_of_a_router_says_what_to_do() -> None:
    assert set(WHAT_TO_DO) == {reason for _, reason in STATUS_OF.values()}


def test_every_code_of_the_gateway_is_in_a_table() -> None:
    sources = "".join(path.read_text() for path in (REPOSITORY / "gateway").glob("*.py"))
    written = set(re.findall(r'code="(\w+)"', sources))
    written |= set(re.findall(r'(?:HttpError|_Row)\(\s*\d+, (?:INVALID|"\w+"), "(\w+)"', sources))
    of_routers = {row.code for _, row in http_errors.TABLE} | {reason.lower() for reason in WHAT_TO_DO}
    listed = {code for _, code, _, _ in ONLY_HTTP}
    assert written - of_routers <= listed
    assert [code for code in sorted(listed) if f'"{code}"' not in sources] == []


def test_a_field_of_the_protocol_without_a_comment_is_an_error() -> None:
    file = FileDescriptorProto(name="new.proto", message_type=[DescriptorProto(name="New")])
    with pytest.raises(MissingCommentError, match="New has no comment"):
        FilePage(file).text()

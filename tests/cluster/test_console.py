"""The console in a real Chromium, on an emulated cluster that works, misses a promise, and goes away."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from slos_serve.v1 import contract_pb2
from tests.support.browser import Complaints, Gate, chromium
from tests.support.cluster import ClusterUnderTest
from tests.support.promises import promised, provoke_a_miss

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.cluster

PATIENCE_MS = 15_000
HOSTILE_ID = '"><img/src=x/onerror=window.pwned=1>/../?#&<script>window.pwned=2</script>'
HOSTILE_NAME = "<script>window.pwned=3</script><img src=x onerror=window.pwned=4>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def complaints() -> Complaints:
    return Complaints()


@pytest.fixture
def page(browser: Browser, complaints: Complaints) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints.listen(page)
    yield page
    context.close()


def console_url(cluster: ClusterUnderTest) -> str:
    url = cluster.state().console_url
    assert url
    return url


def test_a_missed_promise_shows_without_reload_and_leads_to_its_request(
    disturbed: ClusterUnderTest, page: Page, complaints: Complaints
) -> None:
    disturbed.wait_ready(2)
    page.goto(console_url(disturbed))
    page.wait_for_selector("#link[data-state=live]")
    for worker_id in disturbed.workers:
        assert page.get_by_text(worker_id, exact=True).first.is_visible()
    assert page.get_by_text("emulated engines").is_visible()
    disturbed.generate(promised("console-kept"))
    provoke_a_miss(disturbed, "console-missed")

    page.wait_for_selector("#promises .tone-kept")
    page.wait_for_selector("#promises rect.tone-missed")
    misses = page.locator("section", has_text="Missed promises and failures")
    row = misses.locator("tr", has_text="console-missed")
    row.wait_for()
    assert "> 0.400 s" in row.inner_text()
    row.get_by_role("link", name="console-missed").click()

    page.wait_for_selector("#timeline rect.tone-prefill")
    assert page.locator("#timeline rect.tone-decode, #timeline rect.tone-handover").count() >= 1
    assert "guaranteed" in page.locator("#planner tbody tr").first.inner_text()
    assert page.locator(".headline").inner_text().split()[:2] == ["console-missed", "missed"]
    late = page.locator("section.late").first.inner_text()
    assert late.startswith("Who made the ")
    assert "this request" in late
    page.get_by_role("link", name="slos-serve").click()
    page.wait_for_selector("#promises")
    assert complaints.heard == []


def test_what_clients_call_themselves_stays_text(
    disturbed: ClusterUnderTest, page: Page, complaints: Complaints
) -> None:
    request = promised(HOSTILE_ID)
    request.tenant = request.application = HOSTILE_NAME
    disturbed.generate(request)
    refused = promised(HOSTILE_ID + "-refused")
    refused.tenant = HOSTILE_NAME
    refused.contract.stages[0].prefill.ttft_s = 1e-4
    refused.contract.on_overload = contract_pb2.ON_OVERLOAD_REFUSE
    with pytest.raises(Exception, match="idle worker needs"):
        disturbed.generate(refused)

    page.goto(console_url(disturbed))
    page.get_by_role("link", name=HOSTILE_ID, exact=True).first.wait_for()
    page.get_by_role("link", name=HOSTILE_ID + "-refused", exact=True).first.wait_for()
    assert page.get_by_text(HOSTILE_NAME).count() > 0
    page.get_by_role("link", name=HOSTILE_ID, exact=True).first.click()
    page.wait_for_selector("#planner")
    assert HOSTILE_ID in page.locator(".headline").inner_text()
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main script").count() == 0
    assert complaints.heard == []


def test_a_request_that_runs_is_followed(disturbed: ClusterUnderTest, page: Page) -> None:
    running = disturbed.stub.Generate(promised("console-running", 400), timeout=60)
    next(iter(running))
    page.goto(console_url(disturbed) + "#/requests/console-running")
    page.wait_for_selector(".chip.running")
    running.cancel()
    page.wait_for_selector(".chip.cancelled")


def test_an_unknown_request_is_said_to_be(disturbed: ClusterUnderTest, page: Page) -> None:
    page.goto(console_url(disturbed) + "#/requests/never-heard-of")
    page.get_by_text("Request not known").wait_for()
    page.get_by_role("link", name="Back to the cluster").click()
    page.wait_for_selector("#promises")


def test_a_router_that_is_gone_is_said_to_be_and_found_again(disturbed: ClusterUnderTest, page: Page) -> None:
    gate = Gate(urlsplit(console_url(disturbed)).port or 0)
    gate.open()
    page.goto(f"http://127.0.0.1:{gate.port}/")
    page.wait_for_selector("#link[data-state=live]")
    assert not page.locator("#banner").is_visible()
    gate.shut()
    page.wait_for_selector("#link[data-state=lost]")
    assert "econnecting" in page.locator("#banner").inner_text()
    assert page.locator("#promises").is_visible(), "the last picture stays"
    gate.open()
    page.wait_for_selector("#link[data-state=live]")
    assert not page.locator("#banner").is_visible()
    gate.shut()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(
    disturbed: ClusterUnderTest, browser: Browser, scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    for path, shown in (("", "#promises"), ("#/requests/console-kept", "#planner, .empty")):
        page.goto(console_url(disturbed) + path)
        page.wait_for_selector(shown, timeout=PATIENCE_MS)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(int(part) for part in background.strip("rgb()").split(",")) > 3 * 128
    assert light is (scheme == "light")
    context.close()

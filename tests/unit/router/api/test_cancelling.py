"""A request is ended where it runs, whichever router is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import pytest

from router.api.cancelling import Cancelling
from services.identity.principal import Principal, Role
from services.rpc.errors import InvalidRequestError, UnknownRequestError
from services.state.cancellations import Cancellations
from services.state.connection import StateUnavailableError
from services.state.journal import RequestJournal
from services.state.journal_entry import JournalEntry, RequestState
from tests.support.audit_log import AuditLog


@dataclass
class Cluster:
    """Two places of this router, the journal, and the other routers."""

    entries: dict[str, JournalEntry] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    ended: list[str] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)
    redis: bool = True

    def cancelling(self) -> Cancelling:
        places = (self._place("held", self.held), self._place("running", self.running))
        return Cancelling("router-1", places, cast("RequestJournal", self), cast("Cancellations", self))

    def _place(self, name: str, there: set[str]) -> Callable[[str], bool]:
        def cancel(request_id: str) -> bool:
            if request_id not in there:
                return False
            there.remove(request_id)
            self.ended.append(f"{name} {request_id}")
            return True

        return cancel

    async def read(self, request_id: str) -> JournalEntry | None:
        self._check()
        return self.entries.get(request_id)

    async def send(self, router_id: str, request_id: str) -> bool:
        self._check()
        self.sent.append((router_id, request_id))
        return router_id not in self.gone

    async def listen(self, router_id: str, cancel: Callable[[str], object]) -> None:
        assert router_id == "router-1"
        for request_id in ("a", "nobody's"):
            cancel(request_id)

    def _check(self) -> None:
        if not self.redis:
            raise StateUnavailableError("redis://nowhere", "no answer")


async def test_a_request_of_this_router_is_ended_where_it_is() -> None:
    cluster = Cluster(held={"a"}, running={"b"}, redis=False)
    await cluster.cancelling().anywhere("a")
    await cluster.cancelling().anywhere("b")
    assert cluster.ended == ["held a", "running b"]
    assert not cluster.sent


async def test_the_router_that_serves_a_request_is_asked_to_end_it() -> None:
    cluster = Cluster(entries={"a": JournalEntry("a", "router-2", RequestState.DECODING)})
    await cluster.cancelling().anywhere("a")
    assert cluster.sent == [("router-2", "a")]


@pytest.mark.parametrize("request_id", ["", "a b", "a\n", "é", "a" * 129])
async def test_what_is_no_id_is_asked_of_nobody(request_id: str) -> None:
    cluster = Cluster(held={request_id})
    with pytest.raises(InvalidRequestError, match="no request id") as caught:
        await cluster.cancelling().anywhere(request_id)
    assert caught.value.field == "request_id"
    assert not cluster.ended


@pytest.mark.parametrize(
    ("entry", "detail"),
    [
        (None, "no request with this id is running"),
        (JournalEntry("a", "router-2", RequestState.DONE), "no request with this id is running"),
        (JournalEntry("a", "router-2", RequestState.CANCELLED), "no request with this id is running"),
        (JournalEntry("a", "router-1", RequestState.DECODING), "no request with this id is running"),
        (JournalEntry("a", "router-3", RequestState.DECODING), "router router-3, which served it, is gone"),
    ],
)
async def test_a_request_that_nobody_runs_is_unknown(entry: JournalEntry | None, detail: str) -> None:
    cluster = Cluster(entries={} if entry is None else {"a": entry}, gone={"router-3"})
    with pytest.raises(UnknownRequestError) as caught:
        await cluster.cancelling().anywhere("a")
    assert (caught.value.field, caught.value.detail) == ("request_id", detail)
    assert cluster.sent == ([("router-3", "a")] if "gone" in detail else [])


async def test_without_redis_other_routers_cannot_be_asked() -> None:
    with pytest.raises(UnknownRequestError, match="without Redis") as caught:
        await Cluster(redis=False).cancelling().anywhere("a")
    assert caught.value.field == "request_id"


async def test_what_other_routers_ask_for_is_ended_here() -> None:
    cluster = Cluster(running={"a", "b"})
    await cluster.cancelling().listen()
    assert cluster.ended == ["running a"]


def test_whether_a_request_was_here_is_told() -> None:
    cancelling = Cluster(held={"a"}).cancelling()
    assert cancelling.here("a")
    assert not cancelling.here("a")


async def test_the_audit_log_tells_who_asked_to_end_a_request(audit_log: AuditLog) -> None:
    cancelling = Cluster(held={"a"}).cancelling()
    await cancelling.on_call("a", "ipv4:10.0.0.7:40000")
    with pytest.raises(UnknownRequestError):
        await cancelling.on_call("b", "ipv4:10.0.0.8:40000")
    done, refused = audit_log.lines()
    assert (done["event"], done["outcome"], done["target"], done["peer"]) == ("cancel", "done", "a", "ipv4:10.0.0.7")
    assert (refused["outcome"], refused["target"], refused["peer"]) == ("refused", "b", "ipv4:10.0.0.8")
    assert "no request with this id is running" in refused["detail"]


ACME = Principal("ci", "acme", frozenset({Role.CLIENT}))
GLOBEX = Principal("web", "globex", frozenset({Role.CLIENT}))
OPERATOR = Principal("ops", "", frozenset({Role.OPERATOR}))
ADMIN = Principal("root", "acme", frozenset({Role.ADMIN}))


async def test_a_tenant_ends_its_own_request_and_not_the_other_of_the_same_id() -> None:
    cluster = Cluster(running={"acme/a", "globex/a"})
    await cluster.cancelling().anywhere("a", GLOBEX)
    assert cluster.ended == ["running globex/a"]
    with pytest.raises(UnknownRequestError):
        await cluster.cancelling().anywhere("a", GLOBEX)
    assert cluster.running == {"acme/a"}


@pytest.mark.parametrize("request_id", ["acme/a", "a", "../acme/a", "/a"])
async def test_a_request_of_another_tenant_is_as_unknown_as_none(request_id: str) -> None:
    entries = {"acme/b": JournalEntry("acme/b", "router-2", RequestState.DECODING)}
    cluster = Cluster(running={"acme/a", "a"}, entries=entries)
    with pytest.raises(UnknownRequestError) as hers:
        await cluster.cancelling().anywhere(request_id, GLOBEX)
    with pytest.raises(UnknownRequestError) as nobodys:
        await cluster.cancelling().anywhere("never-there", GLOBEX)
    assert str(hers.value) == str(nobodys.value)
    assert (cluster.ended, cluster.sent) == ([], [])


async def test_another_router_is_asked_for_the_tenants_own_request() -> None:
    entries = {name: JournalEntry(name, "router-2", RequestState.DECODING) for name in ("a", "acme/a", "globex/a")}
    cluster = Cluster(entries=entries)
    await cluster.cancelling().anywhere("a", GLOBEX)
    assert cluster.sent == [("router-2", "globex/a")]


async def test_an_operator_ends_every_request_by_the_id_that_the_console_shows() -> None:
    long = f"{'t' * 64}/{'r' * 128}"
    cluster = Cluster(
        running={"acme/a", long}, entries={"globex/b": JournalEntry("globex/b", "router-2", RequestState.QUEUED)}
    )
    for request_id in ("acme/a", long, "globex/b"):
        await cluster.cancelling().anywhere(request_id, OPERATOR)
    assert cluster.ended == ["running acme/a", f"running {long}"]
    assert cluster.sent == [("router-2", "globex/b")]


async def test_an_admin_means_its_own_request_first() -> None:
    cluster = Cluster(running={"acme/x", "globex/y", "x"})
    await cluster.cancelling().anywhere("x", ADMIN)
    await cluster.cancelling().anywhere("globex/y", ADMIN)
    assert cluster.ended == ["running acme/x", "running globex/y"]


async def test_a_client_is_not_told_which_router_is_gone() -> None:
    entries = {"acme/a": JournalEntry("acme/a", "router-3", RequestState.DECODING)}
    with pytest.raises(UnknownRequestError) as raised:
        await Cluster(entries=entries, gone={"router-3"}).cancelling().anywhere("a", ACME)
    assert "router-3" not in str(raised.value)

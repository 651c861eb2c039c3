"""Identities of processes, as certificates state them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.identity.peer import LABEL, PeerIdentity, PeerIdentityError, PeerRole

labels = st.from_regex(LABEL, fullmatch=True)
identities = st.builds(PeerIdentity, labels, st.sampled_from(PeerRole), st.one_of(st.just(""), labels))


@given(identities)
def test_what_is_written_is_read(identity: PeerIdentity) -> None:
    assert PeerIdentity.from_uris([identity.uri]) == identity


@given(st.text() | st.from_regex(r"spiffe://slos-serve/[a-z/%.]*", fullmatch=True))
def test_nothing_is_read_but_what_would_be_written(uri: str) -> None:
    try:
        identity = PeerIdentity.from_uris([uri])
    except PeerIdentityError:
        return
    assert identity.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "spiffe://slos-serve/",
        "spiffe://slos-serve/c",
        "spiffe://slos-serve/c/boss",
        "spiffe://slos-serve/c/Router",
        "spiffe://slos-serve/c/router/",
        "spiffe://slos-serve/c//r1",
        "spiffe://slos-serve/c/router/r1/r2",
        "spiffe://slos-serve/c/router/R1",
        "spiffe://slos-serve/c/router/*",
        "spiffe://slos-serve/c/router/r.1",
        "spiffe://slos-serve/c/router/r1\n",
        "spiffe://slos-serve/c/router/-r1",
        f"spiffe://slos-serve/c/router/{'r' * 64}",
        "spiffe://other/c/router/r1",
        "spiffe://slos-serve.example.org/c/router/r1",
        "spiffe://SLOS-serve/c/router/r1",
        "https://slos-serve/c/router/r1",
        " spiffe://slos-serve/c/router/r1",
        "spiffe://slos-serve/c/router/r1?x",
        "spiffe://slos-serve/c/router/%721",
    ],
)
def test_a_uri_of_another_form_is_no_identity(uri: str) -> None:
    with pytest.raises(PeerIdentityError):
        PeerIdentity.from_uris([uri])


def test_a_certificate_has_one_uri() -> None:
    router, worker = (PeerIdentity("c", role).uri for role in (PeerRole.ROUTER, PeerRole.WORKER))
    for uris in ([], [router, worker], [router, router], [router, "https://example.org"]):
        with pytest.raises(PeerIdentityError, match="one URI"):
            PeerIdentity.from_uris(uris)


@given(identities, identities)
def test_only_the_process_that_is_meant_carries_the_name_that_is_demanded(
    meant: PeerIdentity, shown: PeerIdentity
) -> None:
    assume(meant.id)
    carried = any(_matches(name, meant.server_name) for name in shown.names)
    same_pool = (shown.cluster, shown.role) == (meant.cluster, meant.role)
    assert carried == (same_pool and shown.id in ("", meant.id))


@given(identities, identities)
def test_a_role_is_reached_under_one_name(any_of_them: PeerIdentity, shown: PeerIdentity) -> None:
    role = PeerIdentity(any_of_them.cluster, any_of_them.role)
    carried = any(_matches(name, role.server_name) for name in shown.names)
    assert carried == ((shown.cluster, shown.role) == (role.cluster, role.role))


def _matches(pattern: str, name: str) -> bool:
    """Whether a name of a certificate stands for a host's name, as RFC 6125 says."""
    if pattern.startswith("*."):
        return "." in name and name.partition(".")[2] == pattern[2:]
    return pattern == name


def test_a_router_of_several_processes_calls_each_by_its_id_and_a_number() -> None:
    bound = PeerIdentity("c", PeerRole.ROUTER, "r1")
    assert [bound.covers(name) for name in ("r1", "r1-0", "r1-12")] == [True] * 3
    assert [bound.covers(name) for name in ("", "r2", "r1-", "r1-x", "r10", "r1-0-1", "r1-0\n")] == [False] * 7
    assert PeerIdentity("c", PeerRole.ROUTER).covers("whatever")
    worker = PeerIdentity("c", PeerRole.WORKER, "w1")
    assert (worker.covers("w1"), worker.covers("w1-0")) == (True, False)

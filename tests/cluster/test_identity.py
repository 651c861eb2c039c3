"""Two tenants on one cluster, with keys: nobody gets in without one, and nobody reaches what is another's."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from services.config.environment import API_KEY_VARIABLE
from services.identity.api_key import ApiKey, make_key
from services.identity.key_file import write_keys
from services.identity.principal import Role
from slos_serve.v1 import inference_pb2, sampling_pb2
from tests.support.another_router import another_router
from tests.support.cluster import Answer, ClusterUnderTest, cluster_under_test, greedy
from tests.support.eventually import wait_until
from tests.support.tiny_model import write_tiny_model

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.cluster

CONFIG = """
[model]
path = "{directory}/tiny"
[launcher]
run_dir = "{directory}/run"
[router]
port = 0
no_worker_patience_s = 2
quota_patience_s = 10
[auth]
keys_file = "{directory}/keys.json"
[redis]
heartbeat_s = 0.2
heartbeat_ttl_s = 1.0
[engine]
kind = "emulated"
[engine.emulated]
overhead_s = 0.01
[tenants.hooli]
requests_per_s = 0.001
requests_burst = 3
"""
Key = tuple[str, ApiKey]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A cluster that checks keys, and keys for it."""

    cluster: ClusterUnderTest
    directory: Path
    acme: Key
    globex: Key
    operator: Key
    expired: Key

    def write(self, *more: Key) -> None:
        """Replace the file of keys by the usual ones and more."""
        keys = (self.acme, self.globex, self.operator, self.expired, *more)
        write_keys(self.directory / "keys.json", [key for _, key in keys])


def shown(key: Key) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key[0]}"),)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("guarded")
    write_tiny_model(directory / "tiny")
    config = directory / "cluster.toml"
    config.write_text(CONFIG.format(directory=directory))
    client, operator = frozenset({Role.CLIENT}), frozenset({Role.OPERATOR})
    past = datetime.now(UTC) - timedelta(seconds=1)
    keys = (
        make_key("acme", client, "ci"),
        make_key("globex", client, "web"),
        make_key("operations", operator, "alice"),
        make_key("acme", client, "old", past),
    )
    write_keys(directory / "keys.json", [key for _, key in keys])
    with pytest.MonkeyPatch.context() as patch:
        # The launcher asks the router whether all workers are there.
        patch.setenv(API_KEY_VARIABLE, keys[2][0])
        with cluster_under_test(config) as cluster:
            yield Guarded(cluster, directory, *keys)


class Stream:
    """One stream that is read in a thread of its own."""

    def __init__(self, cluster: ClusterUnderTest, key: Key, request_id: str, tokens: int = 3000) -> None:
        self.answer = Answer()
        request = greedy([20, 21, 22], tokens, request_id=request_id)
        self.call: Any = cluster.stub.Generate(request, timeout=60, metadata=shown(key))
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        wait_until(lambda: len(self.answer.token_ids) > 2, "some tokens")

    def _follow(self) -> None:
        for response in self.call:
            self.answer.take(response)

    def ended(self) -> sampling_pb2.FinishReason.ValueType:
        self._thread.join(timeout=30)
        return self.answer.checked().finished.reason  # type: ignore[union-attr]


def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__iter__") else call()
    code: grpc.StatusCode = caught.value.code()
    return code


def cancel(cluster: ClusterUnderTest, request_id: str, key: Key) -> Any:
    message = inference_pb2.CancelRequest(request_id=request_id)
    return lambda: cluster.stub.Cancel(message, timeout=10, metadata=shown(key))


def test_without_a_valid_key_nothing_is_served(guarded: Guarded) -> None:
    stub: Any = guarded.cluster.stub
    asked = inference_pb2.GetClusterStateRequest()
    nobody: tuple[tuple[str, str], ...] = ()
    for metadata in (nobody, shown(guarded.expired), (("authorization", f"Bearer {guarded.acme[0][:-1]}x"),)):
        assert code_of(stub.Generate(greedy([20], 2), timeout=10, metadata=metadata)) is (
            grpc.StatusCode.UNAUTHENTICATED
        )
        for ask in (
            lambda metadata=metadata: stub.GetClusterState(asked, timeout=10, metadata=metadata),
            lambda metadata=metadata: stub.Cancel(
                inference_pb2.CancelRequest(request_id="x"), timeout=10, metadata=metadata
            ),
        ):
            assert code_of(ask) is grpc.StatusCode.UNAUTHENTICATED


def test_two_tenants_use_one_id_at_once_and_each_ends_its_own_only(guarded: Guarded) -> None:
    cluster = guarded.cluster
    acmes, globexs = Stream(cluster, guarded.acme, "same"), Stream(cluster, guarded.globex, "same", tokens=300)
    assert [stream.answer.admission.request_id for stream in (acmes, globexs) if stream.answer.admission] == [
        "same"
    ] * 2
    assert code_of(cluster.stub.Generate(greedy([20], 2, request_id="same"), metadata=shown(guarded.acme))) is (
        grpc.StatusCode.ALREADY_EXISTS
    )
    cancel(cluster, "same", guarded.acme)()
    assert acmes.ended() == sampling_pb2.FINISH_REASON_ABORT
    assert code_of(cancel(cluster, "same", guarded.acme)) is grpc.StatusCode.NOT_FOUND
    assert globexs.ended() == sampling_pb2.FINISH_REASON_LENGTH


def test_a_stranger_cannot_end_a_request_on_any_router_and_its_owner_can_on_every(guarded: Guarded) -> None:
    cluster = guarded.cluster
    stream = Stream(cluster, guarded.acme, "mine")
    with another_router(cluster, guarded.directory, {}, metadata=shown(guarded.operator)) as other:
        for router in (cluster, other):
            for request_id in ("mine", "acme/mine"):
                assert code_of(cancel(router, request_id, guarded.globex)) is grpc.StatusCode.NOT_FOUND
        before = len(stream.answer.token_ids)
        wait_until(lambda: len(stream.answer.token_ids) > before, "the stream to go on")
        cancel(other, "mine", guarded.acme)()
        assert stream.ended() == sampling_pb2.FINISH_REASON_ABORT
        again = Stream(cluster, guarded.globex, "theirs")
        cancel(other, "globex/theirs", guarded.operator)()
        assert again.ended() == sampling_pb2.FINISH_REASON_ABORT


def test_a_tenant_is_who_its_key_says_and_learns_nothing_of_workers(guarded: Guarded) -> None:
    stub: Any = guarded.cluster.stub
    request = greedy([20, 21], 2)
    request.tenant = "acme"
    metadata = shown(guarded.globex)
    assert code_of(stub.Generate(request, timeout=10, metadata=metadata)) is grpc.StatusCode.INVALID_ARGUMENT
    asked = inference_pb2.GetClusterStateRequest()
    state = stub.GetClusterState(asked, timeout=10, metadata=metadata).state
    assert {field.name for field, _ in state.ListFields()} == {"ready", "model"}
    seen = stub.GetClusterState(asked, timeout=10, metadata=shown(guarded.operator)).state
    assert len(seen.workers) == 2
    request.tenant = ""
    answers = list(stub.Generate(request, timeout=30, metadata=metadata))
    assert "decode-0" not in str(answers)
    assert code_of(stub.Generate(request, timeout=10, metadata=shown(guarded.operator))) is (
        grpc.StatusCode.PERMISSION_DENIED
    )


def test_keys_change_without_a_restart_and_a_broken_file_changes_nothing(guarded: Guarded) -> None:
    stub: Any = guarded.cluster.stub
    asked = inference_pb2.GetClusterStateRequest()
    new = make_key("acme", frozenset({Role.CLIENT}), "new")

    def served(key: Key) -> bool:
        try:
            stub.GetClusterState(asked, timeout=10, metadata=shown(key))
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
        return True

    assert not served(new)
    guarded.write(new)
    wait_until(lambda: served(new), "the new key is taken")
    (guarded.directory / "keys.json").write_text("{")
    log = guarded.cluster.launcher.settings.launcher.run_dir / "router.log"
    wait_until(lambda: "the keys read before stay valid" in log.read_text(), "the router has seen the broken file")
    assert served(new)
    assert served(guarded.acme)
    guarded.write()
    wait_until(lambda: not served(new), "the key is refused")
    assert served(guarded.acme)
    assert new[0] not in log.read_text()


def test_all_keys_of_a_tenant_share_its_quota_and_no_other_name_evades_it(guarded: Guarded) -> None:
    stub: Any = guarded.cluster.stub
    keys = [make_key("hooli", frozenset({Role.CLIENT}), f"key {number}") for number in range(2)]
    guarded.write(*keys)

    def code(key: Key, tenant: str = "") -> grpc.StatusCode:
        request = greedy([20, 21], 2)
        request.tenant = tenant
        call = stub.Generate(request, timeout=60, metadata=shown(key))
        with contextlib.suppress(grpc.RpcError):
            list(call)
        found: grpc.StatusCode = call.code()
        return found

    wait_until(lambda: code(keys[0]) is not grpc.StatusCode.UNAUTHENTICATED, "the keys are taken")
    told = [code(keys[number % 2]) for number in range(4)]
    assert told == [grpc.StatusCode.OK] * 2 + [grpc.StatusCode.RESOURCE_EXHAUSTED] * 2
    assert code(keys[0], tenant="somebody-else") is grpc.StatusCode.INVALID_ARGUMENT
    assert code(guarded.acme) is grpc.StatusCode.OK
    guarded.write()

"""Certificates and keys that the configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.config.cluster_tls import TlsSettings
from services.config.settings import GatewaySettings, RouterSettings
from services.config.tls import TlsError, check_gateway, client_tls, cluster_tls, process_id, server_tls
from services.identity.peer import PeerRole
from services.rpc.tls import ServerTls
from tests.support.certificates import authority
from tests.support.cluster_certificates import ClusterCertificates


def test_doors_are_open_unless_told_otherwise() -> None:
    assert server_tls(RouterSettings()) is None
    assert client_tls(RouterSettings()) is None
    check_gateway(GatewaySettings())


def test_what_is_shown_and_whom_is_trusted(tmp_path: Path) -> None:
    ours = authority(tmp_path, "ours")
    certificate, key = ours.sign("router")
    options = RouterSettings(tls_certificate=certificate, tls_key=key, tls_client_ca=ours.file, tls_trust=ours.file)
    shown = server_tls(options)
    assert isinstance(shown, ServerTls)
    assert (shown.certificate, shown.key) == (certificate.read_bytes(), key.read_bytes())
    assert shown.client_ca == ours.file.read_bytes()
    called = client_tls(options)
    assert called is not None
    assert called.root_certificates == ours.file.read_bytes()
    assert called.certificate_chain is None
    assert client_tls(RouterSettings(tls_certificate=certificate, tls_key=key)) is not None, "it trusts the machine's"
    certificate, key = ours.sign("gateway")
    called = client_tls(options, GatewaySettings(tls_certificate=certificate, tls_key=key))
    assert called is not None
    assert called.certificate_chain == certificate.read_bytes()


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    ours = authority(tmp_path, "ours")
    certificate, key = ours.sign("router")
    torn = tmp_path / "torn.pem"
    torn.write_text("no PEM")
    cases = [
        (RouterSettings(tls_certificate=certificate), "belong together"),
        (RouterSettings(tls_key=key), "belong together"),
        (RouterSettings(tls_certificate=tmp_path / "none.pem", tls_key=key), "router.tls_certificate: .*No such file"),
        (RouterSettings(tls_certificate=certificate, tls_key=torn), "router.tls_key: .*no PEM"),
        (RouterSettings(tls_client_ca=ours.file), "router.tls_client_ca"),
    ]
    for options, said in cases:
        with pytest.raises(TlsError, match=said):
            server_tls(options)
    with pytest.raises(TlsError, match=r"gateway\.tls_certificate and gateway\.tls_key"):
        check_gateway(GatewaySettings(tls_key=key))
    with pytest.raises(TlsError, match=r"router\.tls_trust"):
        client_tls(RouterSettings(tls_trust=torn))


def test_a_router_shows_the_certificate_of_the_cluster_unless_it_has_one_for_clients(tmp_path: Path) -> None:
    ours = ClusterCertificates.create(tmp_path / "blue")
    cluster = ours.tls(PeerRole.ROUTER, "r1")
    assert server_tls(RouterSettings(), cluster) is cluster
    certificate, key = authority(tmp_path, "public").sign("router")
    public = RouterSettings(tls_certificate=certificate, tls_key=key)
    assert isinstance(server_tls(public, cluster), ServerTls)
    called = client_tls(RouterSettings(), cluster=ours.tls(PeerRole.GATEWAY))
    assert called is not None
    assert called.server_name == "router.blue.slos-serve.internal"
    assert called.root_certificates == ours.authority.file.read_bytes()
    assert called.certificate_chain is not None
    called = client_tls(public, cluster=ours.tls(PeerRole.GATEWAY))
    assert called is not None
    assert (called.server_name, called.certificate_chain) == ("", None)


def test_a_process_goes_by_the_id_of_its_certificate(tmp_path: Path) -> None:
    ours = ClusterCertificates.create(tmp_path / "blue")
    bound, unbound = ours.tls(PeerRole.ROUTER, "r1"), ours.tls(PeerRole.ROUTER)
    default = "router-Node_7.example.org-123"
    assert process_id(None, "router.id", "", default) == default
    assert process_id(None, "router.id", "Any Name", default) == "Any Name"
    assert process_id(bound, "router.id", "", default) == "r1"
    assert process_id(bound, "router.id", "r1-1", default) == "r1-1"
    assert process_id(unbound, "router.id", "", default) == "router-node-7-example-org-123"
    assert len(process_id(unbound, "router.id", "", "x" * 200 + "-9")) == 63
    with pytest.raises(TlsError, match=r"router\.id is r2, and tls\.certificate is that of router r1"):
        process_id(bound, "router.id", "r2", default)
    with pytest.raises(TlsError, match=r"router\.id: 'R1' cannot stand in a certificate"):
        process_id(unbound, "router.id", "R1", default)


def test_a_cluster_certificate_is_whole_and_of_the_role(tmp_path: Path) -> None:
    ours = ClusterCertificates.create(tmp_path / "blue")
    issued = ours.issue(PeerRole.OPERATOR)
    whole = {"ca": ours.authority.file, "certificate": issued.path, "key": issued.key}
    assert cluster_tls(TlsSettings(), PeerRole.ROUTER) is None
    assert cluster_tls(TlsSettings.model_validate(whole), PeerRole.CLIENT, PeerRole.OPERATOR) is not None
    with pytest.raises(TlsError, match="any operator of cluster blue; wanted is one of role router"):
        cluster_tls(TlsSettings.model_validate(whole), PeerRole.ROUTER)
    for missing in whole:
        options = {name: path for name, path in whole.items() if name != missing}
        with pytest.raises(TlsError, match=rf"belong together; missing: tls\.{missing}"):
            cluster_tls(TlsSettings.model_validate(options), PeerRole.OPERATOR)

"""Certificates and keys that the configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.config.settings import GatewaySettings, RouterSettings
from services.config.tls import TlsError, check_gateway, client_tls, server_tls
from services.rpc.tls import ServerTls
from tests.support.certificates import authority


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

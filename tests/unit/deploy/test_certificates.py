"""The development authority: what it signs, how it lies on disk, and what renewing keeps."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from cli.certs import app
from deploy.certificates import CLOCK_SKEW, Authority, AuthorityError
from services.identity.certificates import CertificateError, ProcessCertificate, check_key, check_signed
from services.identity.peer import PeerIdentity, PeerIdentityError, PeerRole

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2026, 5, 4, 12, 0, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
WORKER = PeerIdentity("blue", PeerRole.WORKER, "prefill-0")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "blue", 100 * DAY, NOW)


def test_a_certificate_states_identity_and_hosts(authority: Authority) -> None:
    issued = authority.issue(WORKER, ["10.0.0.7", "::1", "node7.example.org"], 3 * DAY, NOW)
    read = ProcessCertificate.from_pem(issued.path.read_bytes())
    assert read == issued.certificate
    assert (read.identity, read.not_before, read.not_after) == (WORKER, NOW - CLOCK_SKEW, NOW + 3 * DAY)
    assert read.remaining_s(NOW + DAY) == (2 * DAY).total_seconds()
    assert issued.hosts == ("node7.example.org", "10.0.0.7", "::1")
    check_key(issued.path.read_bytes(), issued.key.read_bytes())
    check_signed(issued.path.read_bytes(), authority.file.read_bytes())


def test_only_the_owner_reads_the_files(authority: Authority) -> None:
    authority.issue(WORKER, [], DAY, NOW)
    files = list(authority.directory.iterdir())
    assert {file.name for file in files} == {"ca.pem", "ca.key", "worker-prefill-0.pem", "worker-prefill-0.key"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert authority.directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("role", "serves", "calls"),
    [(PeerRole.WORKER, True, True), (PeerRole.REDIS, True, False), (PeerRole.CLIENT, False, True)],
)
def test_a_certificate_is_good_for_what_its_role_does(
    authority: Authority, role: PeerRole, serves: bool, calls: bool
) -> None:
    leaf = x509.load_pem_x509_certificate(authority.issue(PeerIdentity("blue", role), [], DAY, NOW).path.read_bytes())
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert (ExtendedKeyUsageOID.SERVER_AUTH in usage) == serves
    assert (ExtendedKeyUsageOID.CLIENT_AUTH in usage) == calls
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_renewing_keeps_identity_hosts_and_lifetime_and_changes_the_key(authority: Authority) -> None:
    old = authority.issue(WORKER, ["10.0.0.7"], 3 * DAY, NOW)
    old_key = old.key.read_bytes()
    (new,) = Authority.read(authority.directory).renew(None, NOW + DAY)
    assert (new.path, new.hosts, new.certificate.identity) == (old.path, old.hosts, WORKER)
    assert new.certificate.not_after == NOW + 4 * DAY
    assert new.key.read_bytes() != old_key
    check_key(new.path.read_bytes(), new.key.read_bytes())
    (longer,) = authority.renew(5 * DAY, NOW + DAY)
    assert longer.certificate.not_after == NOW + 6 * DAY


def test_nothing_outlives_its_authority(authority: Authority) -> None:
    issued = authority.issue(WORKER, [], 1000 * DAY, NOW)
    assert issued.certificate.not_after == NOW + 100 * DAY
    with pytest.raises(AuthorityError, match="has expired"):
        authority.renew(None, NOW + 100 * DAY)


@pytest.mark.parametrize(
    "host", ["a b", "", "-x", "x..y", "w1.worker.blue.slos-serve.internal", "*.worker.blue.SLOS-serve.internal"]
)
def test_no_host_may_have_the_name_of_a_process(authority: Authority, host: str) -> None:
    with pytest.raises(AuthorityError, match="neither an address nor a DNS name"):
        authority.issue(WORKER, [host], DAY, NOW)


def test_an_authority_is_made_once_and_found_again(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AuthorityError, match="holds an authority already"):
        Authority.create(authority.directory, "blue", DAY, NOW)
    assert Authority.read(authority.directory).cluster == "blue"
    with pytest.raises(AuthorityError, match="holds no authority"):
        Authority.read(tmp_path / "nothing")
    with pytest.raises(PeerIdentityError, match="no DNS label"):
        Authority.create(tmp_path / "other", "Blue Cluster", DAY, NOW)
    (authority.directory / "stray.pem").write_text("no PEM")
    with pytest.raises(AuthorityError, match=r"stray\.pem is no certificate"):
        list(authority.issued())


def test_a_key_of_another_and_the_signature_of_another_are_told_apart(authority: Authority, tmp_path: Path) -> None:
    first = authority.issue(WORKER, [], DAY, NOW)
    second = authority.issue(PeerIdentity("blue", PeerRole.ROUTER), [], DAY, NOW)
    other = Authority.create(tmp_path / "other", "blue", DAY, NOW)
    chain = first.path.read_bytes()
    with pytest.raises(CertificateError, match="not the key of the certificate"):
        check_key(chain, second.key.read_bytes())
    with pytest.raises(CertificateError, match="no private key"):
        check_key(chain, chain)
    with pytest.raises(CertificateError, match="none of the authorities"):
        check_signed(chain, other.file.read_bytes())
    check_signed(chain, other.file.read_bytes() + authority.file.read_bytes())
    with pytest.raises(CertificateError, match="no certificate in PEM"):
        ProcessCertificate.from_pem(first.key.read_bytes())


def test_the_command_makes_adds_renews_and_shows(tmp_path: Path) -> None:
    run, directory = CliRunner().invoke, str(tmp_path / "certs")
    made = run(app, ["create", directory, "--cluster", "blue", "router", "worker/prefill-0", "--host", "10.0.0.7"])
    assert made.exit_code == 0, made.output
    assert run(app, ["add", directory, "operator/ann"]).exit_code == 0
    before = (tmp_path / "certs" / "router.pem").read_bytes()
    assert run(app, ["renew", directory, "--days", "3"]).exit_code == 0
    assert (tmp_path / "certs" / "router.pem").read_bytes() != before
    shown = run(app, ["show", directory]).output.splitlines()
    assert [line.partition("  ")[2].partition(",")[0] for line in shown] == [
        "authority of cluster blue",
        "operator ann of cluster blue",
        "any router of cluster blue",
        "worker prefill-0 of cluster blue",
    ]
    assert all("3.0 days" in line for line in shown[1:])
    for wrong in ("boss", "router/", "router/R1", "/x", "worker/a.b"):
        refused = run(app, ["add", directory, wrong])
        assert refused.exit_code == 1, wrong
    assert run(app, ["create", directory]).exit_code == 1

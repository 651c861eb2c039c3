"""Credentials in files that are replaced while a process runs."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.identity.certificate_files import CertificateFileError, WatchedCredentials
from services.identity.peer import PeerIdentity, PeerRole
from tests.support.cluster_certificates import LIFETIME, ClusterCertificates

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    def __init__(self) -> None:
        self.now = dt.datetime.now(dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now


@pytest.fixture
def ours(tmp_path: Path) -> ClusterCertificates:
    return ClusterCertificates.create(tmp_path / "ours")


def watched(ours: ClusterCertificates, clock: Clock) -> WatchedCredentials:
    return WatchedCredentials(ours.files(ours.issue(PeerRole.WORKER, "w1")), clock)


def test_the_end_of_a_certificate_is_announced_in_its_last_fifth(ours: ClusterCertificates) -> None:
    clock = Clock()
    credentials = watched(ours, clock)
    begun = clock.now
    clock.now = begun + 0.75 * LIFETIME
    assert credentials.warning() == ""
    clock.now = begun + 0.85 * LIFETIME
    assert "tls.certificate expires at" in credentials.warning()
    clock.now = begun + 1.1 * LIFETIME
    assert "tls.certificate expired at" in credentials.warning()


def test_a_replaced_certificate_is_read_and_that_of_another_is_not(
    ours: ClusterCertificates, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    credentials = watched(ours, clock)
    first, files = credentials.current(), credentials.files
    assert credentials.current() is first, "nothing has changed"

    other = ours.issue(PeerRole.WORKER, "w2")
    files.chain.write_bytes(other.path.read_bytes())
    files.key.write_bytes(other.key.read_bytes())
    assert credentials.current() is first
    assert "that of worker w2 of cluster blue, and this process is worker w1" in credentials.warning()
    credentials.current()
    assert caplog.text.count("the certificate that is in use stays") == 1

    ours.issue(PeerRole.WORKER, "w1")
    renewed = credentials.current()
    assert renewed.key != first.key
    assert renewed.identity == PeerIdentity("blue", PeerRole.WORKER, "w1")
    assert credentials.warning() == ""


def test_files_that_are_gone_for_a_moment_change_nothing(ours: ClusterCertificates) -> None:
    credentials = watched(ours, Clock())
    first, path = credentials.current(), credentials.files.chain
    content = path.read_bytes()
    path.unlink()
    assert credentials.current() is first
    assert "tls.certificate" in credentials.warning()
    path.write_bytes(content)
    assert credentials.current().chain == first.chain
    assert credentials.warning() == ""


@pytest.mark.timeout(60)
def test_a_pipe_in_place_of_a_certificate_holds_no_handshake(ours: ClusterCertificates) -> None:
    credentials = watched(ours, Clock())
    before = credentials.current()
    credentials.files.chain.unlink()
    os.mkfifo(credentials.files.chain)
    assert credentials.current() is before
    assert "no regular file" in credentials.warning()


def test_what_cannot_be_used_at_the_start_names_its_option(ours: ClusterCertificates, tmp_path: Path) -> None:
    clock = Clock()
    issued = ours.issue(PeerRole.WORKER, "w1")
    stranger = ClusterCertificates.create(tmp_path / "foreign").issue(PeerRole.WORKER, "w1")
    good = ours.files(issued)
    plain = tmp_path / "plain.pem"
    plain.write_text("no PEM")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"authorities": tmp_path / "none.pem"}, r"tls\.ca: .*none\.pem: No such file"),
        ({"authorities": plain}, r"tls\.certificate: .*no certificate in PEM .*tls\.ca"),
        ({"chain": plain}, r"tls\.certificate: .*no certificate in PEM"),
        ({"chain": ours.authority.file}, r"tls\.certificate: .*has one URI, not 0"),
        ({"key": plain}, r"tls\.key: .*no private key"),
        ({"key": stranger.key}, r"tls\.key: .*not the key of the certificate"),
        ({"chain": stranger.path, "key": stranger.key}, r"tls\.certificate: .*none of the authorities"),
    ]
    for change, said in cases:
        files = replace(good, **change)
        with pytest.raises(CertificateFileError, match=said):
            files.read(clock.now)
    with pytest.raises(CertificateFileError, match=r"tls\.certificate: .*it expired at"):
        good.read(clock.now + 2 * LIFETIME)
    with pytest.raises(CertificateFileError, match="not valid before"):
        good.read(clock.now - LIFETIME)

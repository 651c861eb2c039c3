"""The ports of a local cluster: checked before it starts, and told from those of others."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import psutil
import pytest

from deploy.local.errors import ClusterStartError
from deploy.local.ports import check_ports, free_port, is_served_by
from deploy.local.processes import RunningProcess
from services.config.settings import (
    GatewaySettings,
    LauncherSettings,
    RouterSettings,
    Settings,
    WorkerSettings,
)
from services.telemetry.settings import TelemetrySettings

OURSELVES = RunningProcess("router", os.getpid(), psutil.Process().create_time(), "")
LISTEN = """
import socket, sys
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
sys.stdin.read()
"""


def quiet() -> TelemetrySettings:
    return TelemetrySettings(metrics=False)


def test_an_address_in_use_is_named_with_its_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken: list[tuple[str, Settings]] = [
            ("router.port", Settings(router=RouterSettings(port=port), telemetry=quiet())),
            (
                "gateway.port",
                Settings(
                    router=RouterSettings(port=0),
                    gateway=GatewaySettings(port=port),
                    launcher=LauncherSettings(gateway=True),
                    telemetry=quiet(),
                ),
            ),
            (
                "decode_worker.port",
                Settings(router=RouterSettings(port=0), decode_worker=WorkerSettings(port=port), telemetry=quiet()),
            ),
            (
                "telemetry.metrics_port",
                Settings(router=RouterSettings(port=0), telemetry=TelemetrySettings(metrics_port=port)),
            ),
        ]
        for option, settings in taken:
            with pytest.raises(ClusterStartError, match=rf"^{option}: cannot listen on 127\.0\.0\.1:{port}: .*in use"):
                check_ports(settings)
    check_ports(Settings(router=RouterSettings(port=port), telemetry=quiet()))


def test_a_host_that_is_none_of_this_machine_is_named_with_its_option() -> None:
    settings = Settings(router=RouterSettings(host="192.0.2.1", port=0), telemetry=quiet())
    with pytest.raises(ClusterStartError, match=r"^router\.host: cannot listen on 192\.0\.2\.1:0: "):
        check_ports(settings)


def test_a_gateway_that_is_not_started_needs_no_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(
            router=RouterSettings(port=0), gateway=GatewaySettings(port=other.getsockname()[1]), telemetry=quiet()
        )
        check_ports(settings)


def test_a_port_belongs_to_who_listens_there_or_to_whose_child_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert is_served_by(OURSELVES, own.getsockname()[1])
    port = free_port()
    assert not is_served_by(OURSELVES, port)
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"listens\n"
        started = psutil.Process(child.pid).create_time()
        assert is_served_by(OURSELVES, port)
        assert is_served_by(RunningProcess("router", child.pid, started, ""), port)
        with socket.create_server(("127.0.0.1", 0)) as own:
            assert not is_served_by(RunningProcess("router", child.pid, started, ""), own.getsockname()[1])
    assert not is_served_by(RunningProcess("router", child.pid, started, ""), port), "it has ended"

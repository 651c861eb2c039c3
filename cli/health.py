"""The command `health`, which health checks of containers call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc


def health(
    address: Annotated[str, typer.Argument(help="host:port of a router or worker.")],
    service: Annotated[
        str, typer.Option(help="Full name of a service: is it ready? Empty: is the process alive?")
    ] = "",
    ca_file: Annotated[Path | None, typer.Option(help="PEM of whom to trust, of a server that uses TLS.")] = None,
    certificate_file: Annotated[
        Path | None, typer.Option(help="PEM of the certificate to show, to a server that asks for one.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="PEM of its private key.")] = None,
) -> None:
    """Exit with 0 if the server at ADDRESS is serving, else with 1."""
    if (certificate_file is None) != (key_file is None) or (ca_file is None and key_file is not None):
        raise typer.BadParameter("--certificate-file and --key-file belong together, and to --ca-file")
    with _channel(address, ca_file, certificate_file, key_file) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=3.0)
        except grpc.RpcError as error:
            typer.echo(f"{address}: {error.code().name} {error.details()}")
            raise typer.Exit(1) from error
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    typer.echo(f"{address}: {name}")
    raise typer.Exit(0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1)


def _channel(address: str, ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.Channel:
    if ca is None:
        return grpc.insecure_channel(address)
    shown = (None, None) if certificate is None or key is None else (key.read_bytes(), certificate.read_bytes())
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes(), *shown))

"""The command `explain`, which says what became of one request's promise, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.clusters import ConfigOption, console, fail
from cli.credential_options import ApiKeyFileOption, InsecureCredentialsOption
from cli.explain.asking import NoAnswerError, UnknownRequestError, ask_cluster, ask_console
from cli.explain.report import report
from cli.target import AddressOption, Target, find_target, router_tls
from cli.texts import NotTextError, checked_text
from services.config.load import ConfigurationError
from services.config.own_credential import own_credential

MOST_COLUMNS = 110
"""Columns that a timeline takes at most: beyond that it says nothing more."""


def explain(
    request_id: Annotated[
        str, typer.Argument(help="Id of the request; the verdict, the client's log and `top` have it.")
    ],
    address: AddressOption = None,
    config: ConfigOption = None,
    console_url: Annotated[
        str, typer.Option("--console", help="URL of a router's console. Default: the one that the router names.")
    ] = "",
    recording: Annotated[
        Path | None, typer.Option(help="Read it from this recording (`router.record`) instead of asking a router.")
    ] = None,
    api_key_file: ApiKeyFileOption = None,
    insecure_credentials: InsecureCredentialsOption = False,
) -> None:
    """Say what was promised to one request, where its time went, and who was in the steps that made it late.

    Exits with 1 if nobody knows the request, or if nobody can be asked.
    """
    try:
        checked_text(request_id, "REQUEST_ID")
        if recording is not None:
            _explain_recorded(recording, request_id)
            return
        if console_url:
            router = Target("", router_tls(config), own_credential(api_key_file), insecure_credentials)
            document = ask_console(console_url, request_id, router)
        else:
            router = find_target(address, config, api_key_file, insecure_credentials=insecure_credentials)
            document = ask_cluster(router, request_id)
    except (ConfigurationError, NoAnswerError, NotTextError, UnknownRequestError) as error:
        fail(error)
    for line in report(document, min(console.width, MOST_COLUMNS)):
        console.print(line, markup=False, soft_wrap=True)


def _explain_recorded(directory: Path, request_id: str) -> None:
    from cli.replay import recorded_lines
    from router.admission.record_files import RecordError

    try:
        for line in recorded_lines(directory, request_id):
            console.print(line, markup=False, soft_wrap=True)
    except RecordError as error:
        fail(error)

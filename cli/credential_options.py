"""The options of commands that say who asks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.config.environment import API_KEY_VARIABLE

ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(help=f"File with the API key or token to send. Default: the variable {API_KEY_VARIABLE}."),
]
InsecureCredentialsOption = Annotated[
    bool, typer.Option("--insecure-credentials", help="Send it to routers on other machines even without TLS.")
]

"""The authenticator that a configuration describes."""

from __future__ import annotations

import time
from pathlib import Path

from services.audit import HOST, EventKind, Outcome, note
from services.config.auth import AuthSettings
from services.config.settings import Settings
from services.identity.authenticator import Authenticator, KeySource
from services.identity.jwks import MIN_FETCH_INTERVAL_S, REFRESH_S, Jwks
from services.identity.key_file import KeyFile
from services.identity.tokens import TokenRules, TokenVerifier
from services.state.api_keys import ApiKeyCache, ApiKeyStore
from services.state.connection import StateConnection


def authenticator(settings: Settings, state: StateConnection | None) -> Authenticator | None:
    """Return who checks credentials; None: they are not checked. Whoever gets one keeps it up to date by `run`.

    Args:
        state: the process's connection to Redis; None only where no keys are kept in Redis.

    Raises:
        KeyFileError: the file of keys cannot be read, or is no such file.
    """
    auth = settings.auth
    if not auth.on:
        return None
    sources: list[KeySource] = []
    if auth.keys_file is not None:
        sources.append(KeyFile(auth.keys_file.expanduser(), read_again=_audit_keys))
    if auth.keys_in_redis:
        assert state is not None
        sources.append(ApiKeyCache(ApiKeyStore(state, settings.redis.prefix), auth.keys_grace_s))
    return Authenticator(sources, _tokens(auth), time.time)


def _audit_keys(path: Path, fault: str) -> None:
    outcome = Outcome.FAILED if fault else Outcome.DONE
    note(EventKind.KEY, outcome, str(path), who=HOST, detail=fault or "read again")


def _tokens(auth: AuthSettings) -> TokenVerifier | None:
    if not auth.jwt_jwks:
        return None
    if "://" in auth.jwt_jwks:
        source, refresh_s = auth.jwt_jwks, REFRESH_S
    else:
        # Reading a file costs nothing.
        source, refresh_s = str(Path(auth.jwt_jwks).expanduser()), MIN_FETCH_INTERVAL_S
    rules = TokenRules(
        issuer=auth.jwt_issuer,
        audience=auth.jwt_audience,
        algorithms=auth.jwt_algorithms,
        tenant_claim=auth.jwt_tenant_claim,
        roles_claim=auth.jwt_roles_claim,
        leeway_s=auth.jwt_leeway_s,
    )
    return TokenVerifier(rules, Jwks(source, refresh_s=refresh_s), time.time)

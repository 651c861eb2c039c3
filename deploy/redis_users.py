"""The passwords of a cluster's Redis users, in files, and the access control lists that go with them."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from services.state.acl import NOBODY, RedisRole, acl_line

PASSWORD_BYTES = 32
"""Number of random bytes in a password that is made here."""


def password_file(directory: Path, role: RedisRole) -> Path:
    """Return where the password of a role is kept."""
    return directory / f"{role}.password"


def acl_lines(prefix: str, directory: Path) -> tuple[str, ...]:
    """Return the lines that define every user of a cluster and keep everybody else out.

    Passwords that are not in the directory yet are made and written there, readable by this user alone.

    Raises:
        OSError: the directory cannot be made, read or written.
        AclError: the prefix cannot be written into an ACL.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return (NOBODY, *(acl_line(prefix, role, _password(password_file(directory, role))) for role in RedisRole))


def _password(file: Path) -> str:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_text().strip()
    with os.fdopen(descriptor, "w") as opened:
        password = secrets.token_urlsafe(PASSWORD_BYTES)
        opened.write(f"{password}\n")
    return password

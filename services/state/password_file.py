"""A password for Redis in a file, which may be replaced while processes run."""

from __future__ import annotations

from pathlib import Path

from redis.credentials import CredentialProvider

MAX_BYTES = 4096
"""Bytes of a file with a password at most: a longer one holds something else."""


class PasswordFileError(OSError):
    """The file cannot be read or holds no password; the message names the file and shows nothing of it."""


class PasswordFile(CredentialProvider):
    """Tells each new connection user and password as they are in the file then."""

    def __init__(self, username: str, file: Path) -> None:
        self._username = username
        self._file = file

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return the password, and before it the name of the user if there is one.

        Raises:
            PasswordFileError
        """
        try:
            with self._file.open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
        except OSError as error:
            raise PasswordFileError(f"redis.password_file: {self._file}: {error.strerror or error}") from error
        try:
            password = content.decode().strip()
        except UnicodeDecodeError:
            password = ""
        if not password or len(content) > MAX_BYTES or "\n" in password:
            raise PasswordFileError(f"redis.password_file: {self._file}: one line with a password is wanted")
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """See `get_credentials`. The file is short and local, so that no thread is worth it."""
        return self.get_credentials()

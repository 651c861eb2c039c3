"""Logging of a process, and its audit log, as the configuration says."""

from __future__ import annotations

from services import audit
from services.config.settings import LogSettings
from services.telemetry import logs

MEBIBYTE = 1024 * 1024


def configure_logging(options: LogSettings, process: str) -> None:
    """Send logs and audit log where the options say, under the name of this process. A later call replaces the earlier.

    Raises:
        AuditFileError: the file of the audit log cannot be opened.
    """
    logs.configure(options.level, process, options.format)
    audit.configure(process, options.audit, options.audit_mebibytes * MEBIBYTE)

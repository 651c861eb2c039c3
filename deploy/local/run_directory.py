"""The run directory of a local cluster: what runs from there, so that later commands find it."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from deploy.local import processes
from deploy.local.errors import RunDirectoryError
from deploy.local.processes import RunningProcess
from services.config.settings import LauncherSettings
from services.network.credentials import without_credentials

STATE_FILE = "cluster.json"
TARGETS_FILE = "prometheus-targets.json"
"""File in the run directory that tells a Prometheus on this machine (`file_sd_configs`) what to scrape."""
STOP_GRACE_S = 15.0


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """The processes of a running cluster, as written to the run directory."""

    router_address: str
    redis_url: str
    """URL of Redis; without its password once it was read from a run directory."""
    processes: tuple[RunningProcess, ...]
    gateway_address: str = ""
    """Address of the gateway as host:port; empty if none was started."""
    metrics: dict[str, str] = field(default_factory=dict)
    """Addresses of the metrics of each process as host:port, by the name of the process."""
    certificates: str = ""
    """Directory of the cluster's certificates; empty if its processes talk unencrypted."""

    def stop(self, report: Callable[[str], None]) -> None:
        """Stop all processes: gateway and router first, so that no requests come; Redis last, as workers deregister."""
        for prefix in ("gateway", "router", "prefill", "decode", "redis"):
            group = [process for process in self.processes if process.name.startswith(prefix)]
            if group:
                report(f"stopping {', '.join(process.name for process in group)}")
                processes.stop(group, STOP_GRACE_S, report)


def run_directory(launcher: LauncherSettings) -> Path:
    """Return the configured run directory as an absolute path.

    Raises:
        RunDirectoryError: it begins with `~`, and this user has no home.
    """
    try:
        return launcher.run_dir.expanduser().resolve()
    except RuntimeError as error:
        raise RunDirectoryError(f"launcher.run_dir {launcher.run_dir}: {error}") from error


def is_default(run_dir: Path) -> bool:
    """Return whether commands look into this run directory unless they are told otherwise."""
    return run_dir == LauncherSettings().run_dir.resolve()


def stop_command(run_dir: Path) -> str:
    """Return the command that stops the cluster of this run directory, to be typed in this shell."""
    if is_default(run_dir):
        return "slos-serve down"
    return f"slos-serve down --run-dir {shlex.quote(str(run_dir))}"


def read_state(run_dir: Path) -> RunningCluster | None:
    """Read which cluster runs from a run directory; None if none does.

    Raises:
        RunDirectoryError: the directory cannot be read, or its state is not what `write_state` writes.
    """
    file = run_dir / STATE_FILE
    try:
        content = json.loads(file.read_bytes())
        recorded = [RunningProcess(**process) for process in content["processes"]]
        live = tuple(process for process in recorded if process.process() is not None)
        cluster = RunningCluster(
            content["router_address"],
            content["redis_url"],
            live,
            gateway_address=content.get("gateway_address", ""),
            metrics=content.get("metrics", {}),
            certificates=content.get("certificates", ""),
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunDirectoryError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirectoryError(
            f"{file} is not what `slos-serve up` writes; if no cluster runs from there, remove it"
        ) from error
    return cluster if live else None


def write_state(run_dir: Path, cluster: RunningCluster) -> None:
    """Write which cluster runs from a run directory, which is made if it is missing.

    Raises:
        RunDirectoryError: it cannot be written.
    """
    shown = replace(cluster, redis_url=without_credentials(cluster.redis_url))
    targets = [{"targets": [address], "labels": {"process": name}} for name, address in cluster.metrics.items()]
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        _replace(run_dir / STATE_FILE, json.dumps(asdict(shown), indent=2))
        _replace(run_dir / TARGETS_FILE, json.dumps(targets, indent=2), mode=0o644)
    except OSError as error:
        raise RunDirectoryError(
            f"launcher.run_dir {run_dir} cannot be written: {error.strerror}; name another one, for example with "
            "SLOS_SERVE_LAUNCHER__RUN_DIR"
        ) from error


def forget_state(run_dir: Path) -> None:
    """Remove what `write_state` wrote."""
    for file in (STATE_FILE, TARGETS_FILE):
        (run_dir / file).unlink(missing_ok=True)


def _replace(file: Path, content: str, mode: int = 0o600) -> None:
    """Write a file at once or not at all, so that nobody ever reads half of it."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as half:
            half.write(content)
            os.fchmod(half.fileno(), mode)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

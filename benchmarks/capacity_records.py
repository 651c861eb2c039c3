"""What `bench capacity` found: as records of a file, and kept piece by piece so that a run can go on where it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.code_digest import code_digest
from simulator.experiments import CapacityRecord, RateRecord
from simulator.policies.catalogue import OURS, OURS_TUNED
from simulator.report import NOTE

Settings = Mapping[str, object]
"""What records depend on, in terms of JSON; `CODE` among them says by which code they were made."""
CODE = "code"
"""Digests of code by policy and experiment: see `code_of`."""
RUN_BY = {
    "qoserve": ("simulator.policies.qoserve",),
    "slos-serve-paper": ("simulator.policies.slos_serve",),
    "clairvoyant-bound": (),
    "ablation": ("simulator.policies.promising",),
    "sensitivity": ("simulator.policies.promising",),
    "scaling": ("simulator.policies.promising", "simulator.policies.slos_serve"),
    **dict.fromkeys((*OURS, OURS_TUNED), ("simulator.policies.promising",)),
}
"""Modules that make a policy or an experiment; of those that are not here, `FCFS`."""
FCFS = ("simulator.policies.fcfs",)
EVERYWHERE = ("simulator.capacity", "simulator.scenarios")
CATALOGUE = "simulator.policies.catalogue"
"""It knows every policy; what it says of one is its variants, which are written down by name."""


def code_of(what: str) -> str:
    """Digest of the code that a record of this policy or experiment depends on, and of no other policy's."""
    return code_digest([*EVERYWHERE, *RUN_BY.get(what, FCFS)], {CATALOGUE})


def codes_of(names: Iterable[str]) -> dict[str, str]:
    return {name: code_of(name) for name in names}


class RecordsError(Exception):
    """A file holds no records of this benchmark; the message names it."""


@dataclass(slots=True)
class Found:
    """Records of all kinds."""

    capacities: list[CapacityRecord] = field(default_factory=list)
    rates: list[RateRecord] = field(default_factory=list)
    changes: dict[str, list[RateRecord]] = field(default_factory=dict)
    """Rates measured for each experiment."""
    cpu_ms: dict[RateRecord, float] = field(default_factory=dict)
    """What a request took to simulate, where that was measured."""

    def add(self, other: Found) -> None:
        self.capacities += other.capacities
        self.rates += other.rates
        for experiment, changes in other.changes.items():
            self.changes.setdefault(experiment, []).extend(changes)
        self.cpu_ms |= other.cpu_ms

    def rows(self) -> list[dict[str, Any]]:
        rows = [*map(asdict, self.capacities), *map(asdict, self.rates)]
        for experiment, changes in self.changes.items():
            for record in changes:
                cost = {"cpu_ms": self.cpu_ms[record]} if record in self.cpu_ms else {}
                rows.append({"experiment": experiment, **asdict(record), **cost})
        return rows

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Found:
        """
        Raises:
            TypeError, KeyError, ValueError: these are no such rows.
        """
        found = cls()
        for row in rows:
            values = dict(row)
            experiment, cpu_ms = values.pop("experiment", None), values.pop("cpu_ms", None)
            if "rate" not in values:
                found.capacities.append(CapacityRecord(**values))
                continue
            record = RateRecord(**values)
            if experiment is None:
                found.rates.append(record)
            else:
                found.changes.setdefault(experiment, []).append(record)
            if cpu_ms is not None:
                found.cpu_ms[record] = float(cpu_ms)
        return found


def write(found: Found, path: Path, settings: Settings) -> None:
    text = json.dumps({"note": NOTE, "settings": settings, "records": found.rows()}, indent=1)
    # A file is there in full or not at all: a run may be stopped at any time.
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def read(path: Path) -> tuple[Found, Settings]:
    """
    Raises:
        RecordsError: the file holds no such records.
        OSError: it cannot be read.
    """
    try:
        whole = json.loads(path.read_text())
        return Found.of(whole["records"]), dict(whole["settings"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordsError(f"{path}: no records of this benchmark ({error!r})") from error


def files_of(paths: Sequence[Path]) -> list[Path]:
    """A directory stands for all its records."""
    return [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]


@dataclass(frozen=True, slots=True)
class Kept:
    """A directory in which pieces lie; without one, nothing is kept."""

    directory: Path | None
    settings: Settings

    def piece(self, where: str, what: str, make: Callable[[], Found], **more: object) -> Found:
        """What was found before with the same settings by the same code, else made and kept.

        Args:
            what: the policy or experiment; `where` tells its records from those of others.
            more: settings of it alone.
        """
        if self.directory is None:
            return make()
        path = self.directory / f"{where}-{what}.json"
        wanted = {**self.settings, **more, CODE: codes_of([what])}
        if path.exists():
            found, settings = read(path)
            if settings == wanted:
                return found
        found = make()
        self.directory.mkdir(parents=True, exist_ok=True)
        write(found, path, wanted)
        return found


def made_by_other_code(found: Found, settings: Settings) -> list[str]:
    """Policies and experiments of a kept piece that the present code might give other figures for.

    Of records that do not say by which code they were made, all.
    """
    policies = {*(record.policy for record in found.capacities), *(record.policy for record in found.rates)}
    codes = settings.get(CODE)
    known = codes if isinstance(codes, Mapping) else {}
    return sorted(what for what in (*policies, *found.changes) if known.get(what) != code_of(what))

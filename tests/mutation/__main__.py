"""`make mutants`: change the code in small ways, one at a time, and list the changes that no unit test notices."""

from __future__ import annotations

import argparse
import sys

from tests.mutation.areas import load_areas
from tests.mutation.listed import Verdict, load_changes, run_changes
from tests.mutation.session import AreaResult, run_area
from tests.mutation.tree import ROOT, copied_tree


def _share(result: AreaResult) -> str:
    return f"{result.noticed / result.tried:.0%}" if result.tried else ""


def table(results: list[AreaResult]) -> str:
    """Return the results as Markdown: a row for each area, then what survived."""
    rows = ["| area | tried | noticed | |", "| --- | ---: | ---: | ---: |"]
    rows += [f"| {result.area} | {result.tried} | {result.noticed} | {_share(result)} |" for result in results]
    for result in results:
        for survivor in result.survivors:
            rows.append(f"\n{survivor.file}:{survivor.line}\n  - {survivor.removed}\n  + {survivor.added}")
    return "\n".join(rows)


def _sampled(names: list[str], *, seed: int, sample: int | None, again: bool) -> int:
    areas = load_areas(ROOT)
    results = []
    with copied_tree() as tree:
        for name in names or sorted(areas):
            last = None
            for last in run_area(areas[name], tree, seed=seed, sample=sample, again=again):
                print(f"\r{name}: {last.tried} of {last.chosen}, {last.noticed} noticed", end="", file=sys.stderr)
            print(file=sys.stderr)
            if last is not None:
                results.append(last)
    print(table(results))
    return 0


def _listed(pattern: str) -> int:
    unnoticed = 0
    with copied_tree() as tree:
        for change, verdict in run_changes(tree, load_changes(), pattern):
            unnoticed += verdict is not Verdict.NOTICED
            print(f"{verdict.value:<9} {change.name}", flush=True)
    return 1 if unnoticed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--listed", nargs="?", const="", metavar="PART", help="the changes of listed.toml, by name")
    parser.add_argument("--area", action="append", default=[], help="an area of areas.toml; all of them by default")
    parser.add_argument("--sample", type=int, help="how many changes are tried in each area; all of them by default")
    parser.add_argument("--seed", type=int, default=1, help="which changes a sample takes")
    parser.add_argument("--again", action="store_true", help="try once more what no test noticed last time")
    given = parser.parse_args()
    if given.listed is not None:
        return _listed(given.listed)
    return _sampled(given.area, seed=given.seed, sample=given.sample, again=given.again)


if __name__ == "__main__":
    sys.exit(main())

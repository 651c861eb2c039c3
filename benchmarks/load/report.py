"""Rates for people: tables, as Markdown or for a terminal, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.load.summary import RateRecord, Spread, Summary

Rows = Sequence[Sequence[str]]
_Titled = tuple[str, Sequence[str], Rows]

_KEPT = (
    "offered/s",
    "contract",
    "requests",
    "kept",
    "kept/s",
    "guaranteed kept",
    "best effort kept",
    "no promise",
    "refused",
    "errors",
    "unfinished",
)
_TIMES = ("offered/s", "contract", "TTFT", "TPOT mean", "TPOT every token", "ITL", "E2E", "tokens/s", "cached")


def tables(records: Sequence[RateRecord]) -> list[_Titled]:
    """Title, columns and rows of each."""
    made = f" ({note})" if (note := emulated_note(records)) else ""
    rows = [(record, summary) for record in records for summary in (record.overall, *record.by_ask)]
    shown: list[_Titled] = [
        (f"Contracts{made}", _KEPT, [_kept_row(record, summary) for record, summary in rows]),
        (f"Times at the client, ms: p50 / p90 / p99{made}", _TIMES, [_time_row(r, s) for r, s in rows]),
    ]
    phases = list(dict.fromkeys(name for record in records for name in record.overall.phases_s))
    if phases:
        cells = [
            [_rate(record), *(_spread(record.overall.phases_s.get(name, Spread(0))) for name in phases)]
            for record in records
        ]
        titles = ("offered/s", *(name.replace("_", " ") for name in phases))
        shown.append((f"Phases as the server tells them, ms: p50 / p90 / p99{made}", titles, cells))
    if any(record.overall.agreement.compared for record in records):
        shown.append(
            ("What the server says against what was measured", _AGREEMENT, [_agreement_row(r) for r in records])
        )
    shown.append(("The generator itself", _GENERATOR, [_generator_row(record) for record in records]))
    return shown


def emulated_note(records: Sequence[RateRecord]) -> str:
    return "emulated engines: times come from a model" if any(record.emulated for record in records) else ""


def rich_table(titled: _Titled) -> Table:
    title, columns, rows = titled
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "contract" else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(records: Sequence[RateRecord], heading: str) -> str:
    parts = [heading]
    for title, columns, rows in tables(records):
        aligned = "|".join("---" if column == "contract" else "---:" for column in columns)
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join([f"**{title}**", "", f"| {' | '.join(columns)} |", f"|{aligned}|", *lines]))
    return "\n\n".join(parts) + "\n"


def remarks(records: Sequence[RateRecord]) -> list[str]:
    """What a reader must know before believing a figure."""
    said = []
    for record in records:
        at = f"at {_rate(record)} requests/s"
        if record.generator.saturated:
            lag_ms = 1e3 * (record.generator.lag_s.p99 or 0.0)
            said.append(
                f"{at} the generator itself was at its limit ({record.generator.cpu_cores:.2f} cores, "
                f"lag p99 {lag_ms:.1f} ms): the times are its as much as the server's"
            )
        for counts, what in ((record.overall.refused, "refused"), (record.overall.errors, "failed")):
            if counts:
                said.append(f"{at} {what}: {_counted(counts)}")
        if record.cut_short:
            said.append(f"{at} stopped early; requests then under way are left out")
        if record.clipped_prompts:
            said.append(f"{at} {record.clipped_prompts} prompts were cut to the longest allowed")
        if record.overall.hidden_tokens:
            said.append(f"{at} {record.overall.hidden_tokens} tokens came in no message of their own: TPOT is coarse")
        said += [f"{at} {detail}" for detail in record.details]
    return said


def plot(records: Sequence[RateRecord], path: Path) -> None:
    """Attainment and goodput over offered load; the kind of picture is that of the path's suffix."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ordered = sorted(records, key=lambda record: record.overall.offered_rps)
    x = [record.overall.offered_rps for record in ordered]
    figure, (share, goodput) = plt.subplots(1, 2, figsize=(10, 4))
    names = list(dict.fromkeys(summary.ask for record in ordered for summary in record.by_ask))
    for name in names:
        with_it = [(record, s) for record in ordered for s in record.by_ask if s.ask == name]
        share.plot(
            [record.overall.offered_rps for record, _ in with_it],
            [100 * summary.attainment for _, summary in with_it],
            marker=".",
            linewidth=1,
            label=name,
        )
    share.plot(x, [100 * record.overall.attainment for record in ordered], color="black", marker="o", label="all")
    share.set_ylabel("contracts kept, % of offered")
    share.set_ylim(0, 105)
    goodput.plot(x, x, color="0.8", label="offered")
    goodput.plot(x, [record.overall.goodput_rps for record in ordered], color="black", marker="o", label="kept")
    if any(record.overall.guaranteed for record in ordered):
        promised = [r.overall.kept / r.seconds for r in ordered]
        goodput.plot(x, promised, marker="s", linewidth=1, label="kept of the guaranteed")
    goodput.set_ylabel("requests/s")
    goodput.set_ylim(bottom=0)
    for axes in (share, goodput):
        axes.set_xlabel("offered, requests/s")
        axes.legend()
    note = emulated_note(ordered)
    figure.suptitle(f"{ordered[0].server or ordered[0].target}{f' ({note})' if note else ''}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


_AGREEMENT = (
    "offered/s",
    "compared",
    "both say kept",
    "only the server",
    "only the client",
    "TTFT later here, ms",
    "TPOT wider here, ms",
)
_GENERATOR = ("asked for/s", "sent/s", "sent late, ms", "pauses, ms", "cores", "at its limit")


def _kept_row(record: RateRecord, of: Summary) -> list[str]:
    return [
        _rate(record),
        of.ask,
        str(of.offered),
        f"{of.attainment:.1%}",
        f"{of.goodput_rps:.2f}",
        f"{of.kept} of {of.guaranteed}",
        f"{of.best_effort_attained} of {of.best_effort}",
        *(str(n) for n in (of.unpromised, sum(of.refused.values()), sum(of.errors.values()), of.unfinished)),
    ]


def _time_row(record: RateRecord, of: Summary) -> list[str]:
    spreads = (of.ttft_s, of.tpot_mean_s, of.tpot_required_s, of.itl_s, of.e2e_s)
    return [_rate(record), of.ask, *(_spread(spread) for spread in spreads), f"{of.tokens_per_s:.0f}", _share(of)]


def _agreement_row(record: RateRecord) -> list[str]:
    agreement = record.overall.agreement
    counts = (agreement.compared, agreement.both_kept, agreement.only_server_says_kept, agreement.only_client_says_kept)
    return [_rate(record), *map(str, counts), _spread(agreement.ttft_later), _spread(agreement.tpot_wider)]


def _generator_row(record: RateRecord) -> list[str]:
    generator = record.generator
    return [
        f"{record.planned_rps:.2f}",
        _rate(record),
        _spread(generator.lag_s),
        _spread(generator.pauses_s),
        f"{generator.cpu_cores:.2f}",
        "yes" if generator.saturated else "no",
    ]


def _rate(record: RateRecord) -> str:
    return f"{record.overall.offered_rps:.2f}"


def _share(of: Summary) -> str:
    return f"{of.cached_tokens / of.prompt_tokens:.0%}" if of.prompt_tokens else "-"


def _spread(spread: Spread) -> str:
    if spread.p50 is None or spread.p90 is None or spread.p99 is None:
        return "-"
    return " / ".join(_ms(value) for value in (spread.p50, spread.p90, spread.p99))


def _ms(seconds: float) -> str:
    milliseconds = 1e3 * seconds
    return f"{milliseconds:.0f}" if abs(milliseconds) >= 100 else f"{milliseconds:.1f}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items(), key=lambda item: -item[1]))

"""What the console's document of one request says, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cli.explain.timeline import Moment, Stay, duration, timeline

Document = Mapping[str, Any]

PHASE_NAMES = {"prefill_wait": "prefill wait", "handover": "hand-over"}
"""Names of phases for people, where they are not those of the document."""
ROUNDS_SHOWN = 12
"""Number of planning rounds that are shown at most: the first ones and the last."""


def report(document: Document, columns: int) -> Iterator[str]:
    """Yield the lines that explain a request: contract, verdict, rounds, phases against due times, who was to blame.

    Args:
        document: what `GET /api/requests/{id}` of the console answers.
        columns: width of the timeline.
    """
    yield f"request {document['request_id']}: {_ending(document)}"
    yield f"contract   {contract(document)}"
    yield f"verdict    {_verdict(document)}"
    yield f"achieved   {_achieved(document)}"
    yield f"served     {_served(document)}"
    if rounds := list(_rounds(document)):
        yield ""
        total = document["rounds_total"]
        yield f"planning   {total} {_plural('round', total)}, times from its arrival"
        yield from rounds
    if lines := timeline(_stays(document), _moments(document), columns):
        yield ""
        yield from lines
    for late in document.get("late", ()):
        yield ""
        yield from _late(late)


def contract(document: Document) -> str:
    """Return what the client asked for, in words."""
    asked = []
    if document["target_ttft_s"] is not None:
        asked.append(f"first token within {duration(document['target_ttft_s'])}")
    elif document["target_slowdown"] is not None:
        asked.append(f"first token within {document['target_slowdown']:g} times what an idle worker takes")
    asked += [f"{duration(tpot_s)} for each further token" for tpot_s in document["target_tpot_s"]]
    return f"{document['profile']}: {', then '.join(asked)}" if asked else f"{document['profile']}: no targets"


def _ending(document: Document) -> str:
    ending: str = document["ending"]
    missed: str = document["missed"]
    if document["detail"]:
        return f"{ending}, {document['detail']}"
    if not missed:
        return ending if ending != "no promise" else f"served without a guarantee{_kept_all(document)}"
    lost = f"; lost in {_phase(document['broken_by'])}" if document["broken_by"] else ""
    return f"{'missed' if document['guaranteed'] else 'best effort, late'}: {missed}{lost}"


def _kept_all(document: Document) -> str:
    asked = document["target_ttft_s"] is not None or document["target_tpot_s"]
    return ", all targets kept" if asked else ", and asked for none"


def _verdict(document: Document) -> str:
    if document["ending"] == "refused":
        return f"refused{_binding(document)}"
    words = "guaranteed" if document["guaranteed"] else f"best effort{_binding(document)}"
    predicted = document["predicted"]
    if predicted is None or predicted["ttft_s"] is None:
        return words
    tpot = "" if predicted["tpot_s"] is None else f", TPOT {duration(predicted['tpot_s'])}"
    bound = "" if predicted["ttft_bound_s"] is None else f" (bound {duration(predicted['ttft_bound_s'])})"
    return f"{words}; predicted TTFT {duration(predicted['ttft_s'])}{bound}{tpot}"


def _binding(document: Document) -> str:
    return f", because of {document['binding']}" if document["binding"] not in {"", "none"} else ""


def _achieved(document: Document) -> str:
    if document["ttft_s"] is None:
        return "no token yet" if document["ending"] == "running" else "no token"
    parts = [f"TTFT {duration(document['ttft_s'])}"]
    for number, stage in enumerate(document["stages"], start=1):
        if stage["tokens"]:
            name = "TPOT" if len(document["stages"]) == 1 else f"TPOT of stage {number}"
            late = f", {stage['late_tokens']} of {stage['tokens']} tokens late" if stage["late_tokens"] else ""
            parts.append(f"{name} {duration(stage['required_tpot_s'])} (mean {duration(stage['mean_tpot_s'])}){late}")
    return "; ".join(parts)


def _served(document: Document) -> str:
    tokens = f"{document['prompt_tokens']} tokens in ({document['cached_tokens']} cached), "
    tokens += f"{document['completion_tokens']} out"
    workers = [worker for worker in (document["prefill_worker_id"], document["decode_worker_id"]) if worker]
    where = " by " + ", then ".join(dict.fromkeys(workers)) if workers else ""
    again = (
        f"; restarted {document['restarts']} {_plural('time', document['restarts'])}" if document["restarts"] else ""
    )
    return f"{tokens}{where}, in {duration(document['took_s'])}{again}"


def _rounds(document: Document) -> Iterator[str]:
    rounds = document["rounds"]
    shown = rounds if len(rounds) <= ROUNDS_SHOWN else [*rounds[: ROUNDS_SHOWN - 1], rounds[-1]]
    for index, one in enumerate(shown):
        if index == len(shown) - 1 and document["rounds_total"] > len(shown):
            yield f"  {'…':>9}  {document['rounds_total'] - len(shown)} more"
        yield f"  {duration(one['at_s']):>9}  {_round(one)}"


def _round(one: Document) -> str:
    among = f"round {one['number']} of {one['candidates']} {_plural('request', one['candidates'])}: "
    parts = [one["outcome"].replace("_", " ")]
    if one["binding"] not in {"", "none"}:
        parts.append(f"{one['binding']} binds")
    placement = one["placement"]
    if placement is not None:
        workers = dict.fromkeys((placement["prefill_worker_id"], placement["decode_worker_id"]))
        parts.append("on " + ", then ".join(workers))
        if placement["ttft_s"] is not None:
            parts.append(f"first token expected after {duration(placement['ttft_s'])}")
    if one["earliest_guarantee_s"] is not None:
        parts.append(f"room expected in {duration(one['earliest_guarantee_s'])}")
    if one["detail"]:
        parts.append(one["detail"])
    return among + ", ".join(parts)


def _stays(document: Document) -> list[Stay]:
    return [Stay(_phase(stay["phase"]), stay["from_s"], stay["to_s"]) for stay in document["timeline"]]


def _moments(document: Document) -> list[Moment]:
    moments = []
    if document["target_ttft_s"] is not None and document["timeline"]:
        moments.append(Moment("first token due", document["target_ttft_s"], due=True))
    if document["ttft_s"] is not None:
        moments.append(Moment("first token", document["ttft_s"], due=False))
    for late in document.get("late", ()):
        if late["stage"]:
            moments.append(Moment(f"{_token(late)} due", late["due_s"], due=True))
            moments.append(Moment(_token(late), late["came_s"], due=False))
    return moments


def _late(late: Document) -> Iterator[str]:
    came = "has not come" if late["came_s"] is None else f"came {duration(late['came_s'] - late['due_s'])} late"
    yield f"{_token(late)} was due after {duration(late['due_s'])} and {came}"
    since = "its arrival" if not late["stage"] else duration(late["from_s"])
    if not late["steps"]:
        yield f"  no step of {late['worker_id'] or 'any worker'} since {since} is remembered"
        return
    yield (
        f"  {late['steps']} {_plural('step', late['steps'])} of {late['worker_id']} from {since} on took "
        f"{duration(late['steps_s'])}; by their tokens, this much of it went into"
    )
    yield f"  {duration(late['own_s']):>9}  this request"
    for sharer in late["sharers"]:
        what = f"{sharer['prompt_tokens']} prompt tokens" if sharer["prompt_tokens"] else "output"
        steps = f"{sharer['steps']} {_plural('step', sharer['steps'])}"
        yield f"  {duration(sharer['share_s']):>9}  {sharer['request_id']} ({_promise(sharer)}{what} in {steps})"
    if late["others"] or late["others_s"] >= 0.0005:
        others = f"{late['others']} more, and " if late["others"] else ""
        yield f"  {duration(late['others_s']):>9}  {others}what this router does not know by name"
    if late["kept_since_s"] is not None:
        yield f"  steps before {duration(late['kept_since_s'])} are forgotten"


def _promise(sharer: Document) -> str:
    if sharer["guaranteed"] is None:
        return ""
    return f"{sharer['profile']}, {'guaranteed' if sharer['guaranteed'] else 'best effort'}, "


def _token(late: Document) -> str:
    return "first token" if not late["stage"] else f"token {late['token']} of stage {late['stage']}"


def _phase(name: str) -> str:
    return PHASE_NAMES.get(name, name)


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"

"""The tables of what HTTP requests may hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from cli.reference.configuration import value_words
from cli.reference.page import table
from cli.reference.protocol import field_comments
from gateway.requests import ChatBody, CompletionBody, Generation
from services.contract.body import SloBody, StageBody
from services.contract.terms import Term

MEANINGS: Mapping[str, str] = {
    "model": "Name of the model; left out, whatever is served.",
    "stream": "Whether tokens come as they are made, as server-sent events.",
    "stream_options": "`include_usage`: a last chunk has the usage. `continuous_usage_stats`: every chunk has it.",
    "n": "Number of choices: 1.",
    "slo": "The contract, see below.",
    "response_format": '`{"type": "text"}` only.',
    "prompt": "A text, or token ids; one prompt a request.",
    "messages": "The conversation; `content` is a text, or parts of type `text`.",
    "max_completion_tokens": "The same as `max_tokens`, and wins over it.",
    "echo": "Not served.",
    "suffix": "Not served.",
    "best_of": "1 only.",
    "tools": "Not served: put tools into the messages.",
    "functions": "Not served: put functions into the messages.",
    "top_logprobs": "Number of likeliest alternatives for each token, at most 20; needs `logprobs`.",
    "logprobs": "Log probabilities: true or false for chat; the number of alternatives for completions.",
}
"""Meanings of the fields that are none of `SamplingParams`, which says the rest."""

SLO_MEANINGS: Mapping[str, str] = {
    "profile": "A contract by name; it supplies what the other fields leave out.",
    "ttft_ms": "Time to first token, from the arrival of the request. Milliseconds.",
    "max_slowdown": "In place of `ttft_ms`: a multiple of this prompt's prefill time on an idle worker, at least 1.",
    "tpot_ms": "Time per output token. Milliseconds.",
    "stages": "In place of `tpot_ms`: the decode stages, each `{tpot_ms, ends_with}`.",
    "final_stages": "The decode stages of a session's last request; left out, those of the others.",
    "value": "Value of keeping this contract, relative to others; 1 unless stated.",
    "on_overload": "Treatment of a request that gets no promise: `best_effort` (default) or `refuse`.",
    "session_id": "Name of the task that this request belongs to.",
    "session_final": "Whether this is the last request of its session.",
    "task_deadline_ms": "Deadline of the whole task, from the arrival of its first request. Milliseconds.",
    "ends_with": "Text that ends the stage; the last stage has none.",
}
"""Meanings of the fields of `slo`, and of its stages."""


def request_fields() -> str:
    """Write the fields of both endpoints that generate text."""
    said = {**field_comments("SamplingParams"), **MEANINGS}
    rows = [
        (f"`{name}`", where, value_words(field.annotation), said[name])
        for model, where in ((Generation, "both"), (CompletionBody, "completions"), (ChatBody, "chat"))
        for name, field in model.model_fields.items()
        if model is Generation or name not in Generation.model_fields
    ]
    return table(("field", "endpoint", "values", "meaning"), rows)


def contract_fields() -> str:
    """Write the fields of `slo`, with the headers that say the same."""
    rows = [
        (f"`{name}`", ", ".join(f"`{header}`" for header in term.headers), SLO_MEANINGS[name])
        for name, term in _terms(SloBody)
    ]
    rows += [(f"`stages[].{name}`", "", SLO_MEANINGS[name]) for name, _ in _terms(StageBody)]
    return table(("field of `slo`", "header", "meaning"), rows)


def _terms(model: type[BaseModel]) -> Iterator[tuple[str, Term]]:
    for name, field in model.model_fields.items():
        yield name, next(term for term in field.metadata if isinstance(term, Term))

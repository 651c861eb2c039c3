"""Answers in OpenAI's JSON, whole or chunk by chunk, and the headers that carry the verdict."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.logprobs import TokenText, chat_logprobs, completion_logprobs
from services.contract.headers import VERDICT_HEADER, target_headers
from services.contract.rate_limits import rate_limit_headers
from slos_serve import Admission, Completion, Finished, FinishReason, Tokens, Verdict

FINISH_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.ABORT: "abort",
    FinishReason.ERROR: "error",
}


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """A request wants its answer in this form."""

    answer_id: str
    logprobs: int | None
    """Candidates to show for every token; None: the answer has no log probabilities."""
    text_of: TokenText


class AnswerFormat(Protocol):
    """Writes the JSON of one endpoint."""

    def chunk(self, tokens: Tokens) -> dict[str, Any]:
        """Return the chunk of a stream that carries these tokens."""

    def last_choice(self, finished: Finished) -> dict[str, Any]:
        """Return the chunk of a stream that says why the text ended."""

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return an answer that is not streamed."""


class CompletionFormat:
    """Writes the JSON of `/v1/completions`."""

    def __init__(self, options: AnswerOptions, model: str) -> None:
        self._options = options
        self._head = {"id": options.answer_id, "object": "text_completion", "created": int(time.time()), "model": model}
        self._offset = 0

    def chunk(self, tokens: Tokens) -> dict[str, Any]:
        choice = {"index": 0, "text": tokens.text, "logprobs": self._logprobs(tokens), "finish_reason": None}
        return {**self._head, "choices": [choice]}

    def last_choice(self, finished: Finished) -> dict[str, Any]:
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": FINISH_REASONS[finished.reason]}
        return {**self._head, "choices": [choice]}

    def whole(self, completion: Completion) -> dict[str, Any]:
        choice = {
            "index": 0,
            "text": completion.text,
            "logprobs": self._logprobs(completion),
            "finish_reason": FINISH_REASONS[completion.finished.reason],
        }
        return {**self._head, "choices": [choice]}

    def _logprobs(self, part: Tokens | Completion) -> dict[str, Any] | None:
        if self._options.logprobs is None:
            return None
        shown, self._offset = completion_logprobs(
            part.logprobs, self._options.logprobs, self._options.text_of, self._offset
        )
        return shown


class ChatFormat:
    """Writes the JSON of `/v1/chat/completions`."""

    def __init__(self, options: AnswerOptions, model: str) -> None:
        self._options = options
        self._head = {"id": options.answer_id, "created": int(time.time()), "model": model}
        self._began = False

    def chunk(self, tokens: Tokens) -> dict[str, Any]:
        # The role comes with the first token: programs that measure TTFT would take a chunk of its own for that token.
        role = {} if self._began else {"role": "assistant"}
        self._began = True
        choice = {
            "index": 0,
            "delta": {**role, "content": tokens.text},
            "logprobs": self._logprobs(tokens),
            "finish_reason": None,
        }
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def last_choice(self, finished: Finished) -> dict[str, Any]:
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": FINISH_REASONS[finished.reason]}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def whole(self, completion: Completion) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": self._logprobs(completion),
            "finish_reason": FINISH_REASONS[completion.finished.reason],
        }
        return {**self._head, "object": "chat.completion", "choices": [choice]}

    def _logprobs(self, part: Tokens | Completion) -> dict[str, Any] | None:
        if self._options.logprobs is None:
            return None
        return chat_logprobs(part.logprobs, self._options.logprobs, self._options.text_of)


def last_chunks(
    form: AnswerFormat, admission: Admission, finished: Finished, *, include_usage: bool
) -> Iterator[dict[str, Any]]:
    """Yield the chunks that end a stream, the last of which carries what was achieved."""
    slo = {"slo": slo_report(admission, finished)}
    end = form.last_choice(finished)
    if not include_usage:
        yield {**end, **slo}
        return
    yield end
    yield {**end, "choices": [], "usage": usage(finished), **slo}


def whole_answer(form: AnswerFormat, completion: Completion) -> dict[str, Any]:
    """Return an answer that is not streamed, with its usage and what was achieved."""
    finished = completion.finished
    return {**form.whole(completion), "usage": usage(finished), "slo": slo_report(completion.admission, finished)}


def usage(finished: Finished) -> dict[str, Any]:
    """Return the tokens of a request that has ended."""
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": finished.prompt_tokens + finished.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": finished.cached_tokens},
    }


def usage_so_far(admission: Admission, tokens: Tokens) -> dict[str, int]:
    """Return the tokens of a request up to and including these."""
    completion_tokens = tokens.index + len(tokens.token_ids)
    return {
        "prompt_tokens": admission.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": admission.prompt_tokens + completion_tokens,
    }


def slo_report(admission: Admission, finished: Finished) -> dict[str, Any]:
    """Return the verdict and what was achieved. Times are in milliseconds."""
    achieved, phases = finished.achieved, finished.phases
    return {
        "verdict": admission.verdict.name.lower(),
        "kept": achieved.kept,
        "missed": achieved.missed or None,
        "ttft_ms": _ms(achieved.ttft_s),
        "tpot_ms": _ms(achieved.tpot_s),
        "worst_gap_ms": _ms(achieved.worst_gap_s),
        "stages": [
            {
                "tokens": stage.tokens,
                "mean_tpot_ms": _ms(stage.mean_tpot_s),
                "required_tpot_ms": _ms(stage.required_tpot_s),
                "late_tokens": stage.late_tokens,
            }
            for stage in achieved.stages
        ],
        "phases_ms": {
            "queue": _ms(phases.queue_s),
            "plan": _ms(phases.plan_s),
            "prefill_wait": _ms(phases.prefill_wait_s),
            "prefill": _ms(phases.prefill_s),
            "handover": _ms(phases.handover_s),
            "decode": _ms(phases.decode_s),
            "restart": _ms(phases.restart_s),
        },
        "restarts": finished.restarts,
        "trace_id": finished.trace_id or None,
    }


def verdict_headers(admission: Admission) -> dict[str, str]:
    """Return the headers that tell verdict, prediction, the contract in force and what is left of quotas."""
    predicted = admission.predicted
    headers = {
        VERDICT_HEADER: admission.verdict.name.lower(),
        "x-slo-predicted-ttft-ms": f"{_ms(predicted.ttft_s)}",
        "x-slo-predicted-tpot-ms": f"{_ms(predicted.tpot_s)}",
        "x-slo-bound-ttft-ms": f"{_ms(predicted.ttft_bound_s)}",
        "x-slo-bound-tpot-ms": f"{_ms(predicted.tpot_bound_s)}",
        **target_headers(admission.contract),
        **rate_limit_headers(admission.rate_limits),
    }
    if admission.verdict is not Verdict.GUARANTEED:
        headers["x-slo-binding"] = admission.binding.name.lower()
    if admission.earliest_guarantee_s is not None:
        headers["x-slo-earliest-guarantee-ms"] = f"{_ms(admission.earliest_guarantee_s)}"
    if admission.emulated:
        headers["x-slo-emulated"] = "true"
    return headers


def achieved_headers(finished: Finished) -> dict[str, str]:
    """Return the headers that tell what was achieved, for an answer that is not streamed."""
    achieved = finished.achieved
    return {
        "x-slo-achieved-ttft-ms": f"{_ms(achieved.ttft_s)}",
        "x-slo-achieved-tpot-ms": f"{_ms(achieved.tpot_s)}",
        "x-slo-kept": "true" if achieved.kept else "false",
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)

"""The two endpoints that generate text: they turn an HTTP request into a call, and its events into an HTTP answer."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import Scope

from gateway.answers import (
    AnswerFormat,
    AnswerOptions,
    ChatFormat,
    CompletionFormat,
    achieved_headers,
    last_chunks,
    usage_so_far,
    verdict_headers,
    whole_answer,
)
from gateway.call_options import call_options
from gateway.http_errors import INVALID, HttpError, http_error_of, invalid, unintended_end
from gateway.logprobs import TokenText, token_name
from gateway.requests import (
    OPENAI_COMPLETION_TOKENS,
    ChatBody,
    CompletionBody,
    Generation,
    parse_chat,
    parse_completion,
)
from services.http.sse import DONE, SseResponse, event, unless_gone
from services.rpc.errors import REQUEST_ID_METADATA
from slos_serve import (
    Admission,
    AsyncClient,
    AsyncStream,
    Finished,
    Prompt,
    Sampling,
    SlosServeError,
    Tokens,
)

MAX_GIVEN_CHARACTERS = 96
"""Characters of a client's own request id at most: the router's id adds 18 to it, and may have 128."""
REQUEST_ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_GIVEN_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The texts of one model's tokens, which log probabilities show."""

    model: str
    text_of: TokenText


class Endpoints:
    """Serves both endpoints that generate text, over one client of the routers."""

    def __init__(
        self,
        client: AsyncClient,
        vocabulary: Vocabulary | None,
        body_timeout_s: float,
        credential: Callable[[Scope], Mapping[str, str]],
    ) -> None:
        """
        Args:
            credential: returns the metadata by which a router learns who sent a request.
        """
        self._client = client
        self._credential = credential
        self._vocabulary = vocabulary
        self._body_timeout_s = body_timeout_s

    async def completions(self, request: Request) -> Response:
        answer_id = _answer_id("cmpl", request.headers)
        body = parse_completion(await self._content(request))
        max_tokens = OPENAI_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = body.sampling(max_tokens, body.logprobs)
        return await self._answer(request, body, body.prompt_of(), sampling, answer_id)

    async def chat(self, request: Request) -> Response:
        answer_id = _answer_id("chatcmpl", request.headers)
        body = parse_chat(await self._content(request))
        max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        sampling = body.sampling(max_tokens, (body.top_logprobs or 0) if body.logprobs else None)
        return await self._answer(request, body, body.prompt_of(), sampling, answer_id)

    async def _content(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(self._body_timeout_s):
                return await request.body()
        except TimeoutError:
            message = f"the body did not arrive within {self._body_timeout_s:g} s"
            raise HttpError(408, INVALID, "body_timeout", message) from None

    async def _answer(
        self,
        request: Request,
        body: CompletionBody | ChatBody,
        prompt: Prompt,
        sampling: Sampling,
        answer_id: str,
    ) -> Response:
        options = call_options(request.headers, body, sampling, answer_id)
        options["metadata"] = {**options["metadata"], **self._credential(request.scope)}
        stream = self._client.generate(prompt, **options)
        if body.stream:
            admission = await unless_gone(request.receive, _admission(stream))
            form = self._form(body, sampling, admission, answer_id)
            headers = {"x-request-id": request.headers.get("x-request-id", answer_id), **verdict_headers(admission)}
            return SseResponse(_chunks(stream, form, admission, body), headers)
        completion = await unless_gone(request.receive, stream.completion())
        if (error := unintended_end(completion.finished.reason)) is not None:
            raise error
        form = self._form(body, sampling, completion.admission, answer_id)
        headers = {
            "x-request-id": request.headers.get("x-request-id", answer_id),
            **verdict_headers(completion.admission),
            **achieved_headers(completion.finished),
        }
        content = json.dumps(whole_answer(form, completion), ensure_ascii=False, allow_nan=False).encode()
        return Response(content, headers=headers, media_type="application/json")

    def _form(
        self, body: CompletionBody | ChatBody, sampling: Sampling, admission: Admission, answer_id: str
    ) -> AnswerFormat:
        vocabulary = self._vocabulary
        known = vocabulary is not None and vocabulary.model == admission.model
        options = AnswerOptions(
            logprobs=sampling.logprobs,
            text_of=vocabulary.text_of if vocabulary is not None and known else token_name,
            answer_id=answer_id,
        )
        return (
            CompletionFormat(options, admission.model)
            if isinstance(body, CompletionBody)
            else ChatFormat(options, admission.model)
        )


def _answer_id(kind: str, headers: Mapping[str, str]) -> str:
    """Return an id that is unique, as the router demands, and that contains the one the client or a proxy gave.

    Raises:
        HttpError: 400; what was given is no id.
    """
    given = headers.get(REQUEST_ID_METADATA)
    if given is None:
        return f"{kind}-{secrets.token_hex(16)}"
    if not REQUEST_ID.fullmatch(given):
        raise invalid(
            REQUEST_ID_METADATA, f"must be 1 to {MAX_GIVEN_CHARACTERS} printable ASCII characters without blanks"
        )
    return f"{kind}-{given}-{secrets.token_hex(4)}"


async def _admission(stream: AsyncStream) -> Admission:
    """Return the first event of a stream.

    Raises:
        SlosServeError: the request was refused, or not admitted for another reason.
    """
    first = await anext(stream)
    assert isinstance(first, Admission)
    return first


async def _chunks(
    stream: AsyncStream, form: AnswerFormat, admission: Admission, body: Generation
) -> AsyncGenerator[bytes, None]:
    try:
        async with stream:
            async for item in stream:
                match item:
                    case Tokens():
                        chunk = form.chunk(item)
                        if body.counts_in_chunks:
                            chunk["usage"] = usage_so_far(admission, item)
                        yield event(chunk)
                    case Finished():
                        for chunk in last_chunks(form, admission, item, include_usage=body.include_usage):
                            yield event(chunk)
    except SlosServeError as error:
        # The status line is long gone; OpenAI's clients raise what such an event says.
        yield event(http_error_of(error).body)
    yield DONE


def model_list(model: str, max_context_tokens: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": model, "object": "model", "created": 0, "owned_by": "slos-serve", "root": model}
    if max_context_tokens is not None:
        entry["max_model_len"] = max_context_tokens
    return {"object": "list", "data": [entry]}

"""Through the client package, to our routers."""

from __future__ import annotations

import time
from dataclasses import fields

from benchmarks.load.exchange import Answer, Claims, Exchange, Verdict
from benchmarks.load.schedule import Planned
from benchmarks.load.wire import FailureError, RefusalError, Send, Server, TargetError
from benchmarks.prompts import TokenRange, with_prefix
from benchmarks.requested_slo import RequestedSlo
from services.contract.resolution import NO_TARGETS, resolve
from slos_serve import (
    Admission,
    AsyncClient,
    CallOptions,
    DeadlineError,
    Finished,
    FinishReason,
    ImpossibleContractError,
    RefusedError,
    Sampling,
    SlosServeError,
    Tokens,
)
from slos_serve import Verdict as ClientVerdict

PATIENCE_S = 10.0
VERDICTS = {ClientVerdict.GUARANTEED: Verdict.GUARANTEED, ClientVerdict.BEST_EFFORT: Verdict.BEST_EFFORT}


class GrpcWire:
    """Nothing is sent twice: an attempt that is refused is a refusal."""

    def __init__(self, client: AsyncClient, model: str, among: TokenRange, seed: int) -> None:
        """
        Args:
            client: closed with this; it retries nothing.
        """
        self._client = client
        self._model = model
        self._among = among
        self._seed = seed

    async def look(self, slos: tuple[RequestedSlo, ...]) -> Server:
        admission: Admission | None = None
        for slo in slos:
            options: CallOptions = {"contract": slo.asked(), "model": self._model, "timeout_s": PATIENCE_S}
            try:
                admission = (await self._client.quote([self._among.last], **options)).admission
            except (ImpossibleContractError, RefusedError):
                continue
            except SlosServeError as error:
                raise TargetError(f"{', '.join(self._client.addresses)}, asked for {slo.name}: {error}") from error
        return Server("" if admission is None else admission.model, admission is not None and admission.emulated)

    def prepare(self, planned: Planned) -> Send:
        prompt = with_prefix(
            planned.prompt_tokens, planned.blocks, self._seed, planned.number, self._among, planned.block_tokens
        )
        options: CallOptions = {
            "contract": planned.slo.asked(),
            "sampling": Sampling(max_tokens=planned.output_tokens, temperature=0.0, ignore_eos=True),
            "model": self._model,
            "application": planned.slo.profile,
        }
        if planned.tenant:
            options["tenant"] = planned.tenant

        async def send(exchange: Exchange) -> None:
            try:
                async with self._client.generate(prompt, **options) as stream:
                    async for event in stream:
                        match event:
                            case Tokens():
                                exchange.tokens(len(event.token_ids), event.text, time.monotonic())
                            case Admission():
                                exchange.answered(_answer(event))
                            case Finished():
                                exchange.claims = _claims(event)
                                exchange.cached_tokens = event.cached_tokens
                                _check_whole(event)
            except RefusedError as error:
                raise RefusalError(error.binding.lower() or error.reason.lower(), str(error)) from error
            except ImpossibleContractError as error:
                raise RefusalError("impossible_contract", str(error)) from error
            except DeadlineError as error:
                raise FailureError("deadline_exceeded", str(error)) from error
            except SlosServeError as error:
                raise FailureError((error.reason or error.code.name).lower(), str(error)) from error

        return send

    async def close(self) -> None:
        await self._client.close()


def _answer(admission: Admission) -> Answer:
    return Answer(
        resolve(admission.contract, NO_TARGETS),
        VERDICTS[admission.verdict],
        admission.reason,
        admission.predicted.ttft_bound_s,
        admission.predicted.tpot_bound_s,
        admission.request_id,
        admission.emulated,
    )


def _claims(finished: Finished) -> Claims:
    achieved = finished.achieved
    phases_s = {
        field.name.removesuffix("_s"): getattr(finished.phases, field.name) for field in fields(finished.phases)
    }
    pull = finished.kv_pull
    return Claims(
        achieved.kept,
        achieved.missed,
        achieved.ttft_s,
        achieved.tpot_s,
        phases_s,
        pull.kv_bytes if pull is not None else 0,
        pull.transfer_s if pull is not None else 0.0,
    )


def _check_whole(finished: Finished) -> None:
    if finished.reason not in {FinishReason.STOP, FinishReason.LENGTH}:
        raise FailureError(f"finished_{finished.reason.name.lower()}", "the text was ended before its end")

"""A contract as the client gets it back."""

from __future__ import annotations

from services.slo.contract import Contract, OnOverload
from slos_serve.v1 import contract_pb2


def contract_message(contract: Contract) -> contract_pb2.Contract:
    message = contract_pb2.Contract(
        profile=contract.profile,
        value=contract.value,
        on_overload=contract_pb2.ON_OVERLOAD_REFUSE
        if contract.on_overload is OnOverload.REFUSE
        else contract_pb2.ON_OVERLOAD_BEST_EFFORT,
        session_id=contract.session_id,
        session_final=contract.session_final,
        task_deadline_s=contract.task_deadline_s,
    )
    if contract.prefill is not None:
        prefill = message.stages.add().prefill
        if contract.prefill.ttft_s is not None:
            prefill.ttft_s = contract.prefill.ttft_s
        elif contract.prefill.max_slowdown is not None:
            prefill.max_slowdown = contract.prefill.max_slowdown
    for target in contract.decode:
        message.stages.add(decode=contract_pb2.DecodeStage(tpot_s=target.tpot_s, ends_with=target.ends_with))
    for target in contract.final_decode:
        message.final_stages.add(tpot_s=target.tpot_s, ends_with=target.ends_with)
    return message

"""Decisions about quotas: how much of each thing a tenant may use, and when it may use more."""

from services.slo.quotas.decision import (
    Granted,
    OverQuota,
    Quota,
    QuotaLimits,
    Standing,
    Use,
    Uses,
    decide,
    settled,
    standing,
)
from services.slo.quotas.token_bucket import FULL, MAX_DEBT_S, Bucket, Rate

__all__ = [
    "FULL",
    "MAX_DEBT_S",
    "Bucket",
    "Granted",
    "OverQuota",
    "Quota",
    "QuotaLimits",
    "Rate",
    "Standing",
    "Use",
    "Uses",
    "decide",
    "settled",
    "standing",
]

"""The address in a KV handle, at which its lease can be claimed."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ClaimAddress(BaseModel):
    """Host and TCP port of an exporter, as `KvHandle.transfer_params_json` holds them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    host: str = Field(min_length=1, max_length=253)
    port: int = Field(ge=1, le=65535)

    @classmethod
    def from_json(cls, text: str) -> ClaimAddress:
        """
        Raises:
            ValueError: the text is no address; the message is one line.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(faults(error)) from error


def faults(error: ValidationError) -> str:
    """Return in one line what a validation found wrong."""
    return "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}".strip(": ") for part in error.errors())

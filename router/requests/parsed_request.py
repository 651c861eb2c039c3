"""A request as the router works on it, whichever endpoint it came through."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.requests.prompt_blocks import TokenBlocks
from services.engine.protocol import SamplingOptions
from services.slo.admission import RequestFacts
from services.slo.contract import Contract


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A request has passed every check for which the cluster need not be known."""

    request_id: str
    """Id by which the whole cluster knows the request: its scope, and the id that the client chose or was given."""
    prompt: tuple[int, ...] = field(repr=False)
    """Token ids of the whole prompt, the chat template applied."""
    sampling: SamplingOptions
    stop: tuple[str, ...] = field(repr=False)
    """Strings before which the text ends; the router looks for them, no engine does."""
    include_stop: bool
    """Whether the text includes the stop string that ended it."""
    skip_special_tokens: bool
    contract: Contract
    application: str
    tenant: str
    scope: str = ""
    """Beginning of ids and names that are this tenant's own; empty where no credentials are checked."""
    expected_output_tokens: int | None = None
    """Output tokens that the client expects at most; a hint, never a limit."""
    operation: str = "text_completion"
    """OpenTelemetry's name of the operation: `chat` or `text_completion`."""
    cache_salt: str = field(default="", repr=False)
    """Salt with which engines cache the prompt, so that no tenant finds what another has sent; empty if all share."""
    blocks: TokenBlocks = field(init=False, repr=False, compare=False)
    """Blocks of the prompt, kept here because their digests are found again by this very object."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", TokenBlocks(self.prompt, self.cache_salt))

    @property
    def client_request_id(self) -> str:
        """Id by which the client knows the request."""
        return self.request_id.removeprefix(self.scope)

    @property
    def learnt_as(self) -> str:
        """Name under which forecasts learn from the request: its application, which tenants never share."""
        return f"{self.scope}{self.application}"


def request_facts(parsed: ParsedRequest) -> RequestFacts:
    """Return what the admission core is told of a request."""
    return RequestFacts(
        request_id=parsed.request_id,
        prompt_tokens=len(parsed.prompt),
        max_tokens=parsed.sampling.max_tokens,
        tenant=parsed.tenant,
        application=parsed.learnt_as,
        expected_output_tokens=parsed.expected_output_tokens,
        blocks=parsed.blocks,
    )

"""Limits of what a request may hold, whatever the model; routers and gateways check the same ones."""

from __future__ import annotations

MAX_MESSAGES = 4096
"""Messages of a conversation at most: rendering so many takes a thread 50 ms."""
MAX_STOP_STRINGS = 64
"""Stop strings of a request at most, each of which the router looks for in every piece of text."""
MAX_STOP_STRING_CHARACTERS = 1024
"""Characters of a stop string at most: so much text may have to wait until it is known not to be the stop string."""
MAX_STOP_CHARACTERS = 8192
"""Characters of all stop strings together at most: what looks for them grows with that number."""
MAX_STOP_TOKEN_IDS = 1024
"""Stop token ids of a request at most."""
MAX_LOGPROBS = 20
"""Candidates shown for a token at most; OpenAI's interface has the same limit."""
MAX_LOGIT_BIAS = 1024
"""Entries of `logit_bias` at most; OpenAI's interface has the same limit."""
MAX_BIAS = 100
"""Largest bias of a token, and the smallest with a minus; OpenAI's interface has the same limits."""

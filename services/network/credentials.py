"""Passwords in URLs, which must not get into any output."""

from __future__ import annotations

import re

HIDDEN = "***"
SECRET_NAMES = re.compile(r"pass|secret|token|key", re.IGNORECASE)
"""Parts of the names of query parameters whose values are hidden."""
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]*[^\s'\"<>.,;:)\]]")


def without_credentials(url: str) -> str:
    """Return a URL with everything hidden that may be a password, also if it was not written as URLs want it.

    The name of a user stays if a password follows it. A password with an unescaped `@`, `/`, `#` or `?` makes URLs
    that parsers cut in the wrong place, so that this looks for the last `@` and hides what stands where a port should.
    """
    scheme, separator, rest = url.rpartition("://") if url.count("://") == 1 else url.partition("://")
    if not separator:
        scheme, rest = "", url
    place, question, query = rest.partition("?")
    user_info, at, host = place.rpartition("@")
    if at:
        user, colon, _ = user_info.partition(":")
        shown = f"{user}:{HIDDEN}@{host}" if colon else f"{HIDDEN}@{host}"
    else:
        shown = _without_odd_port(host)
    return f"{scheme}{separator}{shown}{question}{_query(query)}"


def hide_credentials(text: str) -> str:
    """Return a text with the credentials of every URL in it hidden."""
    if "://" not in text:
        return text
    return URL.sub(lambda found: without_credentials(found[0]), text)


def _without_odd_port(place: str) -> str:
    """Hide what stands where a port should and is none: the password of somebody who forgot the host."""
    ends = re.search(r"[/#]", place)
    authority = place if ends is None else place[: ends.start()]
    host, colon, port = authority.rpartition(":")
    if not colon or not port or port.isdigit() or authority.endswith("]"):
        return place
    return f"{host}:{HIDDEN}{place[len(authority) :]}"


def _query(query: str) -> str:
    if "@" in query:
        return HIDDEN
    return "&".join(
        f"{part.partition('=')[0]}={HIDDEN}" if "=" in part and SECRET_NAMES.search(part.partition("=")[0]) else part
        for part in query.split("&")
    )

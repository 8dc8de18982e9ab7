"""What became of the server when a request or a window of load went wrong, as a Failure."""

from __future__ import annotations

import re
import time
from typing import Literal

from tritonc.schemas.measurement import Failure
from tritonc.tuner.engines import Server

SERVER_GONE = frozenset({"server_crashed", "server_hung"})
"""Failures that somebody else may have caused: what measures tries again by itself."""
_NEWS_S = 0.5
"""A connection breaks a moment before the end of the process is known."""
_POLL_S = 0.02
_DEAD_INSTANCE = re.compile(r"Stub process '([^']+)' is not healthy")


def fault(
    server: Server, reason: Literal["request_errors", "server_hung", "no_result"], detail: str
) -> Failure:
    """Why something went wrong: the server is gone, does not answer, or else `reason`.

    Args:
        server: is asked how it is; this takes at most 2.5 s.
        reason: what it was if the server is well.
        detail: what was seen.
    """
    if _ended(server):
        return Failure(
            reason="server_crashed",
            detail=f"the server ended: {detail}\nlast lines of {server.log.name}:\n{server.log_tail()}",
        )
    if not server.responsive(2.0):
        if not server.alive():
            return fault(server, reason, detail)
        return Failure(reason="server_hung", detail=f"the server does not answer: {detail}")
    if dead := _DEAD_INSTANCE.search(detail):
        ended = f"instance {dead[1]} of the model ended, as where the kernel kills it for lack of memory"
        return Failure(reason=reason, detail=f"{ended}: {detail}")
    return Failure(reason=reason, detail=detail)


def _ended(server: Server) -> bool:
    deadline = time.monotonic() + _NEWS_S
    while server.alive():
        if server.responsive(_NEWS_S):
            return not server.alive()
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True

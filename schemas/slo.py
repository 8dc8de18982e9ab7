"""What a spec says of its limits: hard ones that must be kept, soft ones that cost where they are missed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Discriminator, Tag

from tritonc.schemas.spec_fields import Bytes, Model, Positive


class SoftLimit(Model):
    """A limit that may be soft: missing a soft one costs, but rules nothing out.

    Who misses a soft limit by 10% has to be 21% better in the objective to win all the same, who misses it by
    a factor of two four times better.
    """

    limit: Positive
    """As a hard limit is written."""
    soft: bool = False
    """Whether it may be missed; false: as if the limit stood there alone."""


class SoftSizeLimit(Model):
    """A limit of memory that may be soft: missing a soft one costs, but rules nothing out."""

    limit: Bytes
    """As a hard limit is written."""
    soft: bool = False
    """Whether it may be missed; false: as if the limit stood there alone."""


def _limit_kind(value: object) -> str:
    return "{limit, soft}" if isinstance(value, Mapping | Model) else "hard limit"


Limit = Annotated[
    Annotated[Positive, Tag("hard limit")] | Annotated[SoftLimit, Tag("{limit, soft}")],
    Discriminator(_limit_kind),
]
"""A number is a hard limit; `{limit: 80, soft: true}` a soft one."""
SizeLimit = Annotated[
    Annotated[Bytes, Tag("hard limit")] | Annotated[SoftSizeLimit, Tag("{limit, soft}")],
    Discriminator(_limit_kind),
]
"""A size is a hard limit; `{limit: 2GiB, soft: true}` a soft one."""


class Slo(Model):
    """Limits that a configuration must keep (a number), or should keep ({limit: 80, soft: true}).

    Latencies run from the client's send to its last response.
    """

    p50_latency_ms: Limit | None = None
    p90_latency_ms: Limit | None = None
    p95_latency_ms: Limit | None = None
    p99_latency_ms: Limit | None = None
    avg_latency_ms: Limit | None = None
    min_throughput: Limit | None = None
    """Inferences a second."""
    max_memory: SizeLimit | None = None
    """Of the server, host memory."""
    avg_queue_ms: Limit | None = None
    """Time a request waits in the server for an instance or for a batch to fill, on average."""
    max_load_seconds: Limit | None = None
    """Time from asking the server for the model until it serves (cold start)."""

    @property
    def hard(self) -> dict[str, float]:
        """The limits that must be kept, by name."""
        return {name: limit for name, (limit, soft) in self._all().items() if not soft}

    @property
    def soft(self) -> dict[str, float]:
        """The limits that may be missed at a cost, by name."""
        return {name: limit for name, (limit, soft) in self._all().items() if soft}

    @property
    def limits(self) -> dict[str, float]:
        """All of them by name, hard and soft."""
        return {name: limit for name, (limit, _) in self._all().items()}

    def _all(self) -> dict[str, tuple[float, bool]]:
        """Limit, and whether it is soft, by name."""
        found: dict[str, tuple[float, bool]] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, SoftLimit | SoftSizeLimit):
                found[name] = (value.limit, value.soft)
            elif value is not None:
                found[name] = (value, False)
        return found

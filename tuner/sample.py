"""Windows of one candidate under one load, with the server's own counts, and their Measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tritonc.schemas.measurement import Interval, Load, Measurement
from tritonc.tuner.engines import Statistics
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.objective import Percentile
from tritonc.tuner.statistics import (
    adapted,
    mean_batches,
    mean_interval,
    quantile_interval,
    rate_error,
    rate_interval,
    widened,
)
from tritonc.tuner.steadiness import unsteadiness
from tritonc.tuner.window import Window

_QUANTILES: dict[Percentile, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One or more windows under one load.

    Attributes:
        counted: what the server counted meanwhile, the ramp and the last answers included.
        memory_bytes: of the server and its stubs, after the windows.
        gpu_memory_bytes: likewise; None without a GPU.
        load_s: seconds that the candidate took to load; None where it was not loaded for this.
        energy_j: joules that the GPUs used meanwhile; None where that was not asked, or no GPU tells.
    """

    load: Load
    windows: tuple[Window, ...]
    counted: Statistics
    memory_bytes: int
    gpu_memory_bytes: int | None
    load_s: float | None = None
    energy_j: float | None = None

    @classmethod
    def joined(cls, samples: Sequence[Sample]) -> Sample:
        """All windows of samples of one load; memory is the peak, the time of loading the mean."""
        counts = zip(*(_counts(each.counted) for each in samples), strict=True)
        gpu = [each.gpu_memory_bytes for each in samples if each.gpu_memory_bytes is not None]
        loads = [each.load_s for each in samples if each.load_s is not None]
        energies = [each.energy_j for each in samples if each.energy_j is not None]
        return cls(
            load=samples[0].load,
            windows=tuple(window for each in samples for window in each.windows),
            counted=Statistics(*(sum(column) for column in counts)),
            memory_bytes=max(each.memory_bytes for each in samples),
            gpu_memory_bytes=max(gpu) if gpu else None,
            load_s=sum(loads) / len(loads) if loads else None,
            energy_j=sum(energies) if len(energies) == len(samples) else None,
        )

    @property
    def requests(self) -> int:
        """Requests whose latencies count."""
        summaries = [window.summary for window in self.windows if window.summary]
        return sum(len(w.steady_latency_ms) for w in self.windows) + sum(s.requests for s in summaries)

    @property
    def request_rate(self) -> float:
        """Requests completed a second."""
        return self._rate(None, 1).value

    def throughput_error(self, noise: NoiseFloor, visits: float = 1) -> float | None:
        """Standard error of the logarithm of throughput; None where it is unknown.

        The arguments are those of `pooled`.
        """
        seen = [window.events for window in self.windows if window.summary is None]
        return rate_error(seen, noise.throughput, visits) if seen else None

    def _rate(self, noise: NoiseFloor | None, visits: float) -> Interval:
        seen = [window.events for window in self.windows if window.summary is None]
        if seen:
            return rate_interval(seen, noise.throughput if noise else None, visits)
        rates = [w.summary.throughput / self.load.mean_request_batch for w in self.windows if w.summary]
        return Interval(value=sum(rates) / len(rates))

    def latency_ms(self, noise: NoiseFloor | None = None, visits: float = 1) -> dict[Percentile, Interval]:
        """Average and percentiles of all windows together; the arguments are those of `pooled`."""
        seen = [window.steady_latency_ms for window in self.windows if window.summary is None]
        if seen:
            quantiles = {name: quantile_interval(seen, q) for name, q in _QUANTILES.items()}
            if noise is None:
                return {"avg": mean_interval(seen), **quantiles}
            between = adapted(noise.latency, mean_batches(seen))
            wide = {name: widened(each, between, len(seen), visits) for name, each in quantiles.items()}
            return {"avg": mean_interval(seen, noise.latency, visits), **wide}
        summaries = [window.summary for window in self.windows if window.summary]
        return {
            name: Interval(value=sum(each.latency_ms[name] for each in summaries) / len(summaries))
            for name in summaries[0].latency_ms
        }

    def throughput(self, noise: NoiseFloor | None = None, visits: float = 1) -> Interval:
        """Inferences a second; the arguments are those of `pooled`.

        Of requests of several sizes: requests a second, times their mean size by the weights.
        """
        rate, batch = self._rate(noise, visits), self.load.mean_request_batch
        return Interval(
            value=rate.value * batch,
            low=None if rate.low is None else rate.low * batch,
            high=None if rate.high is None else rate.high * batch,
        )


def pooled(samples: Sequence[Sample], noise: NoiseFloor | None = None, visits: float = 1) -> Measurement:
    """All samples of a candidate under one load as one Measurement.

    Args:
        samples: at least one, all of the same load.
        noise: what is known to lie between windows, for the intervals; None before it was measured.
        visits: times that samples were taken one after another, without anything else in between; infinite
            where what lies between such times does not count.
    """
    sample = Sample.joined(samples)
    windows, counted = sample.windows, sample.counted
    requests = max(1, counted.requests)
    sustained = 2 * sum(window.sustained for window in windows) >= len(windows)
    latency_ms = sample.latency_ms(noise, visits)
    said = [text for window in windows for text in window.warnings]
    rates = [window.offered_rate for window in windows]
    offered = [rate for rate in rates if rate is not None]
    return Measurement(
        load=sample.load,
        requests=sample.requests,
        errors=counted.failed_requests,
        duration_s=sum(window.duration_s for window in windows),
        throughput=sample.throughput(noise, visits),
        latency_ms=latency_ms if sustained else _open_ended(latency_ms),
        offered_rate=sum(offered) / len(offered) if offered else None,
        sustained=sustained,
        queue_ms=counted.queue_ns / requests / 1e6,
        compute_input_ms=counted.compute_input_ns / requests / 1e6,
        compute_infer_ms=counted.compute_infer_ns / requests / 1e6,
        compute_output_ms=counted.compute_output_ns / requests / 1e6,
        mean_batch=counted.mean_batch,
        memory_bytes=sample.memory_bytes,
        gpu_memory_bytes=sample.gpu_memory_bytes,
        load_s=sample.load_s,
        joules_per_inference=_per_inference(sample.energy_j, counted.inferences),
        warnings=(*dict.fromkeys(said), *unsteadiness(windows)),
    )


def _per_inference(energy_j: float | None, inferences: int) -> float | None:
    return None if energy_j is None or not inferences else energy_j / inferences


def _open_ended(latency_ms: Mapping[Percentile, Interval]) -> dict[Percentile, Interval]:
    """The same without upper ends: under a load that is not sustained latency grows without end."""
    return {name: Interval(value=each.value, low=each.low) for name, each in latency_ms.items()}


def _counts(counted: Statistics) -> tuple[int, ...]:
    return (
        counted.inferences,
        counted.executions,
        counted.requests,
        counted.failed_requests,
        counted.queue_ns,
        counted.compute_input_ns,
        counted.compute_infer_ns,
        counted.compute_output_ns,
        counted.executed,
    )

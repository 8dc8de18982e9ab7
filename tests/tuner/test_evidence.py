"""Which study is continued, and when the ranking may not carry over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tuner.spaces import capacity
from tritonc.compiler.candidate import Candidate
from tritonc.schemas.lock import Digests
from tritonc.schemas.measurement import EngineInfo, Hardware
from tritonc.schemas.spec import EnsembleSpec, ModelSpec, Slo, Step
from tritonc.tuner.evidence import caveats, next_study_name, study_name
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.statistics import Scatter

DIGESTS = Digests(source="s", signature="i", space="p", load="l")
ENGINE = EngineInfo(name="embedded", triton="2.51.0", release="24.10", load_generator="perf_analyzer 2.43.0")
HARDWARE = Hardware(cpu="CPU", cores=2, memory_bytes=2**30)


def name(digests: Digests = DIGESTS, engine: EngineInfo = ENGINE, existing=()) -> str:
    return study_name("mlp", "cpu", digests, engine, HARDWARE, existing)


def test_a_study_is_named_for_all_that_its_numbers_depend_on():
    names = {
        name(),
        name(digests=DIGESTS.model_copy(update={"source": "other weights"})),
        name(digests=DIGESTS.model_copy(update={"load": "another SLO"})),
        name(engine=ENGINE.model_copy(update={"name": "local"})),
        name(engine=ENGINE.model_copy(update={"server_cores": (0,)})),
    }
    assert len(names) == 5
    assert name() == name()


def test_the_latest_study_is_continued_and_those_of_others_are_not():
    first = name()
    second = next_study_name(first)
    tenth = f"{first} #10"
    assert name(existing=[first]) == first
    assert name(existing=[tenth, first, second]) == tenth
    assert name(existing=["mlp on cpu 000000000000 #7"]) == first


def model(**slo: float) -> ModelSpec:
    return ModelSpec(source="m.onnx", slo=Slo(**slo))


def baseline(execution_ms: float | None):
    made = capacity(100.0)
    measured = made.measurement.model_copy(update={"compute_infer_ms": execution_ms})
    return replace(made, measurement=measured, steps=(measured,))


@pytest.mark.parametrize(
    ("execution_ms", "slo", "words"),
    [
        (1.9, {}, ["takes 1.9 ms"]),
        (2.0, {}, []),
        (10.0, {"p99_latency_ms": 49.0}, ["p99 limit of 49 ms"]),
        (10.0, {"p99_latency_ms": 50.0}, []),
        (10.0, {"p99_latency_ms": 80.0, "p95_latency_ms": 45.0}, ["p95 limit of 45 ms"]),
        (1.0, {"p99_latency_ms": 4.0}, ["takes 1 ms", "p99 limit of 4 ms"]),
        (None, {"p99_latency_ms": 1.0}, []),
    ],
)
def test_short_executions_and_tight_limits_are_said(execution_ms, slo, words):
    said = caveats(ENGINE, model(**slo), baseline(execution_ms), {})
    assert len(said) == len(words)
    assert all(word in sentence for word, sentence in zip(words, said, strict=True))
    assert all("--engine local" in sentence for sentence in said)


def test_the_local_engine_and_a_failed_baseline_have_no_caveats():
    assert caveats(ENGINE.model_copy(update={"name": "local"}), model(), baseline(0.1), {}) == ()
    assert caveats(ENGINE, model(), None, {}) == ()


def test_a_choice_whose_outputs_were_compared_with_nothing_is_said():
    one, other = (Candidate.of("mlp", "cpu", {"instance_count": count}) for count in (1, 2))
    chosen = {one: replace(capacity(100.0), is_verified=False), other: capacity(90.0)}
    [said] = caveats(ENGINE, model(), None, chosen)
    assert said.startswith(f"The outputs of {one.id} were not compared with the baseline's")
    assert other.id not in said


def test_noise_is_put_down_to_a_load_generator_without_a_core_of_its_own():
    def said(deviation: float, server: tuple[int, ...], load_generator: tuple[int, ...] = ()):
        cores = {"server_cores": server, "load_generator_cores": load_generator}
        noise = NoiseFloor(Scatter(deviation, 7), Scatter(deviation, 7))
        return caveats(ENGINE.model_copy(update=cores), model(), replace(baseline(9.0), noise=noise), {})

    [sentence] = said(0.08, (0, 1))
    assert sentence.startswith("Equal windows differ by 8.0% more than each of them shows")
    assert sentence.endswith("(`cores: 1`).")
    assert said(0.08, (0,), (1,)) == said(0.02, (0, 1)) == said(0.08, (0,)) == said(0.08, ()) == ()


def test_steps_of_an_ensemble_are_short_or_long_on_average():
    step = Step(model="m", input_map={"x": "x"}, output_map={"y": "y"})
    [said] = caveats(ENGINE, EnsembleSpec(steps=(step, step)), baseline(3.0), {})
    assert said.startswith("On average a step of the baseline takes 1.5 ms, less than 2: ")
    assert caveats(ENGINE, EnsembleSpec(steps=(step, step)), baseline(4.0), {}) == ()

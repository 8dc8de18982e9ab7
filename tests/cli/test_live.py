"""What a person sees while `tune` measures, from made-up events."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tests.tuner.spaces import capacity, small_space
from tritonc.live import LiveView, PlainView, outcome_text, watching
from tritonc.output import Output
from tritonc.schemas.measurement import ClosedLoad, EngineInfo, Failure, Hardware
from tritonc.tuner.events import (
    Confirming,
    LoadStarted,
    MachineChanged,
    NoiseMeasured,
    ReferenceLook,
    SearchEnded,
    ServerStarted,
    StudyStarted,
    TargetSkipped,
    TrialFinished,
    TrialStarted,
    Warned,
)
from tritonc.tuner.noise import NoiseFloor
from tritonc.tuner.recorded import Reused
from tritonc.tuner.statistics import Scatter
from tritonc.tuner.trial import Trial

SPACE = small_space()
OTHER = next(candidate for candidate in SPACE if candidate != SPACE.baseline)
ENGINE = EngineInfo(
    name="embedded",
    triton="2.51.0",
    release="24.10",
    runtimes={"onnxruntime": "1.24.1"},
    load_generator="perf_analyzer 2.43.0",
    server_cores=(0, 1),
)
STUDY = StudyStarted(
    model="mlp",
    target="cpu",
    candidates=len(SPACE),
    trials=20,
    finished=(),
    baseline=SPACE.baseline,
    objective="throughput",
    engine=ENGINE,
    hardware=Hardware(cpu="CPU", cores=2, memory_bytes=2**33),
)
BASELINE = Trial(1, SPACE.baseline, capacity(100.0), "start", 4.0)
BETTER = Trial(2, OTHER, capacity(125.0), "sampler", 6.0)
CRASHED = Trial(3, OTHER, Failure(reason="server_crashed", detail="signal 9\nlog"), "sampler", 1.0)
EVENTS = (
    TargetSkipped("gpu", "it has 1 x A10, this machine none"),
    STUDY,
    ServerStarted(ENGINE),
    TrialStarted(1, SPACE.baseline),
    LoadStarted(SPACE.baseline, ClosedLoad(concurrency=4)),
    TrialFinished(BASELINE, BASELINE),
    TrialFinished(BETTER, BETTER),
    TrialFinished(CRASHED, BETTER),
    ServerStarted(ENGINE, restarted=True),
)


@pytest.fixture
def output() -> Output:
    made = Output()
    made.console = Console(file=io.StringIO(), width=140)
    return made


def drawn(view: LiveView) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(view.draw())
    return console.file.getvalue()


def test_without_a_terminal_each_trial_is_one_line(capsys: pytest.CaptureFixture[str], output: Output):
    with watching(output) as observer:
        assert isinstance(observer, PlainView)
        for event in EVENTS:
            observer(event)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "target gpu is skipped: it has 1 x A10, this machine none"
    assert lines[1] == f"mlp on cpu: {len(SPACE)} candidates, 20 trials"
    assert "embedded engine, Triton 2.51.0 (24.10), onnxruntime 1.24.1" in lines[2]
    trials = [line for line in lines if line.startswith("trial ")]
    assert len(trials) == 3
    assert "(baseline): 100 inferences/s [98.0, 102], p99 20.0 ms" in trials[0]
    assert "throughput +25.0% to the baseline's; took 6 s" in trials[1]
    assert "failed, server_crashed: signal 9; took 1 s" in trials[2]
    assert lines[-1] == "the server was given up and started again"


def test_without_a_terminal_each_round_of_the_confirmation_is_one_line(
    capsys: pytest.CaptureFixture[str], output: Output
):
    view = PlainView(output)
    view(STUDY)
    for number in (1, 2, 5):
        view(Confirming(SPACE.baseline, "baseline", number, 8))
        view(Confirming(OTHER, "finalist", number, 8))
    lines = capsys.readouterr().err.splitlines()[3:]
    assert lines[0] == "confirming, round 1 of at most 8"
    assert lines[1] == f"  baseline {SPACE.baseline.id} (baseline)"
    assert lines[2].startswith(f"  finalist {OTHER.id} (")
    assert lines[3:] == ["confirming, round 2 of at most 8", "confirming, round 5 of at most 8"]


def test_on_a_terminal_there_is_what_is_measured_now_the_best_and_the_time_left(output: Output):
    view = LiveView(output)
    for event in EVENTS:
        view(event)
    picture = drawn(view)
    assert "3/20" in picture
    assert "100 inferences/s [98.0, 102]" in picture
    assert "125 inferences/s" in picture
    assert "about 1 min 2 s for the trials" in picture
    assert "trial 3" in output.console.file.getvalue()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (TrialStarted(2, OTHER), "loading"),
        (LoadStarted(OTHER, None), "warm-up"),
        (LoadStarted(OTHER, ClosedLoad(concurrency=8)), "concurrency 8"),
        (ReferenceLook(BASELINE.candidate), "has the machine changed?"),
        (Confirming(OTHER, "finalist", 2, 4), "confirming, round 2: finalist"),
        (SearchEnded("the time is up"), "search ended: the time is up"),
    ],
)
def test_the_picture_says_what_happens_now(output: Output, event: Any, words: str):
    view = LiveView(output)
    view(STUDY)
    view(event)
    assert words in drawn(view)


def test_a_resumed_study_shows_the_best_of_earlier_runs_at_once(output: Output):
    view = LiveView(output)
    view(replace(STUDY, finished=(BASELINE, BETTER, CRASHED)))
    assert "best so far" in drawn(view)
    assert "throughput +25.0% to the baseline's" in drawn(view)


def test_there_is_a_picture_before_the_first_study(output: Output):
    view = LiveView(output)
    view(Warned("warning: [red]"))
    assert "getting the engine ready" in drawn(view)
    assert output.console.file.getvalue() == "warning: [red]\n"


def test_the_noise_floor_and_a_change_of_the_machine_are_a_line_each(
    output: Output, capsys: pytest.CaptureFixture[str]
):
    view = PlainView(output)
    view(STUDY)
    capsys.readouterr()
    view(NoiseMeasured(NoiseFloor(Scatter(0.021, 7), Scatter(0.03, 7))))
    view(MachineChanged(0.8, 6, (1, 7, 8)))
    assert capsys.readouterr().err.splitlines() == [
        "noise floor: equal windows differ by 2.1% more than each of them shows",
        "the machine became 20% slower after trial 6; measured again: trials 1, 7, 8",
    ]


def test_a_trial_that_is_measured_again_counts_once(output: Output):
    view = LiveView(output)
    for event in (STUDY, TrialFinished(BASELINE, BASELINE), TrialFinished(BASELINE, BASELINE)):
        view(event)
    assert "1/20" in drawn(view)


def test_a_missed_slo_says_which_limit_and_by_how_much():
    missed = Trial(1, OTHER, capacity(90.0, violation=0.25), "sampler", 1.0)
    assert "misses the SLO (p99_latency_ms by 25%)" in outcome_text(missed, BASELINE, "throughput")


def test_a_trial_that_was_left_early_or_is_unsteady_says_so():
    plain = capacity(90.0)
    unsteady = plain.measurement.model_copy(update={"warnings": ("throughput rose by 14%",)})
    left = Trial(1, OTHER, replace(plain, is_cut=True, measurement=unsteady), "sampler", 1.0)
    text = outcome_text(left, None, "throughput")
    assert text.endswith("; left early, as it cannot come near the best; throughput rose by 14%")


def test_a_trial_says_what_of_it_was_measured_before_and_that_is_no_measure_of_the_time_left(output: Output):
    known = replace(capacity(90.0), reused=Reused(2, "2026-11-27"))
    partly = replace(known, reused=Reused(1, "2026-11-26"))
    trials = [Trial(n, OTHER, what, "sampler", 0.1) for n, what in enumerate((known, partly), 1)]
    texts = [outcome_text(trial, None, "throughput") for trial in trials]
    assert texts[0].endswith("; 2 of 2 loads measured before (2026-11-27)")
    assert texts[1].endswith("; 1 of 2 loads measured before (2026-11-26)")
    assert [trial.was_known for trial in trials] == [True, False]
    view = LiveView(output)
    for event in (STUDY, TrialFinished(trials[0], trials[0])):
        view(event)
    assert "left: unknown" in drawn(view)


def test_a_trial_is_compared_by_what_the_model_is_tuned_for():
    memory = capacity(100.0).measurement.model_copy(update={"memory_bytes": 3 * 2**28})
    base = replace(BASELINE, outcome=replace(BASELINE.outcome, objective=-(2.0**30)))
    smaller = replace(BETTER, outcome=replace(BETTER.outcome, measurement=memory, objective=-3.0 * 2**28))
    text = outcome_text(smaller, base, "memory")
    assert "768 MiB" in text
    assert "memory -25.0% to the baseline's" in text
    assert "throughput" not in text


def test_a_rate_that_was_not_sustained_is_called_so():
    over = replace(capacity(90.0), slo_met=False, violations={"sustained": 0.5})
    assert "misses the SLO (rate not sustained, by 50%)" in outcome_text(
        Trial(1, OTHER, over, "sampler", 1.0), None, "throughput"
    )

"""Optuna samplers over the candidates of a Space. Imports optuna: import this module inside functions only.

The seam for better samplers: a `Sampler` is a function from a seed to any `optuna.samplers.BaseSampler`,
listed in `SAMPLERS`. `CandidateSampler` turns whatever that one draws into a legal candidate that was not
measured before, so the parameters of a trial are always those that were measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optuna import create_study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage

from tritonc.compiler.candidate import Candidate
from tritonc.compiler.knobs.dimension import Dimension
from tritonc.compiler.space import Space
from tritonc.schemas.lock import KnobValue
from tritonc.tuner.points import complete, nearest, unseen_near

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial, TrialState

Sampler = Callable[[int], BaseSampler]

_STARTUP_TRIALS = 8
"""Trials before TPE models anything: about as many as there are starting points."""


def tpe(seed: int) -> BaseSampler:
    """Optuna's TPE over groups of knobs that are active together; it takes the SLO as constraints."""
    return TPESampler(
        seed=seed, n_startup_trials=_STARTUP_TRIALS, multivariate=True, group=True, constant_liar=False
    )


def uniform(seed: int) -> BaseSampler:
    """Random points."""
    return RandomSampler(seed=seed)


def gp(seed: int) -> BaseSampler:
    """Optuna's Gaussian process; it needs PyTorch, and takes the SLO as constraints."""
    return GPSampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, deterministic_objective=False)


SAMPLERS: Mapping[str, Sampler] = {"gp": gp, "tpe": tpe, "random": uniform, "grid": uniform}
"""Optuna's samplers by name; `grid` measures all candidates, so that any order will do."""


class CandidateSampler(BaseSampler):
    """Draws one legal candidate that was not seen, as the parameters of a trial.

    Args:
        space: what may be drawn.
        inner: proposes; its proposal is drawn to the nearest legal candidate that is new.
        planned: drawn instead of a proposal where given.
        seen: candidates that are not drawn again.
        rng: decides what neither the proposal nor the space does.
        superseded: numbers of trials that `inner` does not learn from, as there are others in their place.
    """

    def __init__(
        self,
        space: Space,
        inner: BaseSampler,
        planned: Candidate | None,
        seen: Collection[Candidate],
        rng: random.Random,
        superseded: Collection[int] = (),
    ) -> None:
        self.space = space
        self._chosen = planned
        self._inner = inner
        self._seen = seen
        self._rng = rng
        self._superseded = superseded

    def candidate(self, trial: Trial) -> Candidate:
        """The candidate drawn for `trial`, which must have been asked with this sampler.

        Raises:
            LookupError: every candidate was seen.
        """
        drawn = trial.relative_params
        if self._chosen is None:
            raise LookupError(f"every candidate was seen; drew {drawn}")
        return self._chosen

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Chooses the candidate; the distributions of its active knobs."""
        if self._chosen is None:
            proposed = self._proposal(study, trial)
            self._chosen = unseen_near(self.space, proposed, self._seen, self._rng)
        active = self._chosen.values if self._chosen else {}
        return {d.knob: distribution(d) for d in self.space.dimensions if d.knob in active}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The candidate's active knobs, as Optuna stores them."""
        del study, trial
        active = self._chosen.values if self._chosen else {}
        return {knob: encoded(active[knob]) for knob in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Left to the inner sampler; not used for the knobs of a candidate."""
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on to the inner sampler."""
        self._inner.before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on to the inner sampler."""
        self._inner.after_trial(study, trial, state, values)

    def _proposal(self, study: Study, trial: FrozenTrial) -> Candidate:
        study = without(study, self._superseded)
        relative_space = self._inner.infer_relative_search_space(study, trial)
        relative = self._inner.sample_relative(study, trial, relative_space)

        def choose(dimension: Dimension, legal: tuple[KnobValue, ...]) -> KnobValue:
            if len(legal) == 1:
                return legal[0]
            values = distribution(dimension)
            drawn = relative.get(dimension.knob)
            if drawn is None:
                drawn = self._inner.sample_independent(study, trial, dimension.knob, values)
            wanted = decoded(dimension, drawn)
            if wanted not in legal and not dimension.ordinal:
                return self._rng.choice(legal)
            return nearest(dimension, legal, wanted)

        return complete(self.space, choose)


def without(study: Study, numbers: Collection[int]) -> Study:
    """A copy in memory of what is finished of a study, without these trials; itself where there are none.

    Optuna has no way to take a finished trial back.
    """
    if not numbers:
        return study
    copy = create_study(storage=InMemoryStorage(), direction=study.direction)
    trials = study.get_trials(deepcopy=False)
    copy.add_trials([one for one in trials if one.state.is_finished() and one.number not in numbers])
    return copy


def distribution(dimension: Dimension) -> BaseDistribution:
    """How Optuna sees a dimension: a number where the order means something, else a category.

    A number covers the whole range, also values that are not in the grid: a proposal goes to the nearest one
    that is.
    """
    values = dimension.values
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if not dimension.ordinal or len(numbers) < len(values):
        return CategoricalDistribution([encoded(value) for value in values])
    low, high = min(numbers), max(numbers)
    if all(isinstance(value, int) for value in numbers):
        return IntDistribution(int(low), int(high), log=low >= 1)
    return FloatDistribution(low, high, log=low > 0)


def encoded(value: KnobValue) -> bool | int | float | str:
    """`value` as an Optuna parameter: lists are written with commas."""
    return ",".join(str(item) for item in value) if isinstance(value, tuple) else value


def decoded(dimension: Dimension, parameter: Any) -> KnobValue:
    """The value of `dimension` that `parameter` stands for; a number outside the grid stays as it is."""
    for value in dimension.values:
        parameter_of_value = encoded(value)
        if parameter_of_value == parameter and isinstance(value, bool) == isinstance(parameter, bool):
            return value
    number: KnobValue = parameter
    return number


def suggest(trial: Trial, dimension: Dimension) -> None:
    """Makes `dimension` a parameter of `trial`, with the value that its sampler drew."""
    values = distribution(dimension)
    if isinstance(values, IntDistribution):
        trial.suggest_int(dimension.knob, values.low, values.high, log=values.log)
    elif isinstance(values, FloatDistribution):
        trial.suggest_float(dimension.knob, values.low, values.high, log=values.log)
    elif isinstance(values, CategoricalDistribution):
        trial.suggest_categorical(dimension.knob, values.choices)

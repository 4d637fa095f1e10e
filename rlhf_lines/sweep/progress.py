"""One bar over a whole sweep: how much is done of all phases, and an estimate of what is left."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_lines.progress import Bar
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.sweep.groups import Specs, simplex
from rlhf_lines.sweep.inputs import Inputs
from rlhf_lines.sweep.store import Store


VALIDATION, TEST, PREDICTED, CONTROL = "validation prompts", "test prompts", "predicted weights", "control texts"
SEARCH = "search on validation prompts"
# How much a phase takes, in the order in which phases come.
WORK = {
    VALIDATION: "{} completions on validation prompts",
    SEARCH: "at most {} of a search on validation prompts",
    TEST: "{} completions on test prompts",
    PREDICTED: "{} completions at predicted weights",
    CONTROL: "{} readings of control texts",
}
BEYOND = "up to {} more where the best scaling lies at an edge of those given"


class Progress:
    """The bar, a context manager. Its unit is a completion, or a text outside the task that a spec reads.

        total = validation specs x validation prompts x samples + test specs x (test prompts x samples + texts)

    Each spec counts once, also where groups share it. Before a phase begins, its specs are not known: its points are
    counted then, and `enter` corrects the total. Candidates beyond an edge are not in the total before they are needed:
    while they may come, the bar says how many units they are at most. Where `max_forgetting` limits the choice,
    validation specs read the texts, too.

    Args:
        specs: how many specs are expected in the phases `VALIDATION`, `SEARCH`, `TEST` and `PREDICTED`; those that are
            absent have none.
        units: how many units a spec has in each phase.
        done: how many units a stopped run has left.
        beyond: how many specs `VALIDATION` may have beside, of candidates beyond an edge.
    """

    def __init__(self, specs: Mapping[str, int], units: Mapping[str, int], done: int, beyond: int = 0) -> None:
        self._specs, self._units, self._beyond, self._searched = dict(specs), units, beyond, 0
        unit = "completions and texts" if units.get(CONTROL) else "completions"
        first = next(phase for phase in (VALIDATION, TEST) if phase in specs)
        self._bar = Bar(total=self.total, initial=done, desc=self._described(first), unit=unit)

    @classmethod
    def of(cls, config: SweepConfig, inputs: Inputs, specs: Specs, store: Store) -> Progress:
        """The progress of a sweep, as much of it done as its store holds."""
        makers = specs.makers({name: tried[0] for name, tried in specs.candidates.items()})  # as many for each choice
        beyond = 0
        expected = {TEST: sum(map(len, specs.fixed().values())) + len(makers) * len(specs.weights)}
        if "validation" in inputs.prompts:
            weights = simplex(len(config.policies), config.validation_weights)
            anchors = sum(map(len, specs.anchors().values()))
            expected[VALIDATION] = anchors + specs.count_tried(len(weights))
            beyond = config.most_extensions * len(weights)
        if config.sampler == "map":
            expected[PREDICTED] = len(makers) * config.map_points
        if config.searches:
            expected[SEARCH] = config.search_points
            expected[TEST] += len(specs.weights)
        of_split = {split: len(prompts) * config.samples_per_prompt for split, prompts in inputs.prompts.items()}
        read_early = len(inputs.forgetting) if config.max_forgetting is not None else 0
        units = {
            VALIDATION: of_split.get("validation", 0) + read_early,
            SEARCH: of_split.get("validation", 0) + read_early,
            TEST: of_split["test"],
            PREDICTED: of_split["test"],
            CONTROL: len(inputs.forgetting),
        }
        return cls(expected, units, len(store.finished()) + len(store.finished_forgetting()), beyond)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def total(self) -> int:
        """All units of the run, as far as they are known."""
        return sum(self._of_phases().values())

    @property
    def to_come(self) -> str:
        """What the run will do, a phase after the other, which the total of the bar is the sum of."""
        of_phases, parts = self._of_phases(), []
        for phase, words in WORK.items():
            if of_phases.get(phase):
                parts.append(words.format(f"{of_phases[phase]:,}"))
                if phase == VALIDATION and self._beyond:
                    parts[-1] += f" ({BEYOND.format(f'{self._beyond * self._units[VALIDATION]:,}')})"
        return ", then ".join(parts)

    def _of_phases(self) -> dict[str, int]:
        """How many units each phase has, as far as they are known."""
        counts = {CONTROL: self._specs[TEST] + self._specs.get(PREDICTED, 0), **self._specs}
        return {phase: count * self._units[phase] for phase, count in counts.items()}

    def enter(self, phase: str, specs: int | None = None) -> None:
        """Begin a phase: say which it is, and correct the total.

        Args:
            phase: `VALIDATION`, `SEARCH`, `TEST`, `PREDICTED` or `CONTROL`.
            specs: how many specs are measured in it, of `SEARCH` how many more; left out of `CONTROL`, those of `TEST`
                and `PREDICTED`.
        """
        if phase == SEARCH:
            self._searched += specs
            specs = max(self._searched, self._specs[phase])
        elif SEARCH in self._specs and phase != VALIDATION:
            self._specs[SEARCH] = self._searched  # it may have ended early
        if specs is not None:
            if phase == VALIDATION:
                self._beyond -= max(specs - self._specs[phase], 0)
            self._specs[phase] = specs
        self._bar.begin(self._described(phase), self.total)

    def update(self, count: int) -> None:
        """Count units that are done."""
        self._bar.update(count)

    def _described(self, phase: str) -> str:
        more = self._beyond * self._units[VALIDATION] if phase == VALIDATION else 0
        return f"sweep, {phase}{f' (up to {more:,} more may come)' if more else ''}"

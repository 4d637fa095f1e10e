"""What a config says about specs: weights, scalings to choose from, and further groups."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

from rlhf_lines.config import A_NAME, from_json, is_name
from rlhf_lines.errors import counted, one_of, unknown_name
from rlhf_lines.merge.rules import RULES, profile_of, read_options
from rlhf_lines.merge.schedules import SCHEDULES
from rlhf_lines.merge.spec import MergeSpec, number_or_auto
from rlhf_lines.pareto.schema import GROUPS, label
from rlhf_lines.sweep.router import Router


Alpha = float | Literal["auto"]
MOST_POINTS = 100_000  # of a grid of weights


class Scaling(NamedTuple):
    """alpha, beta and schedule, as LiNeS has them."""

    alpha: Alpha
    beta: float
    schedule: str = "linear"

    @property
    def merged(self) -> Scaling:
        """The scaling as specs have it, one form for one merge: with beta 0 no schedule matters, and it is linear."""
        return self if self.beta else self._replace(schedule="linear")

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves the SFT model alone."""
        return not self.alpha and not self.beta

    @classmethod
    def of(cls, item: str | Sequence) -> Scaling:
        """The scaling that a text as `1.0 0.5 sqrt`, or a list of its parts, stands for.

        Raises:
            ValueError: a part is missing, too much or wrong.
        """
        parts = item.split() if isinstance(item, str) else list(item) if isinstance(item, Sequence) else []
        if not 2 <= len(parts) <= 3:
            raise ValueError(f"scalings holds {item!r}, expected alpha, beta and, if not linear, a schedule")
        for problem in _growth_problems(parts[1:2], parts[2:]):
            raise ValueError(problem)
        return cls(read_alpha(parts[0]), float(parts[1]), *parts[2:])


def read_alpha(value: object) -> Alpha:
    """The alpha that a text or a number stands for.

    Raises:
        ValueError: it is neither a finite number nor `auto`.
    """
    with contextlib.suppress(ValueError):
        alpha = number_or_auto("alpha", value)
        if alpha == "auto" or math.isfinite(alpha):
            return alpha
    raise ValueError(f"alphas or scalings hold alpha {value!r}, expected finite numbers or auto")


def grid(alphas: Sequence, betas: Sequence[float], schedules: Sequence[str]) -> list[Scaling]:
    """Every alpha with every beta and schedule, the last to change first; each merge once, see `distinct`."""
    return distinct([Scaling(*scaling) for scaling in itertools.product(alphas, betas, schedules)])


def distinct(scalings: Sequence[Scaling]) -> list[Scaling]:
    """The scalings without those that make the merge of one before.

    >>> distinct([Scaling(1.0, 0.0), Scaling(1.0, 0.0, "sqrt"), Scaling(1.0, 0.5, "sqrt")])
    [Scaling(alpha=1.0, beta=0.0, schedule='linear'), Scaling(alpha=1.0, beta=0.5, schedule='sqrt')]
    """
    found: dict[Scaling, Scaling] = {}
    for scaling in scalings:
        found.setdefault(scaling.merged, scaling)
    return list(found.values())


def growth_given(
    scalings: Sequence[Scaling], betas: Sequence[float], schedules: Sequence[str]
) -> list[tuple[float, str]]:
    """Every beta with its schedule, of the list or of the grid, as they are given: also what makes no further merge."""
    return [(scaling.beta, scaling.schedule) for scaling in scalings] or [*itertools.product(betas, schedules)]


def scaling_problems(
    scalings: Sequence[Scaling],
    alphas: Sequence[Alpha],
    betas: Sequence[float],
    schedules: Sequence[str],
    *,
    given: Sequence,
) -> Iterator[str]:
    """What is wrong with the list of scalings, which was given as texts or lists, or, without one, with the grid."""
    if scalings:
        if len(set(scalings)) < len(scalings):
            yield f"scalings is {list(given)}, expected every one once"
        return
    for name, values in (("alphas", alphas), ("betas", betas), ("schedules", schedules)):
        if not values:
            yield f"{name} is empty, expected one value or more"
        if len(set(values)) < len(values):
            yield f"{name} is {list(values)}, expected every value once"
    yield from _growth_problems(betas, schedules)


def read_weights(item: str | Sequence[float]) -> tuple[float, ...]:
    """The numbers of a text as `0.3 0.7`, or of a list; NaN, which no weight is, for what is no number."""
    parts = item.replace(",", " ").split() if isinstance(item, str) else item
    return tuple(_number(part) for part in (parts if isinstance(parts, Sequence) else [parts]))


def weights_problems(
    vectors: Sequence[tuple[float, ...]], num_policies: int, *, given: Sequence, auto: Sequence[str]
) -> Iterator[str]:
    """What is wrong with the weights of sampler list, which were given as a list of texts or of lists.

    `auto` names the groups whose alpha is measured on what the weights merge.
    """
    for position, (vector, item) in enumerate(zip(vectors, given, strict=True)):
        if len(vector) != num_policies or not all(map(math.isfinite, vector)):
            yield f"weights holds {item!r}, expected {num_policies} numbers, one per policy"
        elif vector in vectors[:position]:
            yield f"weights holds {item!r} twice: give every point once"
        elif auto and not any(vector):
            yield (
                f"weights holds {item!r}, which merge nothing on which alpha auto of {', '.join(map(label, auto))} "
                "could be measured: leave the point out, as the SFT model is a point anyway, or give alpha as a number"
            )


class Tunable:
    """A group of merges, which says what its scaling is, or what that is chosen from on validation prompts.

    Attributes:
        alpha, beta, schedule: as in `MergeSpec`; an alpha of None is left out.
        alphas, betas, schedules: in place of one of each, what to choose from; or `scalings`.
    """

    alpha: Alpha | None = None
    beta: float = 0.0
    schedule: str = "linear"
    alphas: Sequence[Alpha] = ()
    betas: Sequence[float] = ()
    schedules: Sequence[str] = ()
    scalings: Sequence[Scaling] = ()

    @property
    def leaves_alpha_out(self) -> bool:
        """Whether it does not say what alpha is, or is chosen from."""
        return self.alpha is None and not (self.alphas or self.scalings)

    @property
    def measures_alpha(self) -> bool:
        """Whether alpha may be `auto`, which is measured on residuals."""
        return True

    def is_tuned(self, factors: Sequence[Alpha]) -> bool:
        """Whether its scaling is chosen: it has lists, or leaves alpha out where there are several factors."""
        lists = self.alphas or self.betas or self.schedules or self.scalings
        return bool(lists) or len(self.candidates(factors)) > 1

    def candidates(self, factors: Sequence[Alpha]) -> list[Scaling]:
        """The scalings to choose from, a single one where there is no choice.

        Args:
            factors: what an alpha that is left out is chosen from: those of `scaled`. A single one is no choice, and
                then alpha is 1, the merge as its rule has it.
        """
        factors = [alpha for alpha in factors if alpha != "auto" or self.measures_alpha]
        left_out = factors if len(factors) > 1 else (1.0,)
        alphas = left_out if self.leaves_alpha_out else self.alphas or (self.alpha,)
        return distinct(self.scalings) or grid(alphas, self.betas or (self.beta,), self.schedules or (self.schedule,))


@dataclass(frozen=True)
class GroupEntry(Tunable):
    """One item of `groups` in a config: a merge at all weights of the sweep.

    Attributes:
        name: what the group is called in the front.
        rule, options, beta, schedule: as in `MergeSpec`.
        alpha: likewise; None where it is left out, and then chosen among the factors of `scaled`.
        lines: likewise.
        statistics: folders of `rlhf-lines fisher` or `gram`, one per policy, for the rules of these names.
        router: of rule `twin`, a folder of `rlhf-lines router`, which gives the weights of a prompt; alpha, beta and
            schedule are then those that it was learned at, and the options hold its digest.
        alphas, betas, schedules: in place of one of each, what to choose from on validation prompts; or `scalings`.
    """

    name: str
    rule: str = "linear"
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha: Alpha | None = None
    beta: float = 0.0
    schedule: str = "linear"
    lines: Literal["after", "before"] = "after"
    statistics: tuple[str, ...] = ()
    router: str | None = None
    alphas: tuple[Alpha, ...] = ()
    betas: tuple[float, ...] = ()
    schedules: tuple[str, ...] = ()
    scalings: tuple[Scaling, ...] = ()

    @classmethod
    def of(cls, item: str | Mapping[str, Any] | GroupEntry) -> GroupEntry:
        """The group that a mapping, also as JSON, stands for; an entry stands for itself.

        Raises:
            ValueError: a key is unknown, the name is missing, or a value is wrong.
        """
        if isinstance(item, cls):
            return item
        item = from_json("groups", item)
        if not isinstance(item, Mapping) or not item.get("name"):
            raise ValueError(f"groups holds {item!r}, expected a mapping with the key name")
        known = [entry.name for entry in fields(cls)]
        for key in item:
            if key not in known:
                raise ValueError(f"groups: {item['name']}: {unknown_name('key', key, known)}")
        return cls(**item)

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise ValueError(f"groups has name {self.name!r}, expected {A_NAME}")
        folders = self.statistics
        try:
            if isinstance(folders, str) or not (isinstance(folders, Sequence) and all(map(_is_text, folders))):
                raise ValueError(f"statistics is {folders!r}, expected a list of folders, one per policy")
            object.__setattr__(self, "statistics", tuple(folders))
            object.__setattr__(self, "alpha", None if self.alpha is None else number_or_auto("alpha", self.alpha))
            for name, read in LISTS.items():
                object.__setattr__(self, name, tuple(map(read, self._list(name))))
            for problem in self._problems():
                raise ValueError(problem)
            object.__setattr__(self, "options", read_options(self.rule, self.options))
            MergeSpec(self.rule, (1.0,), schedule=self.schedule, options=self.options)  # knows both, or says so
            if self.statistics and RULES[self.rule].statistics is None:
                raise ValueError(f"statistics are given, but rule {self.rule!r} uses none; leave them out")
            self._take_router()
            for scaling in self.candidates(()):
                self.spec((1.0,), scaling)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"groups: {self.name}: {error}") from None

    @property
    def measures_alpha(self) -> bool:
        """Whether alpha may be `auto`: a rule on factors, or behind LiNeS, has no residual before it is scaled."""
        return not RULES[self.rule].on_factors and self.lines == "after"

    @property
    def is_linear(self) -> bool:
        """Whether its merges, at the weights of a prompt where a router gives such, are rows of coefficients."""
        return RULES[self.rule].is_linear or self.router is not None

    def spec(self, weights: tuple[float, ...], scaling: Scaling) -> MergeSpec:
        """The spec at some weights with one of the `candidates`."""
        return MergeSpec(self.rule, weights, *scaling.merged, self.options, self.lines)

    def _list(self, name: str) -> Sequence:
        items = getattr(self, name)
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise ValueError(f"{name} is {items!r}, expected a list")
        return items

    def _take_router(self) -> None:
        """Put the router's digest among the options, and its scaling in place of what is left out."""
        if "router" in self.options:
            raise ValueError("options hold a router: name its folder in the key router of the group")
        if self.router is None:
            return
        if self.rule != "twin":
            raise ValueError(f"router is given, but rule is {self.rule}: leave it out, or use rule twin")
        if not _is_text(self.router):
            raise ValueError(f"router is {self.router!r}, expected a folder of rlhf-lines router")
        scaling = ("alpha", "beta", "schedule", *LISTS)
        defaults = {entry.name: entry.default for entry in fields(self)}
        if given := [name for name in scaling if getattr(self, name) != defaults[name]]:
            raise ValueError(
                f"router and {' and '.join(given)} are given: leave {' and '.join(given)} out, the router has those "
                "that it was learned at"
            )
        router = Router.read(self.router)
        object.__setattr__(self, "options", {**self.options, "router": router.digest})
        for name in ("alpha", "beta", "schedule"):
            object.__setattr__(self, name, router.card[name])

    def _problems(self) -> Iterator[str]:
        defaults = {entry.name: entry.default for entry in fields(self)}
        for one, several in (("alpha", "alphas"), ("beta", "betas"), ("schedule", "schedules")):
            is_given = {one: getattr(self, one) != defaults[one]}
            is_given |= {name: bool(getattr(self, name)) for name in (several, "scalings")}
            if sum(is_given.values()) > 1:
                yield f"{' and '.join(filter(is_given.get, is_given))} are given: keep one"
        lists = self.alphas or (1.0,), self.betas or (0.0,), self.schedules or ("linear",)
        yield from scaling_problems(self.scalings, *lists, given=self.scalings)


def _read_beta(value: object) -> float:
    for problem in _growth_problems([value], ()):
        raise ValueError(problem)
    return float(value)


LISTS = {"alphas": read_alpha, "betas": _read_beta, "schedules": str, "scalings": Scaling.of}


def grid_problems(name: str, num_weights: int, policies: Sequence[str], way_out: str = "") -> Iterator[str]:
    """What is wrong with a grid of weights: it has C(n + K - 2, K - 1) points, n along each axis."""
    count = max(1, len(policies))
    points = math.comb(max(2, num_weights) + count - 2, count - 1)
    if points > MOST_POINTS:
        yield (
            f"{name} {num_weights} with {counted(count, 'policy', 'policies')} makes {points:,} points, expected at "
            f"most {MOST_POINTS:,}: give a smaller one{way_out}"
        )


def group_problems(entries: Sequence[GroupEntry]) -> Iterator[str]:
    """What is wrong with groups beside one another: a name that is taken, statistics that differ for one rule."""
    names = [entry.name for entry in entries]
    for name in dict.fromkeys(names):
        if name.lower() in GROUPS:
            yield f"groups: {name!r} is the name of a group that a sweep has anyway: choose another one"
        if names.count(name) > 1:
            yield f"groups: {name!r} occurs twice: give every group a name of its own"
    for rule in dict.fromkeys(entry.rule for entry in entries):
        if len({entry.statistics for entry in entries if entry.rule == rule}) > 1:
            yield f"groups: rule {rule!r} has different statistics: give all of its groups the same"


def profile_problems(
    entries: Sequence[GroupEntry], *, policies: int | None = None, num_layers: int | None = None
) -> Iterator[str]:
    """What is wrong with groups whose factors by layer are of other numbers of policies or layers."""
    for entry in entries:
        try:
            if profile := profile_of(entry.rule, entry.options):
                profile.check(policies=policies, num_layers=num_layers)
        except ValueError as error:
            yield f"groups: {entry.name}: {error}"


def _growth_problems(betas: Sequence, schedules: Sequence[str]) -> Iterator[str]:
    """What is wrong with what makes LiNeS' factors grow."""
    for beta in betas:
        if not math.isfinite(_number(beta)):
            yield f"betas or scalings hold beta {beta!r}, expected finite numbers"
    for schedule in schedules:
        try:
            one_of("schedule", schedule, SCHEDULES)
        except ValueError as error:
            yield str(error)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _number(value: object) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan

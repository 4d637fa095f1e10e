"""`front.json`: every key of it, how it is read and written, and how its groups of points are called and drawn.

Every key is always there. What a run does not have is null or empty, and the comment beside the key says when.
Additions keep the format: a reader leaves alone what it does not know, and takes what an earlier version did not write
yet (`ADDED`) for empty. A file that lacks another key is to be made again from the run store.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from rlhf_lines.artifact import write_whole


FORMAT = 1
FILE_NAME = "front.json"
# To format 1: an earlier version asked no benchmarks, and told answers by means over samples.
ADDED = ("benchmarks", "points[].benchmark_changes", "answers")
# What is measured of completions without a reward model. A score cannot have one of these names.
BY_OBJECTIVE = ("length_correlation", "at_matched_length")  # no mean, but one of each objective by its name
METRICS = ("tokens", "share_empty", "share_cut", "repetition", "distinct", "win_rate", *BY_OBJECTIVE, "log_ratio")
BESIDE = ("kl", "perplexity")  # likewise; a point has them beside its scores and metrics
# What people read for a measure, by its name here; the others have no other name.
WORDS = {
    "kl": "KL",
    "log_ratio": "log-ratio",
    "share_empty": "empty",
    "share_cut": "cut",
    "win_rate": "win rate",
    "all_better": "better in all",
    "all_worse": "worse in all",
    "length_correlation": "correlation",
    "at_matched_length": "at equal length",
    **{name: name for name in ("perplexity", "tokens", "repetition", "distinct")},
}


class EverySpec(TypedDict):
    """What every merge says."""

    rule: str
    weights: list[float]  # one for each of the first policies of the front; all 0 is the SFT model
    alpha: float | Literal["auto"]  # a number, unless it is measured only when the policies are merged
    beta: float
    schedule: str
    options: dict[str, Any]  # of the rule; empty where all are left at their defaults


class Spec(EverySpec, total=False):
    """A merge, as `MergeSpec.to_dict` writes it."""

    lines: Literal["before"]  # where LiNeS scales the residuals of the policies, not that of the rule


class Mean(TypedDict):
    """A mean with the ends of its interval."""

    mean: float
    low: float | None  # null, as `high`, where no interval would hold what it says
    high: float | None


class Value(TypedDict):
    """A number with the ends of its interval."""

    value: float
    low: float | None  # null, as `high`, where no interval would hold what it says
    high: float | None


class GroupMeasure(Value):
    """A measure of a group, which is made of the best of noisy points."""

    corrected: float  # without the bias of that choice; the interval is around it


class Difference(GroupMeasure):
    """A difference between two groups, paired by prompts; its interval is of this difference alone."""

    probability_positive: float  # share of the resamples in which it is above 0, of exactly 0 half
    p_value: float | None  # two-sided, of no difference; null without an interval
    adjusted_p_value: float | None  # by Holm, over the comparisons of its family (`comparisons.families`)


class WinRate(Mean):
    """How often a point beats the SFT model in every objective: 1; loses in every one: 0; else 1/2."""

    by_objective: dict[str, Mean]  # the share of wins, a tie half
    all_better: Mean
    all_worse: Mean


class BehaviourEntry(TypedDict):
    """What `front.json` says of the completions of a point, under `metrics`."""

    tokens: Mean | None  # a completion, the end token included; null, as the next four, without completions
    share_empty: Mean | None  # of the completions
    share_cut: Mean | None  # null, too, where max_new_tokens is not known
    repetition: Mean | None  # share of the 4-grams of a completion that occurred before in it
    distinct: Mean | None  # different texts over completions, without an interval
    win_rate: WinRate | None  # null, as `at_matched_length`, without the SFT model's completions
    length_correlation: dict[str, Mean | None]  # by objective; null where scores or lengths are all equal
    at_matched_length: dict[str, Mean | None]  # by objective; null where lengths do not overlap


Metric = Mean | WinRate | dict[str, Mean | None] | None


class Changes(TypedDict):
    """The mean of a point minus that of the SFT model, paired by prompts."""

    tokens: Value
    share_empty: Value
    share_cut: Value | None
    repetition: Value
    distinct: Value  # without an interval, as the metric


class LostEntry(TypedDict):
    """A prompt for which the scores of a point fell."""

    prompt: int  # its id in the run store
    loss: float  # in standard deviations of the SFT model's scores, averaged over objectives: see `lost_most`
    differences: dict[str, float]  # mean score minus the SFT model's, by objective


class AskedTask(TypedDict):
    """A task of lm-eval, as points were asked it."""

    version: str | float | None  # as its config says
    hash: str  # of documents, prompts and targets, as lm-eval makes it
    documents: int
    num_fewshot: int  # examples before each question


class Benchmark(TypedDict):
    """What points were asked by lm-eval: a task, or several in one group."""

    lm_eval: str  # its version
    limit: int | None  # how many documents of each task, at most; null is all
    apply_chat_template: bool
    system_instruction: str | None  # what came before everything else; null is nothing
    tasks: dict[str, AskedTask]
    metrics: dict[str, bool | None]  # by their names in `metrics` of points: whether higher is better; null is unknown


class Measured(TypedDict):
    """What was measured of a point."""

    scores: dict[str, Mean]  # by objective
    metrics: dict[str, Metric]  # `BehaviourEntry`, and by name what else was measured; null where this point was not
    kl: Mean | None  # to the SFT model, in nats; null where it was not measured, and of greedy completions
    prompts: int
    samples_per_prompt: int
    perplexity: Mean | None  # of texts outside the task; null where none were read


class PointEntry(Measured):
    """One merged policy with what was measured of it."""

    id: int  # in the run; unique
    group: str
    spec: Spec
    label: str  # what people read: the policy's name if it is a single one, else the weights
    preference: list[float] | None  # the weights that groups share, whatever they merge; null where there are none
    single_policy: int | None  # index into `policies` of the trained policy that it is, unchanged; null for a mixture
    merge_arguments: list[str] | None  # of `rlhf-lines merge`, but for --output_dir; null for the SFT model
    changes: Changes | None  # null without completions of the point or of the SFT model
    lost_most: list[LostEntry] | None  # the worst first, none that did not lose; null as `changes`
    benchmark_changes: dict[str, Value]  # by metric, minus the SFT model's; empty where one of the two was not asked


class GroupFront(TypedDict):
    """The front of a group."""

    hypervolume: GroupMeasure
    expected_utility: GroupMeasure
    nondominated: list[int]  # ids of the points that no other point of the group dominates
    hull: list[int]  # ids of the points that are best for some preference


class Comparison(TypedDict):
    """Two groups: a minus b."""

    a: str
    b: str
    hypervolume_difference: Difference
    expected_utility_difference: Difference
    equal_kl_difference: Difference | None  # of the mean hypervolume within a KL budget; null without common budgets
    kl_budgets: list[float] | None  # the smallest and the largest budget, in nats; null as `equal_kl_difference`
    equal_kl_hypervolumes: list[float] | None  # of a and of b
    no_equal_kl: str | None  # why there is no `equal_kl_difference`; null where there is one
    # Of a against b: better or worse by all measures, undecided where none differs, mixed where they do not agree;
    # higher or lower where they agree without equal KL.
    verdict: Literal["better", "worse", "higher", "lower", "mixed", "undecided"]


class ScalingEntry(TypedDict):
    """A scaling of LiNeS."""

    alpha: float | Literal["auto"]
    beta: float
    schedule: str


class GridEntry(ScalingEntry):
    """A scaling that was tried."""

    hypervolume: GroupMeasure
    kl: float | None  # the largest mean KL of its points, in nats; null where it is no KL (see `PointEntry`)
    forgetting: float | None  # their largest perplexity over the SFT model's; null without `max_forgetting`
    lowest: dict[str, float]  # the smallest mean of its points in each score of `minimum`
    within_limits: bool  # whether it could be chosen


class Tuning(TypedDict):
    """How alpha, beta and schedule of a group were chosen."""

    grid: list[GridEntry]
    chosen: ScalingEntry
    at_edge: bool  # its alpha or beta is the largest or smallest of those that were tried, where they are two or more


class Validation(Tuning):
    """What was chosen on validation prompts: for LiNeS, and for the other groups that have a scaling to choose."""

    prompts: int
    weights: int  # how many, for every scaling
    reference_point: list[float]
    max_kl: float | None  # the limits within which was chosen; null where there is none
    max_forgetting: float | None
    minimum: dict[str, float]  # what the mean of every point has to reach, by score; empty where there is no limit
    groups: dict[str, Tuning]


class Prediction(TypedDict):
    """A point that was measured because a fit predicted it to be on the front."""

    id: int
    predicted: dict[str, float]  # mean score, by reward
    measured: dict[str, float]


class SurrogateEntry(TypedDict):
    """The quadratic of the weights that was fitted to the mean scores of a group."""

    sampled: list[int]  # ids of the points that were fitted
    predicted: list[Prediction]  # empty where the fit found nothing new
    monomials: list[str]
    coefficients: dict[str, list[float]]  # by reward, one for each of `monomials`
    r2: dict[str, float | None]  # by reward; null where all its scores are equal


class Forgetting(TypedDict):
    """The texts outside the task."""

    texts: int
    tokens: int  # how many of them are predicted
    source: str


class PolicyEntry(TypedDict):
    """The signature of a policy: of its difference to the SFT model, from its LoRA factors."""

    name: str
    norm: float  # Frobenius
    relative_norm: float | None  # over that of the SFT model's weights in the adapted modules; null where not read
    norms: list[float]  # by layer, as in `layers`
    relative_norms: list[float] | None
    depth: float | None  # mean place of its squared norm: 0 is the first layer, 1 the last; null outside the layers
    spectrum: list[float] | None  # share of its squared norm in the first directions of each module; null where it is 0
    unlike: bool | None  # whether one of these is an outlier among the policies; null with fewer than three
    reason: str | None  # why


class Audit(TypedDict):
    """What the weights of the policies say of them."""

    layers: list[int | None]  # 0-based; null is what lies outside the layers
    directions: list[int]  # how many of them each number in a `spectrum` is of
    cosine: list[list[float | None]]  # of every two policies
    layer_cosines: list[list[list[float | None]]]  # the same, by layer
    policies: list[PolicyEntry]
    of_two: str | None  # what can be said of two policies, in sentences; null of any other number


class Front(TypedDict):
    """The content of `front.json`."""

    format: int
    rewards: list[str]  # the same as `objectives`
    objectives: list[str]  # the scores that fronts are made of
    metrics: list[str]  # the other scores, of which a point has the mean in its `metrics`
    split: str
    reference_point: list[float]  # one number per objective, as `ideal_point`
    reference_point_rule: str
    ideal_point: list[float]
    utility_rule: str
    seed: int
    resamples: int
    confidence: float
    points: list[PointEntry]  # by id
    fronts: dict[str, GroupFront]  # of the groups with two points or more
    comparisons: list[Comparison]  # of all pairs of `fronts`
    not_compared: str | None  # which groups of a single point are no front, in a sentence; null where none is
    sft_model: str | None  # null where the points are no merges of known policies
    policies: list[str]  # those merged, the MORLHF runs, those of further sets; empty where they are not known
    validation: Validation | None  # null where a single scaling was given, so that nothing was chosen
    surrogate: dict[str, SurrogateEntry] | None  # by group; null unless the sampler is map
    forgetting: Forgetting | None  # null where no texts outside the task were read
    audit: Audit | None  # null in runs of versions that made none
    benchmarks: dict[str, Benchmark]  # by the name under which they were asked for; empty where none were
    answers: list[str] | None  # the scores of which every single one is 0 or 1; null in files of earlier versions


def write_front(folder: str | Path, front: Front) -> Path:
    """Write `front.json` into `folder`, whole or not at all, and return its path.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: a number is not finite, which JSON cannot hold.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {FILE_NAME}: {folder} is not a folder; create it or check the path")
    text = json.dumps(front, indent=2, allow_nan=False) + "\n"
    write_whole(folder / FILE_NAME, text)
    return folder / FILE_NAME


def read_front(folder: str | Path) -> Front:
    """The content of `front.json` in `folder`; what is `ADDED` is empty where an earlier version wrote the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a front of format 1, another key is missing or a value is of another type.
    """
    path, remedy = Path(folder) / FILE_NAME, f"rlhf-lines front {folder}"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected the folder of a finished sweep; where it is one, make it with: {remedy}"
        )
    try:
        front = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path} is not valid JSON ({error}); make it again with: {remedy}") from None
    found = front.get("format") if isinstance(front, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; expected {FORMAT}; make it again with: {remedy}")
    wrong = list(faults(front))
    # A key that one point lacks, all of them lack: it is named once.
    missing = dict.fromkeys(re.sub(r"\[\d+\]", "[]", key) for problem, key in wrong if problem == "missing")
    if missing := [key for key in missing if key not in ADDED]:
        raise ValueError(f"{path} has no {', '.join(missing)}; make it again with: {remedy}")
    for problem, key in wrong:
        if problem == "wrong":
            raise ValueError(f"{path} has a wrong value for {key}; make it again with: {remedy}")
    front.setdefault("benchmarks", {})
    front.setdefault("answers", None)
    for point in front["points"]:
        point.setdefault("benchmark_changes", {})
    return front


def groups_of(front: Front) -> list[str]:
    """The names of the groups, in the order of their first points."""
    return list(dict.fromkeys(point["group"] for point in front["points"]))


def nondominated(front: Front) -> set[int]:
    """The ids of the points that no other point of their group dominates, of all groups that have a front."""
    return {i for entry in front["fronts"].values() for i in entry["nondominated"]}


def faults(value: Any, kind: Any = Front, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield how a JSON value differs from a type: `missing`, `unknown` (both of keys) or `wrong` (a value), and where.

    >>> list(faults({"mean": 1.0, "low": "0", "hi": 2.0}, Mean))
    [('missing', 'high'), ('unknown', 'hi'), ('wrong', 'low')]
    """
    container, parts = (dict if is_typeddict(kind) else get_origin(kind) or kind), get_args(kind)
    if container in (Union, types.UnionType):
        each = [list(faults(value, part, key)) for part in parts]
        yield from min(each, key=lambda found: (("wrong", key) in found, len(found)))  # those of the likeliest part
    elif container is Literal:
        yield from () if value in parts else [("wrong", key)]
    elif container is not Any and (
        isinstance(value, bool) is not (container is bool)
        or not isinstance(value, (int, float) if container is float else container)
    ):
        yield "wrong", key
    elif is_typeddict(kind):
        known, start = _hints(kind), f"{key}." if key else ""
        yield from (("missing", start + name) for name in known if name in kind.__required_keys__ - value.keys())
        yield from (("unknown", start + name) for name in value if name not in known)
        for name in filter(value.__contains__, known):
            yield from faults(value[name], known[name], start + name)
    elif container in (list, dict):
        for place, item in enumerate(value) if container is list else value.items():
            yield from faults(item, parts[-1], f"{key}[{place}]")


_hints = cache(get_type_hints)


@dataclass(frozen=True)
class Group:
    """What people read for a group, and how its points are drawn.

    Attributes:
        name: in `front.json`.
        label: for people.
        colour: as `#RRGGBB`.
        marker: as matplotlib names it.
        dashes: lengths on and off along its lines in points, as matplotlib and SVG take them; none is a solid line.
    """

    name: str
    label: str
    colour: str
    marker: str
    dashes: tuple[float, ...]


SFT, SOUP, LINES, SCALED, REVERSED, MORLHF = "sft", "rewarded_soup", "lines", "scaled", "reversed", "morlhf"
SEARCHED = "search"
CONTROLS = (SCALED, REVERSED)  # they show what LiNeS' growth with depth is good for, and are not what a user looks for

# In the order in which they are listed. Each has a colour, a marker and dashes of its own, so that colour is never the
# only difference. Colours are Okabe and Ito's (Color Universal Design, 2008), told apart under the common forms of
# colour blindness; those of other groups are from Tol's muted scheme (SRON/EPS/TN/09-002).
GROUPS = {
    group.name: group
    for group in (
        Group(LINES, "LiNeS", "#0072B2", "o", ()),
        Group(SOUP, "rewarded soup", "#D55E00", "s", (6.0, 1.5)),
        Group(SCALED, "even scaling", "#009E73", "^", (5.0, 1.5, 1.0, 1.5)),
        Group(REVERSED, "reversed LiNeS", "#CC79A7", "v", (1.5, 1.2)),
        Group(MORLHF, "MORLHF", "#E69F00", "D", (3.0, 1.2, 1.0, 1.2, 1.0, 1.2)),
        Group(SFT, "SFT", "#000000", "*", (2.5, 2.5)),
    )
}
OTHER_LOOKS = (
    ("#56B4E9", "P", (8.0, 1.5, 1.0, 1.5)),
    ("#882255", "X", (4.0, 3.0)),
    ("#999933", "p", (1.0, 2.5)),
    ("#332288", "<", (8.0, 1.5, 3.0, 1.5)),
)


def looks(names: Iterable[str]) -> dict[str, Group]:
    """The groups of these names, by name: ours first and in their order, then others, which take turns in looks.

    >>> [group.label for group in looks(["sft", "ties", "lines", "ties"]).values()]
    ['LiNeS', 'SFT', 'ties']
    """
    names = set(names)
    others = enumerate(sorted(names - GROUPS.keys()))
    return {name: group for name, group in GROUPS.items() if name in names} | {
        name: Group(name, shortened(name), *OTHER_LOOKS[i % len(OTHER_LOOKS)]) for i, name in others
    }


def label(group: str) -> str:
    """What people read for a group: its name, on one line and shortened, if it is none of ours."""
    return looks([group])[group].label


def shortened(text: str, width: int = 28) -> str:
    """`text` on one line with at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"

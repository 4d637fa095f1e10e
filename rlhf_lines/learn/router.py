"""Stage `router`: which merge for which prompt, learned on validation completions that a sweep has scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, write_record
from rlhf_lines.config import RunConfig, from_json
from rlhf_lines.errors import counted
from rlhf_lines.learn.ridge import Array, Ridge, fit_ridge
from rlhf_lines.learn.router_config import RouterConfig
from rlhf_lines.merge.inputs.fingerprints import Fingerprint, model_fingerprint
from rlhf_lines.merge.inputs.provenance import called
from rlhf_lines.merge.spec import MergeSpec
from rlhf_lines.models import load_tokenizer, local_folder
from rlhf_lines.pareto import ideal_point, paired_difference, reference_point, utilities
from rlhf_lines.reading import last_hidden_states
from rlhf_lines.sha256 import sha256_of
from rlhf_lines.sweep.choices import Scaling
from rlhf_lines.sweep.engines.local import load_base
from rlhf_lines.sweep.finished.front import objectives_of
from rlhf_lines.sweep.groups import LINES, SOUP, one_hot, simplex
from rlhf_lines.sweep.inputs import check_4bit
from rlhf_lines.sweep.router import Router, text_sha256
from rlhf_lines.sweep.store import RUN_STORE, Store, StoredPoint, open_finished
from rlhf_lines.sweep.swept import Swept, read_swept


SPLIT = "validation"


@dataclass(frozen=True)
class Measured:
    """What a sweep has measured of the merges among which a router chooses.

    Attributes:
        scaling: of all of them.
        weights: of each, P rows of K.
        prompts: n texts that the policies read.
        utilities: `[n, P, J]`, of the mean scores over samples.
        objectives: J names.
        policies: K folders.
        policies_sha256: of their weights.
        sft_model: its name.
        sft_sha256: its hash.
    """

    scaling: Scaling
    weights: list[tuple[float, ...]]
    prompts: list[str]
    utilities: Array
    objectives: list[str]
    policies: list[str]
    policies_sha256: list[str]
    sft_model: str
    sft_sha256: str


def run(run_config: RunConfig, config: RouterConfig, given: dict) -> Path:
    """Learn, and return the folder with `router.json` and `router.safetensors`, which a group of a sweep takes.

    1. The SFT model reads the sweep's validation prompts: its last hidden state at the last token are a prompt's
       features.
    2. A ridge regression predicts from them the utility of every merge that was measured, in every objective.
    3. What the choice is worth is told on prompts that are left out of the fit, one at a time, against the best merge
       for all of them.

    Raises:
        FileNotFoundError, FileExistsError: there is no such sweep or SFT model, or `output_dir` exists.
        ValueError: the sweep has measured too little, or the SFT model has changed since.
    """
    refuse_existing(config.output_dir, overwrite=run_config.overwrite)
    with open_finished(config.sweep) as store:
        measured = read_measured(store, config)
        swept = read_swept(config.sweep, store, (), sft_model=config.sft_model)
    refuse_replacing(config.output_dir, [swept.sft, config.sweep, *measured.policies])
    if swept.load_in_4bit:
        check_4bit(swept.sft)
    fit = fit_ridge(_features(swept, measured.prompts), _targets(measured.utilities))
    with new_folder(config.output_dir, overwrite=run_config.overwrite) as folder:
        shape = measured.utilities.shape[1:]
        card = {
            **measured.scaling._asdict(),
            "points": [list(row) for row in measured.weights],
            "objectives": measured.objectives,
            "sft_sha256": measured.sft_sha256,
            "policies_sha256": measured.policies_sha256,
            "prompts_sha256": list(map(text_sha256, measured.prompts)),
        }
        Router(folder, card).write(fit.bias.reshape(shape), fit.coefficients.reshape(-1, *shape))
        write_record(
            folder,
            "router",
            given,
            group=config.group,
            **measured.scaling._asdict(),
            points=card["points"],
            objectives=measured.objectives,
            policies=measured.policies,
            sft_model=measured.sft_model,
            prompts=len(measured.prompts),
            penalty=None if np.isinf(fit.penalty) else fit.penalty,
            explained=explained(fit, measured.utilities),
            gains=gains(fit, measured.utilities, measured.weights),
            inputs_sha256=inputs(run_config, config),
        )
    return Path(config.output_dir)


def inputs(run_config: RunConfig, config: RouterConfig) -> dict[str, Fingerprint]:
    """What the stage would read with these settings, as its record holds it."""
    with open_finished(config.sweep) as store:
        name = store.recall("sft_model")
    return {
        f"sweep {called(config.sweep)}": {RUN_STORE: sha256_of([Path(config.sweep) / RUN_STORE])},
        f"SFT model {called(name)}": model_fingerprint(local_folder(config.sft_model or name, what="SFT model")),
    }


def read_measured(store: Store, config: RouterConfig) -> Measured:
    """What the store holds of the merges among which a router chooses.

    Raises:
        ValueError: that is too little to choose from, or the preference of a sweep would not be one of objectives.
    """
    policies, objectives = store.recall("policies"), objectives_of(store)
    if len(policies) != len(objectives):
        raise ValueError(
            f"the sweep in {config.sweep} has {counted(len(policies), 'policy', 'policies')} and "
            f"{counted(len(objectives), 'objective')}, but to a router the weights of a sweep are a preference, a "
            "number for each objective: choose as many by rlhf-lines "
            "front --objectives, in the order of the policies"
        )
    scaling, measured = _scaling(store, config), store.points(SPLIT)
    points = {point.spec.weights: point for point in measured if _is_choice(point, scaling, len(policies))}
    if len(points) < 2:
        raise ValueError(
            f"the sweep in {config.sweep} has measured {len(points)} merges of group {config.group} on {SPLIT} "
            "prompts, expected two or more to choose from: give another group, or sweep with further alphas and betas"
        )

    def scores(spec_id: int) -> Array:
        return store.scores(spec_id, SPLIT, objectives)

    prompts = [prompt.text for prompt in store.prompts(SPLIT).values()]
    if len(prompts) < 2:
        raise ValueError(
            f"the sweep in {config.sweep} has {len(prompts)} {SPLIT} prompt, expected two or more, of which one can be "
            "left out: sweep with more"
        )
    anchors = [(0.0,) * len(policies), *one_hot(len(policies))]
    ends = [p for p in measured if p.spec in {MergeSpec("linear", row) for row in anchors}]
    means = np.stack([scores(point.spec_id).mean(axis=0) for point in ends])
    reference = store.recall("reference_point", None) or reference_point(means)
    found = np.stack([scores(point.spec_id) for point in points.values()], axis=1)
    return Measured(
        scaling=scaling,
        weights=list(points),
        prompts=prompts,
        utilities=utilities(found, reference, ideal_point(means)),
        objectives=objectives,
        policies=policies,
        policies_sha256=store.recall("policies_sha256")[: len(policies)],
        sft_model=store.recall("sft_model"),
        sft_sha256=store.recall("sft_sha256"),
    )


def gains(fit: Ridge, measured: Array, weights: list[tuple[float, ...]]) -> list[dict[str, Any]]:
    """For a few preferences, what prompts get that are left out of the fit, against the best merge for all prompts.

    The best merge for all is chosen on the same prompts, so that the comparison rather favours it.

    Args:
        fit: to the utilities less their mean over the points.
        measured: the utilities, `[n, P, J]`.
        weights: of the points.
    """
    count, _, objectives = measured.shape
    left_out, found = fit.left_out.reshape(measured.shape), []
    for preference in simplex(objectives, 5 if objectives == 2 else 3):
        values = measured @ np.array(preference)  # [n, P]
        fixed = int(values.mean(axis=0).argmax())
        routed = values[np.arange(count), (left_out @ np.array(preference)).argmax(axis=1)]
        gain = paired_difference(routed, values[:, fixed])
        found.append(
            {
                "preference": list(preference),
                "fixed": {"weights": list(weights[fixed]), "value": values[:, fixed].mean().item()},
                "routed": routed.mean().item(),
                "gain": {"value": gain.value, "low": gain.low, "high": gain.high},
            }
        )
    return found


def explained(fit: Ridge, measured: Array) -> float:
    """The share of the squared error of the mean of the other prompts that the fit to them does without."""
    targets = _targets(measured)
    by_mean = (targets - targets.mean(axis=0)) * len(targets) / (len(targets) - 1)
    total = np.square(by_mean).sum()
    return float(1 - np.square(fit.left_out - targets).sum() / total) if total else 0.0


def _targets(measured: Array) -> Array:
    """What is predicted, `[n, P J]`: utilities less the mean over the points, on which no choice depends."""
    return (measured - measured.mean(axis=1, keepdims=True)).reshape(len(measured), -1)


def _features(swept: Swept, prompts: Sequence[str]) -> Array:
    tokenizer = load_tokenizer(swept.sft)
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    return last_hidden_states(load_base(swept, swept.sft), rows).numpy()


def _is_choice(point: StoredPoint, scaling: Scaling, num_policies: int) -> bool:
    spec = point.spec
    same = Scaling(spec.alpha, spec.beta, spec.schedule).merged == scaling.merged
    return spec.rule == "linear" and same and len(spec.weights) == num_policies and any(spec.weights)


def _scaling(store: Store, config: RouterConfig) -> Scaling:
    """What the sweep chose for the group.

    Raises:
        ValueError: it chose nothing, has no such group, or chose an alpha that differs from merge to merge; or the
            group is of another rule, or of other policies.
    """
    validation = store.recall("validation", None)
    if validation is None:
        raise ValueError(
            f"the sweep in {config.sweep} measured nothing on {SPLIT} prompts, since it had no scaling to choose: "
            "sweep with two or more alphas or betas"
        )
    tunings = {LINES: validation, **validation.get("groups", {})}
    if config.group == SOUP:
        return Scaling(1.0, 0.0)
    if config.group not in tunings:
        known = ", ".join([SOUP, *tunings])
        raise ValueError(
            f"group is {config.group!r}, but the sweep in {config.sweep} chose for {known}: give one of these"
        )
    of_others = {entry["name"]: "other policies" for entry in _entries(store, "policy_sets")}
    rules = {entry["name"]: entry.get("rule", "linear") for entry in _entries(store, "groups")}
    of_others |= {name: f"rule {rule}" for name, rule in rules.items() if rule != "linear"}
    if config.group in of_others:
        raise ValueError(
            f"group is {config.group!r}, whose merges in the sweep in {config.sweep} are of {of_others[config.group]}, "
            "and a router chooses among linear merges of the sweep's own policies: give another group"
        )
    chosen = tunings[config.group]["chosen"]
    if chosen["alpha"] == "auto":
        raise ValueError(
            f"group {config.group} of the sweep in {config.sweep} has alpha auto, which differs from merge to merge: "
            "give another group"
        )
    return Scaling(chosen["alpha"], chosen["beta"], chosen["schedule"])


def _entries(store: Store, key: str) -> list[dict[str, Any]]:
    """The groups, or the sets of policies, of a sweep, as its config has them."""
    return [from_json(key, entry) for entry in store.recall(key, [])]

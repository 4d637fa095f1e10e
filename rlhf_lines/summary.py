"""What a user wants to know about a finished stage, as text."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rlhf_lines.artifact import read_record
from rlhf_lines.merge.output.summary import outcome_lines, ranks_text, truncation_text
from rlhf_lines.merge.rules import RULES
from rlhf_lines.pareto.origin import policy_names, weights_text
from rlhf_lines.pareto.schema import label


def summary(verb: str, folder: Path, *, was_complete: bool = False) -> str:
    """What a user wants to know about a finished stage.

    Args:
        verb: its name.
        folder: what it made.
        was_complete: whether that was made before, and `--resume` kept it.
    """
    record = read_record(folder)
    done = f"kept {folder}, which was complete" if was_complete else f"wrote {folder}"
    lines = [done]
    if verb == "reward":
        lines.append(f"accuracy on {record['held_out_pairs']} held-out pairs: {record['accuracy']:z.3f}")
        if record["train_pairs_left_out"] or record["held_out_pairs_cut"]:
            lines.append(
                f"too long for the reward model: {record['train_pairs_left_out']} training pairs, which were left out, "
                f"and {record['held_out_pairs_cut']} held-out pairs, whose prompts were cut"
            )
    elif verb == "ppo" and (rollouts := [row for row in record["history"] if "reward" in row]):
        first, last = rollouts[0], rollouts[-1]
        lines.append(f"reward in training {first['reward']:z.3g} -> {last['reward']:z.3g}, kl {last['kl']:z.3g}")
    elif verb == "merge":
        from rlhf_lines.merge.inputs.provenance import MERGE_RECORD  # which torch comes with: a front has gains alone

        lines += outcome_lines(json.loads((folder / MERGE_RECORD).read_text()), str(folder))
    elif verb == "basis":
        lines += _basis(record)
    elif verb == "rebuild":
        lost = ", ".join(f"{name} {share:.1%}" for name, share in record["lost"].items())
        lines.append(f"adapter of rank {record['rank']}; what the basis lost of its policies (relative L2): {lost}")
        if record["truncation"]:
            lines.append(truncation_text(record["truncation"]))
    elif verb in ("fisher", "gram"):
        lines += _statistics(verb, record)
    elif verb == "learn":
        from rlhf_lines.learn.shown import result_text

        lines += [result_text(record, policy_names(record["policies"])), _how_to_merge(record, folder)]
    elif verb == "router":
        lines += _router(record)
    elif verb == "sweep":
        from rlhf_lines.pareto import read_front  # with scipy, which the others do without
        from rlhf_lines.pareto.closing import closing_text

        lines += ["", closing_text(read_front(folder), folder, [_chosen(record), *_routed(record)])]
    return "\n".join(lines)


def _how_to_merge(record: dict, folder: Path) -> str:
    """The command that merges by what was learned, of a hypervolume at equal weights, though its factors hold at any.

    A record of an earlier version, which knew one rule, does not name the SFT model: the command has a place for it.
    """
    rule, policies = record.get("rule", "layerwise"), record["policies"]
    options = json.dumps({"factors": f"{folder}/factors.json"})
    weights = ["--weights", *[f"{1 / len(policies):z.4g}"] * len(policies)] if record["aim"] == "hypervolume" else []
    models = ["--sft_model", record.get("sft_model", "SFT_MODEL"), "--policies", *policies]
    save = "adapter" if RULES[rule].is_linear else "dense"
    command = ["merge", *models, "--rule", rule, "--rule_options", options, *weights, "--save", save]
    return shlex.join(["rlhf-lines", *command, "--output_dir", "merged"])


def _router(record: dict) -> list[str]:
    """What the choice by prompt is worth on prompts that are left out, against the best merge for all."""
    told = [
        f"{len(record['points'])} merges of {record['group']} on {record['prompts']} prompts; of what "
        f"differs between them by prompt {record['explained']:z.1%} is predicted, on prompts left out",
        f"{'preference':<14} {'best for all':>18} {'value':>7} {'by prompt':>9}  gain [95 %]",
    ]
    for row in record["gains"]:
        gain, fixed = row["gain"], row["fixed"]
        interval = "" if gain["low"] is None else f" [{gain['low']:z.3f}, {gain['high']:z.3f}]"
        told.append(
            f"{weights_text(row['preference']):<14} {weights_text(fixed['weights']):>18} {fixed['value']:z7.3f} "
            f"{row['routed']:z9.3f}  {gain['value']:z.3f}{interval}"
        )
    if not any((row["gain"]["low"] or 0) > 0 for row in record["gains"]):
        told.append("no gain is above 0 for sure: merges at fixed weights may be as good")
    return told


def _routed(record: dict) -> list[str]:
    """Of groups with a router, a sentence on how many merges the prompts of each preference got."""
    return [
        f"{group}, whose router chooses a merge for each prompt, chose among "
        + ", ".join(f"{_counted(len(row['chosen']), 'merge')} at {weights_text(row['preference'])}" for row in rows)
        + "."
        for group, rows in record.get("routed", {}).items()
    ]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _basis(record: dict) -> list[str]:
    before, after = sum(policy["bytes"] for policy in record["policies"]), record["bytes"]
    # Older records have the largest rank alone.
    ranks = ranks_text([policy.get("rank", record["rank"]) for policy in record["policies"]])
    return [
        f"{len(record['policies'])} policies of {ranks} in {record['components']} components: {after:,} bytes in place "
        f"of {before:,} ({1 - after / before:.1%} saved)",
        *(
            f"  {policy['path']} lost {policy['lost']:.1%} of its residual (relative L2)"
            for policy in record["policies"]
        ),
        *(f"warning: {warning}" for warning in record["warnings"]),
    ]


def _statistics(verb: str, record: dict) -> list[str]:
    of = f"{record['layers']} linear maps" if verb == "gram" else f"{record['tensors']} parameters"
    tokens = f"{record['prompt_tokens']} prompt and {record['completion_tokens']} completion tokens"
    lines = [f"statistics of {of}, from {record['sequences']} sequences ({tokens}); passes: {record['passes']}"]
    if record["lost_residual"]:
        lost = record["lost_residual"]["relative_l2"]
        lines.append(f"{record['dtype']} lost {lost:.1%} of the policy's residual (relative L2)")
    return lines


def _chosen(record: dict) -> str:
    scaling = f"alpha {record['alpha']}, beta {record['beta']} and schedule {record['schedule']} of LiNeS"
    validation = record["validation"]
    if validation is None:
        return f"{scaling} were given."
    tunings = {"lines": validation, **validation["groups"]}
    at_edge = [label(name) for name, tuning in tunings.items() if tuning["at_edge"]]
    edge = (
        f" At an edge of what was tried, so that going beyond may give more: {', '.join(at_edge)}." if at_edge else ""
    )
    return f"{scaling} were chosen on validation prompts, of {len(validation['grid'])} that were tried.{edge}"


def gains_table(gains: list[dict]) -> str:
    """The gains of every policy in every reward, as lines of text."""
    lines = ["gain over the SFT model, in standard deviations of its scores, 95 % interval over test prompts", ""]
    for gain in gains:
        name = f"{Path(gain['policy']).name} policy, {gain['reward']} score"
        interval = "" if gain["low"] is None else f" [{gain['low']:z.2f}, {gain['high']:z.2f}]"  # of one prompt none
        lines.append(f"  {name:<40} {gain['value']:z6.2f}{interval}")
    return "\n".join(lines)

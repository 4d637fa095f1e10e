"""What is said about a point that was picked: its scores, and the command that makes it."""

import json
import shlex
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from rlhf_lines.pareto.table import decimals, estimate_text, trained_policy


# Their merged policy is an adapter exactly (``rlhf_lines.merge.rules``, which imports torch).
ADAPTER_RULES = ("linear", "sum", "factor_average", "peft_linear")


def merge_arguments(front: Mapping[str, Any], point: Mapping[str, Any], output_dir: str | Path) -> list[str]:
    """Returns the arguments of ``rlhf-lines merge`` that make the policy of a point; every setting is written.

    The spec's weights belong to the first policies of the front. A linear rule gives an adapter, any other a dense
    checkpoint.

    Raises:
        ValueError: If the front does not know its policies, or the point is the SFT model, which is not merged.
    """
    _check_sources(front, "RUN_DIR")
    spec = point["spec"]
    if not any(spec["weights"]):
        raise ValueError(
            f"point {point['id']} is the SFT model itself, {front['sft_model']}; there is nothing to merge"
        )
    options = ["--rule_options", json.dumps(spec["options"])] if spec.get("options") else []
    return [
        *("--sft_model", str(front["sft_model"])),
        *("--policies", *map(str, front["policies"][: len(spec["weights"])])),
        *("--weights", *map(_plain, spec["weights"])),
        *("--rule", spec["rule"], *options),
        *("--alpha", spec["alpha"] if spec["alpha"] == "auto" else _plain(spec["alpha"])),
        *("--beta", _plain(spec["beta"]), "--schedule", spec["schedule"]),
        *("--save", "adapter" if spec["rule"] in ADAPTER_RULES else "dense"),
        *("--output_dir", str(output_dir)),
    ]


def picked_text(front: Mapping[str, Any], point: Mapping[str, Any], run_dir: str | Path) -> str:
    """Returns what to tell about a picked point, without a trailing newline; its last line is the merge command.

    The SFT model needs no merge, and the last line says so.

    Raises:
        ValueError: If the front does not know its policies.
    """
    _check_sources(front, run_dir)
    spec = point["spec"]
    settings = f"alpha {_setting(spec['alpha'])}, beta {_setting(spec['beta'])}, schedule {spec['schedule']}"
    options = f" {json.dumps(spec['options'])}" if spec.get("options") else ""
    weights = " ".join(f"{weight:g}" for weight in spec["weights"])
    lines = [f"point {point['id']}: {point['group']}, {spec['rule']}{options}, weights {weights}, {settings}"]
    rows = [(reward, point["scores"][reward]) for reward in front["rewards"]]
    rows += [(name, point[name]) for name in ("kl", "perplexity") if point.get(name) is not None]
    width = max(len(name) for name, _ in rows)
    lines += [f"  {name:<{width}}  {estimate_text(value, decimals([value['mean']]))}" for name, value in rows]
    lines.append(f"  mean [{100 * front['confidence']:g} % interval] over {point['prompts']} {front['split']} prompts")
    if not any(spec["weights"]):
        return "\n".join([*lines, "", f"It is the SFT model itself, no merge is needed: {front['sft_model']}"])
    arguments = merge_arguments(front, point, Path(run_dir) / f"point_{point['id']}")
    policy = trained_policy(point)
    lines += [f"  it is one policy as it was trained: {front['policies'][policy]}"] if policy is not None else []
    return "\n".join([*lines, "", shlex.join(["rlhf-lines", "merge", *arguments])])


def _check_sources(front: Mapping[str, Any], run_dir: str | Path) -> None:
    if "policies" not in front or "sft_model" not in front:
        raise ValueError(
            f"the front does not say which policies it was made from; run it again with: rlhf-lines front {run_dir}"
        )


def _plain(number: float) -> str:
    """Returns all digits of a number without an exponent: argparse takes ``-1e-05`` for a flag."""
    return format(Decimal(repr(float(number))), "f")


def _setting(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"

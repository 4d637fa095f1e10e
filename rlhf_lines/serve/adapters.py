"""Verb `export --adapters`: the points of a group as PEFT folders, for a server that cannot make them on demand."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

from rlhf_lines.artifact import new_folder, refuse_existing, refuse_replacing, write_whole
from rlhf_lines.merge.output.summary import VLLM_RANKS, max_lora_rank
from rlhf_lines.pareto import read_front
from rlhf_lines.pareto.origin import policy_names
from rlhf_lines.serve.command import flags
from rlhf_lines.serve.folder import ADAPTERS
from rlhf_lines.serve.mixed import linear_specs
from rlhf_lines.serve.numbers import alike, unlike
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters, largest_rank
from rlhf_lines.sweep.store import open_finished
from rlhf_lines.sweep.swept import Swept, read_swept


INDEX = "adapters.json"
ON_GPU = "on a GPU give --dtype bfloat16 in its place: vLLM takes adapters in 16 bits only there"


class Exported(NamedTuple):
    """What was written.

    Attributes:
        folder: with `adapters.json` and a folder per point.
        names: of the folders in it.
        serving: the command that serves all of them with vLLM, or why it will not.
        told: lines for the user.
    """

    folder: Path
    names: list[str]
    serving: str
    told: list[str]


def export_adapters(
    run_dir: str | Path, output_dir: str | Path | None = None, *, group: str, overwrite: bool = False
) -> Exported:
    """Write every point of a group as the adapter `point_ID`, which is exactly its policy, and `adapters.json`.

    The index holds the SFT model, the names of the policies, and of every point its folder, spec and mean scores.

    Args:
        run_dir: of a finished sweep.
        output_dir: the folder to make; None is `export/adapters` in `run_dir`.
        group: whose rule is linear.
        overwrite: replace the folder.

    Raises:
        FileNotFoundError: there is no finished sweep, or its models are gone.
        FileExistsError: the folder exists, or replacing it would delete the run or a model.
        ValueError: the group has no exact adapters, or its policies have changed since.
    """
    target = Path(run_dir) / "export" / ADAPTERS if output_dir is None else Path(output_dir)
    refuse_existing(target, overwrite=overwrite)
    front = read_front(run_dir)
    specs = linear_specs(front, group)
    places = sorted({k for spec in specs.values() for k, weight in enumerate(spec.weights) if weight})
    with open_finished(run_dir) as store:
        swept = read_swept(run_dir, store, places)
    refuse_replacing(target, [run_dir, swept.sft, *swept.policies])
    policies = dict(zip(places, swept.load(), strict=True))
    points = [point for point in front["points"] if point["id"] in specs]
    with new_folder(target, overwrite=overwrite) as folder:
        adapters = SpecAdapters(folder, policies, swept.sft, swept.dtype)
        for point in points:
            adapters.path(specs[point["id"]]).rename(folder / _name(point["id"]))
        (folder / ADAPTERS).rmdir()
        index = {
            "format": 1,
            "sft_model": front["sft_model"],
            "policies": policy_names(front["policies"]),
            "group": group,
            "adapters": [
                {"folder": _name(point["id"]), "point": point["id"], "spec": point["spec"], "scores": point["scores"]}
                for point in points
            ],
        }
        write_whole(folder / INDEX, json.dumps(index, indent=2) + "\n")
    names = [_name(point["id"]) for point in points]
    rank = largest_rank(list(policies.values()), mixed=[range(len(policies))])
    told = [ON_GPU] if swept.dtype == "float32" else []
    serving = _serving(front["sft_model"], swept, target, names, rank)
    return Exported(target, names, serving, told + unlike(swept, swept.dtype))


def _name(point: int) -> str:
    return f"point_{point}"


def _serving(sft_model: str, swept: Swept, folder: Path, names: list[str], rank: int) -> str:
    allowed = max_lora_rank(rank)
    if allowed is None:
        return f"vLLM serves ranks up to {VLLM_RANKS[-1]}, these have {rank}"
    arguments = {
        "dtype": swept.dtype,
        **alike(swept),
        "enable_lora": True,
        "max_lora_rank": allowed,
        "lora_modules": [f"{name}={folder / name}" for name in names],
    }
    return shlex.join(["vllm", "serve", sft_model, *flags(arguments)])

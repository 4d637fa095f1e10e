"""Repeating a merge from the `merge_spec.json` that it wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import versions
from rlhf_lines.errors import Problems, counted
from rlhf_lines.merge.inputs.checkpoint import read_json
from rlhf_lines.merge.inputs.fingerprints import config_sha256
from rlhf_lines.merge.inputs.provenance import folder_above, weights_sha256
from rlhf_lines.merge.inputs.statistics_files import statistics_path, statistics_sha256
from rlhf_lines.merge.job import FORMAT, Merge
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.spec import MergeSpec


KEYS = (
    "spec",
    "sft_model",
    "sft_sha256",
    "policies",
    "statistics",
    "save",
    "asked_dtype",
    "asked_rank",
    "max_shard_size",
    "device",
    "versions",
)


def settings(path: Path) -> dict[str, Any]:
    """The settings of stage `merge` that repeat a recorded merge; `output_dir` is not among them.

    Folders are recorded as they were given. A relative one is looked for from the current folder, then from the folders
    above the record, nearest first, so that a project may move as a whole; its hash is checked by `check_repeat`.

    Args:
        path: the `merge_spec.json`.

    Raises:
        ValueError: another format, a missing key, or values of another kind.
    """
    merge = read_merge(path)
    found = {**vars(merge), **merge.spec.to_dict(), "repeats": str(path), "sft_model": _find(merge.sft_model, path)}
    del found["spec"]
    for name in ("policies", "statistics"):
        found[name] = [_find(folder, path) for folder in found[name]] or None
    found["rule_options"] = found.pop("options") or None
    return {key: value for key, value in found.items() if value is not None}


def read_merge(path: str | Path) -> Merge:
    """The merge that a `merge_spec.json` describes, folders as they were named then.

    Raises:
        ValueError: it is no JSON, or not as a merge writes it.
    """
    return Merge.from_record(_read(path))


def check_repeat(
    path: str | Path, merge: Merge, *, way_out: str = "restore it, or name its copy with {flag}"
) -> list[str]:
    """What may differ from the merge that a record describes although the inputs are the same, as warnings.

    Statistics that the record has none of are not compared.

    Args:
        path: the `merge_spec.json`.
        merge: the merge now, with folders that exist.
        way_out: what to do about an input that has changed; `{flag}` is the flag that names it.

    Raises:
        ValueError: an input has other weights than were recorded; `InputProblems` if several have.
    """
    record = _read(path)
    if len(merge.policies) != len(record["policies"]):
        raise ValueError(
            f"{counted(len(merge.policies), 'policy', 'policies')} given, but {path} was made from "
            f"{len(record['policies'])}: give them all in its order, or merge others without --config merge_spec.json"
        )
    of_sft = {"path": record["sft_model"], "sha256": record["sft_sha256"]}
    recorded = [{**of_sft, "config_sha256": record.get("sft_config_sha256")}, *record["policies"]]
    problems = Problems()
    for number, (folder, known) in enumerate(zip(merge.models, recorded, strict=True)):
        what, flag = ("policy", "--policies") if number else ("SFT model", "--sft_model")
        with problems.collect():
            where = repr(folder) + ("" if folder == known["path"] else f" (recorded as {known['path']!r})")
            for part, key, sha256_now in (
                ("weights", "sha256", weights_sha256),
                ("config", "config_sha256", config_sha256),
            ):
                found = sha256_now(folder)
                if known.get(key, found) not in (found, None):
                    problems.add(
                        f"{what} {where} has changed since {path} was written: the SHA-256 of its {part} is "
                        f"{found[:12]}, recorded is {known[key][:12]}; {way_out.format(flag=flag)}"
                    )
    kind = RULES[record["spec"]["rule"]].statistics
    for folder, known in zip(merge.statistics, record["statistics"], strict=False):
        # A file that is missing is told when statistics are opened, with the verb that makes it.
        if statistics_path(kind, folder).is_file() and statistics_sha256(kind, folder) != known["sha256"]:
            problems.add(
                f"the file of statistics in {folder!r} has changed since {path} was written; "
                f"{way_out.format(flag='--statistics')}"
            )
    problems.check()
    return [*_config_warnings(recorded, path), *_version_warnings(record["versions"], path)]


def _read(path: str | Path) -> dict[str, Any]:
    record = read_json(Path(path))
    if record.get("format") != FORMAT:
        raise ValueError(f"merge record {path} has format {record.get('format')!r}, expected {FORMAT}: merge again")
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise ValueError(f"merge record {path} lacks {', '.join(missing)}: give the settings by flags")
    kinds = {"spec": dict, "sft_model": str, "sft_sha256": str, "policies": list, "statistics": list, "versions": dict}
    damaged = [key for key, kind in kinds.items() if not isinstance(record[key], kind)]
    if not isinstance(record.get("sft_config_sha256", ""), str):
        damaged.append("sft_config_sha256")
    damaged += [
        key
        for key in ("policies", "statistics")
        if key not in damaged and not all(_is_folder(entry) for entry in record[key])
    ]
    if "spec" not in damaged and not record["spec"].keys() >= {entry.name for entry in fields(MergeSpec)} - {"lines"}:
        damaged.append("spec")
    if damaged:
        raise ValueError(f"merge record {path} is damaged in {', '.join(damaged)}: give the settings by flags")
    return record


def _is_folder(entry: object) -> bool:
    required, added = ("path", "sha256"), ("config_sha256",)
    return isinstance(entry, dict) and all(
        isinstance(entry.get(key), str) for key in (*required, *(key for key in added if key in entry))
    )


def _config_warnings(recorded: Sequence[Mapping[str, Any]], path: str | Path) -> list[str]:
    if all(known.get("config_sha256") for known in recorded):
        return []
    return [
        f"{path} was written by an earlier version, without hashes of configs: whether lora_alpha and other settings "
        "of the policies and of the SFT model are still the same cannot be known"
    ]


def _version_warnings(before: Mapping[str, str], path: str | Path) -> list[str]:
    now = versions()
    differing = [
        f"{name} {before.get(name, 'missing')} (now {now.get(name, 'missing')})"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if not differing:
        return []
    return [f"{path} was written with {', '.join(differing)}: the repeated merge may differ in the last bits"]


def _find(name: str, path: Path) -> str:
    if Path(name).is_absolute() or Path(name).exists():
        return name
    # Found nowhere, it is named as it was. With ./ in front, a folder that is gone is not taken for a model on the Hub.
    return str(folder_above(name, path) or f"./{name}")

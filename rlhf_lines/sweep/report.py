"""From the run folder of a sweep to ``report.html``."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import CONFIG, read_record
from rlhf_lines.pareto import read_front
from rlhf_lines.pareto.front import FILE_NAME as FRONT
from rlhf_lines.pareto.report import Completions, evenly_spaced, report_html
from rlhf_lines.sweep.front import trace_front
from rlhf_lines.sweep.store import FILE, Row, Store


NAME = "report.html"
READ_PROMPTS = 2000  # of so many, fewer than all fit into the page for any sweep of a few points


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` from ``front.json`` and the run store, and return its path.

    The file appears whole or not at all. A folder without ``front.json`` gets one first.

    Raises:
        FileNotFoundError: the folder has no run store.
        ValueError: the store is not that of a finished sweep, or ``front.json`` is not a front.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}: expected the output_dir of rlhf-lines sweep")
    front = read_front(folder) if (folder / FRONT).is_file() else trace_front(folder)
    with Store(folder) as store:
        completions = read_completions(store, front)
        made = how_it_was_made(folder, front, samples=store.recall("samples_per_prompt"))
    page = report_html(front, completions, made)
    _write_whole(folder / NAME, page)
    return folder / NAME


def read_completions(store: Store, front: Mapping[str, Any], *, limit: int = READ_PROMPTS) -> Completions:
    """Return what the points of a front wrote for the prompts of its split; beyond ``limit``, evenly spaced ones."""
    ids = {point["id"] for point in front["points"]}
    spec_of = {point.id: point.spec_id for point in store.points(front["split"]) if point.id in ids}
    prompts = store.prompts(front["split"])
    read = [prompts[i] for i in evenly_spaced(len(prompts), limit)]
    rows = {spec: [store.rows(spec, prompt) for prompt, _ in read] for spec in set(spec_of.values())}

    def column(value) -> dict[int, list[list[Any]]]:
        return {spec: [_by_sample(of_prompt, value) for of_prompt in written] for spec, written in rows.items()}

    return Completions(
        prompts=[text for _, text in read],
        total=len(prompts),
        spec_of=spec_of,
        texts=column(lambda row: row.text),
        kl=column(lambda row: row.kl),
        scores={reward: column(lambda row, name=reward: row.scores.get(name)) for reward in front["rewards"]},
    )


def how_it_was_made(folder: Path, front: Mapping[str, Any], *, samples: int) -> dict[str, Any]:
    """Return the settings, versions and commands that the foot of the report lists."""
    record = read_record(folder)
    config = folder / CONFIG
    reference = ", ".join(f"{value:.4g}" for value in front["reference_point"])
    facts = [
        ("prompts", f"{front['points'][0]['prompts']}, of the split {front['split']}"),
        ("samples per prompt", str(samples)),
        ("seed", str(front["seed"])),
        ("intervals", f"{100 * front['confidence']:g} %, bootstrap over prompts, {front['resamples']} resamples"),
        ("reference point", f"{reference}: {front['reference_point_rule']}"),
    ]
    if front.get("utility_rule"):
        facts.append(("expected utility", front["utility_rule"]))
    if front.get("sft_model"):
        facts.append(("SFT model", str(front["sft_model"])))
    facts += [(f"policy {k + 1}", str(path)) for k, path in enumerate(front.get("policies") or [])]
    run = shlex.quote(str(folder))
    equal = " ".join(f"{1 / len(front['rewards']):.2f}" for _ in front["rewards"])
    return {
        "title": "/".join(folder.resolve().parts[-2:]).lstrip("/"),
        "facts": facts,
        "versions": record.get("versions", {}),
        "commands": [
            ("Choose a point and see how to merge it", f"rlhf-lines pick {run} --preference {equal}"),
            ("Write this page again", f"rlhf-lines report {run}"),
        ],
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
    }


def _by_sample(rows: list[Row], value) -> list[Any]:
    """Return one value per sample, None where there is no such sample."""
    found = {row.sample: value(row) for row in rows}
    return [found.get(sample) for sample in range(max(found, default=-1) + 1)]


def _write_whole(path: Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        # mkstemp makes the file private to its owner; a report is for others too.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

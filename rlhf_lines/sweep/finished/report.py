"""From the run folder of a sweep to `report.html`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_lines.artifact import CONFIG, read_record, write_whole
from rlhf_lines.lock import only_writer
from rlhf_lines.pareto.picked import merge_command, pick
from rlhf_lines.pareto.report import Completions, evenly_spaced, preferences, report_html, within_kl_of_picked
from rlhf_lines.pareto.schema import Front, Value
from rlhf_lines.pareto.table import confidence_text
from rlhf_lines.sweep.finished.behaviour import asked_in
from rlhf_lines.sweep.finished.front import front_of
from rlhf_lines.sweep.finished.judged import judged_text, wins_of_groups
from rlhf_lines.sweep.finished.worth import corrected_differences, corrected_worths
from rlhf_lines.sweep.store import Row, Store, open_finished


REPORT = "report.html"
READ_PROMPTS = 2000  # more would not fit into the page with the completions of even a few points


def write_report(folder: str | Path) -> Path:
    """Write `report.html` from `front.json` and the run store, and return its path.

    The file appears whole or not at all. A folder without `front.json`, or with that of an older form, gets one first.

    Raises:
        FileNotFoundError: the folder has no run store, or belongs to a sweep that has not finished.
        ValueError: the file is no run store.
    """
    folder = Path(folder)
    with only_writer(folder), open_finished(folder) as store:
        front = front_of(folder)
        made = {**how_it_was_made(folder, front), "example": store.recall("example", [])}
        made["facts"] += [
            (f"reward {name}", judged_text(counts)) for name, counts in store.recall("judged", {}).items()
        ]
        made["facts"] += [(f"reward {name}", text) for name, texts in wins_of_groups(store).items() for text in texts]
        page = report_html(front, read_completions(store, front), made, **_worths(store, front))
    write_whole(folder / REPORT, page)
    return folder / REPORT


def read_completions(store: Store, front: Front, *, limit: int = READ_PROMPTS) -> Completions:
    """What the points of a front wrote for the prompts of its split; beyond `limit`, evenly spaced ones."""
    split, ids = front["split"], {point["id"] for point in front["points"]}
    spec_of = {point.id: point.spec_id for point in store.points(split) if point.id in ids}
    prompts = store.prompts(split)
    asked, ids = asked_in(prompts), list(prompts)
    read = [ids[i] for i in evenly_spaced(len(ids), limit)]
    wanted = set(read)
    rows: dict[tuple[int, int], list[Row]] = {}
    for row in store.rows(split, front["rewards"], tokens=False):
        if row.prompt in wanted:
            rows.setdefault((row.spec, row.prompt), []).append(row)

    def column(value: Callable[[Row], Any]) -> dict[int, list[list[Any]]]:
        return {
            spec: [_by_sample(rows.get((spec, prompt), []), value) for prompt in read]
            for spec in sorted(set(spec_of.values()))
        }

    return Completions(
        prompts=[prompts[prompt].text for prompt in read],
        asked=[asked[prompt] for prompt in read],
        total=len(prompts),
        spec_of=spec_of,
        texts=column(lambda row: row.text),
        kl=column(lambda row: row.kl),
        scores={reward: column(lambda row, name=reward: row.scores.get(name)) for reward in front["rewards"]},
        log_ratio_name=store.log_ratio_name,
    )


def how_it_was_made(folder: Path, front: Front) -> dict[str, Any]:
    """The settings, versions and commands that the report lists."""
    config = folder / CONFIG
    first = front["points"][0]
    reference = ", ".join(f"{value:z.4g}" for value in front["reference_point"])
    facts = [
        ("prompts", f"{first['prompts']}, of the split {front['split']}"),
        ("samples per prompt", str(first["samples_per_prompt"])),
        ("seed", str(front["seed"])),
        ("intervals", f"{confidence_text(front)}, bootstrap over prompts, {front['resamples']} resamples"),
        ("reference point", f"{reference}: {front['reference_point_rule']}"),
        ("expected utility", front["utility_rule"]),
    ]
    facts += [("SFT model", front["sft_model"])] if front["sft_model"] else []
    facts += [(f"policy {k}", path) for k, path in enumerate(front["policies"], 1)]
    run = shlex.quote(str(folder))
    return {
        "title": "/".join(folder.resolve().parts[-2:]).lstrip("/"),
        "facts": facts,
        "run": run,
        "versions": read_record(folder).get("versions", {}),
        "commands": [
            *([("Sweep again, with the config.yaml below", _sweep_command(config))] if config.is_file() else []),
            ("Compute the front and this page again", f"rlhf-lines front {run} && rlhf-lines report {run}"),
        ],
        "merges": {
            str(point["id"]): merge_command(front, point, folder)
            for point in front["points"]
            if point["merge_arguments"] is not None  # the SFT model is not merged
        },
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
    }


def _worths(store: Store, front: Front) -> dict[str, list[Value | None]]:
    """What the picked points of the page's table of preferences are worth, and how much more than the soup's."""
    if not front["fronts"]:
        return {}
    rows = preferences(len(front["objectives"]))
    return {
        "worths": corrected_worths(store, front, [pick(front, preference=row, scale="range") for row in rows]),
        "over_soup": corrected_differences(store, front, [within_kl_of_picked(front, row) for row in rows]),
    }


def _sweep_command(config: Path) -> str:
    """The sweep of a run once more, in a folder of its own: that of the run is there already."""
    again = config.parent.with_name(f"{config.parent.name}-again")
    return shlex.join(["rlhf-lines", "sweep", "--config", str(config), "--output_dir", str(again)])


def _by_sample(rows: list[Row], value: Callable[[Row], Any]) -> list[Any]:
    """One value per sample, None where there is no such sample."""
    found = {row.sample: value(row) for row in rows}
    return [found.get(sample) for sample in range(max(found, default=-1) + 1)]

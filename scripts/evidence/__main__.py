"""The tables and figures of docs/evidence.md, from the sweeps of scripts/study.

    python scripts/evidence --study outputs/study    keep what is finished there, then make tables and figures
    python scripts/evidence                          make them of what is kept

What is kept lies in docs/evidence: an archive a sweep, and the configs of every run. In docs/evidence.md each table
stands between two marks, `<!-- NAME -->` and `<!-- end -->`; what is between them is written anew, the text around them
stays.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pictures
import questions
from kept import keep, keep_learned, unpack, without_folders
from runs import Learned, Run, Task

from rlhf_lines.artifact import is_complete


ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ("sweep", "thirds", "search")  # of a seed; any may be missing
LEARNED = "learn_"  # begins the names of what `learn` made
NOT_OURS = ("hh",)  # tasks whose prompts are kept as hashes
TABLES: Mapping[str, Mapping[str, Callable[[Task], str]]] = {  # by what of a task they are made of
    "runs": {
        "differences": questions.differences,
        "forgetting": questions.forgetting,
        "readers": questions.readers,
    },
    "replicated": {"by seed": questions.by_seed},
    "wrong": {
        "wrong": questions.wrong,
        "wrong differences": lambda task: questions.differences(
            task, [(name, questions.SOUP) for name in questions.WRONG]
        ),
    },
    "thirds": {"thirds": questions.thirds, "profiles": questions.profiles},
    "searches": {"search": questions.searched},
    "learned": {"learned": questions.learned},
}


def main() -> None:
    """Keep what is given, and make the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="the output_dir of scripts/study, whose finished seeds are kept")
    parser.add_argument("--kept", type=Path, default=ROOT / "docs" / "evidence", help="archives, configs and figures")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "evidence.md", help="whose tables are written")
    options = parser.parse_args()
    if options.study is not None:
        keep_finished(options.study, options.kept)
    with tempfile.TemporaryDirectory() as folder:
        tasks = read_kept(options.kept, Path(folder))
        if not tasks:
            sys.exit(f"{options.kept} has no seed: give the folder of a study by --study")
        for part, drawn in pictures.PICTURES.items():
            having = [task for task in tasks if getattr(task, part)]
            for name, draw in drawn.items() if having else ():
                draw(options.kept / f"{name}.png", having)
        options.page.write_text(with_tables(options.page.read_text(encoding="utf-8"), tables(tasks)), encoding="utf-8")


def keep_finished(study: Path, kept: Path) -> None:
    """Keep every seed of a study whose sweeps are finished, in place of what is kept of it."""
    for seed in sorted(study.glob("*/seed_*")):
        task = seed.parent.name
        finished = [sweep for sweep in SWEEPS if is_complete(seed / sweep)]
        learned = sorted(folder for folder in seed.glob(f"{LEARNED}*") if is_complete(folder))
        if not finished and not learned:
            print(f"evidence: nothing of {seed} has finished: left out")
            continue
        there = kept / task / seed.name
        shutil.rmtree(there, ignore_errors=True)
        there.mkdir(parents=True)
        for sweep in finished:
            control = seed.parent / "control.jsonl"
            keep(seed / sweep, control, there / f"{sweep}.tar.xz", hide_prompts=task in NOT_OURS)
        for folder in learned:
            keep_learned(folder, there / f"{folder.name}.json")
        configs = sorted((seed / "configs").glob("*.yaml"))
        (there / "configs.yaml").write_text(
            "".join(f"--- # {path.stem}\n{without_folders(path.read_text(encoding='utf-8'))}" for path in configs),
            encoding="utf-8",
        )
        print(f"evidence: kept {seed}: {', '.join([*finished, *(folder.name for folder in learned)])}")


def read_kept(kept: Path, folder: Path) -> list[Task]:
    """Every task that is kept, its seeds in their order; unpacked below `folder`."""
    tasks = []
    for task in sorted(path for path in kept.iterdir() if path.is_dir()):
        archives = {sweep: sorted(task.glob(f"seed_*/{sweep}.tar.xz")) for sweep in SWEEPS}
        folders = {sweep: [unpack(archive, folder) for archive in found] for sweep, found in archives.items()}
        runs = {sweep: [Run.read(path, path.parent.name) for path in found] for sweep, found in folders.items()}
        learned: dict[str, list[Learned]] = {}
        for path in sorted(task.glob(f"seed_*/{LEARNED}*.json")):
            learned.setdefault(path.stem.removeprefix(LEARNED), []).append(json.loads(path.read_text()))
        tasks.append(Task(task.name, folders["sweep"], runs["sweep"], runs["thirds"], runs["search"], learned))
    return tasks


def tables(tasks: Sequence[Task]) -> dict[str, str]:
    """By name, every table of the page."""
    made = {}
    for part, of_part in TABLES.items():
        having = [task for task in tasks if getattr(task, part)]
        made |= {f"{name} {task.name}": make(task) for task in having for name, make in of_part.items()}
    compared = [task for task in tasks if task.runs]
    made |= {f"examples {task.name}": questions.examples(task) for task in compared if task.name not in NOT_OURS}
    return {"chosen": questions.chosen(compared), "sizes": sizes(compared), **made}


def sizes(tasks: Sequence[Task]) -> str:
    """What was measured."""
    rows = []
    for task in tasks:
        front = task.runs[0].front
        chosen_on = front["validation"]["prompts"] if front["validation"] else "nothing is chosen"
        sizes = [front["points"][0]["prompts"], chosen_on, len(task.runs[0].sources)]
        rows.append([task.name, str(len(task.runs)), *map(str, sizes), ", ".join(front["objectives"])])
    return questions.table(
        ["task", "training seeds", "test prompts", "validation prompts", "texts outside", "rewards"], rows
    )


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables between their marks.

    Raises:
        ValueError: a table has no marks, or marks have no table.
    """
    mark = re.compile(r"<!-- (?!end -->)(?P<name>[^>]+) -->\n.*?<!-- end -->", re.DOTALL)
    names = [found["name"] for found in mark.finditer(page)]
    if sorted(names) != sorted(tables):
        raise ValueError(
            f"the page has marks for {', '.join(sorted(names))}, and there are tables {', '.join(sorted(tables))}: "
            "give each table its marks"
        )
    return mark.sub(lambda found: f"<!-- {found['name']} -->\n{tables[found['name']]}\n<!-- end -->", page)


if __name__ == "__main__":
    main()

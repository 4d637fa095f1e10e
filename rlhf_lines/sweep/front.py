"""From the run store of a sweep to ``front.json`` and ``front.png``."""

from __future__ import annotations

from pathlib import Path

from rlhf_lines.pareto import Point, build_front, plot_front, write_front
from rlhf_lines.sweep.store import FILE, Store


def trace_front(folder: str | Path, *, split: str = "test") -> dict:
    """Write ``front.json`` and ``front.png`` from what the store holds, and return the front.

    Raises:
        FileNotFoundError: the folder has no run store.
        ValueError: the store is not that of a finished sweep.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}: expected the output_dir of rlhf-lines sweep")
    with Store(folder) as store:
        names, seed = store.recall("reward_names"), store.recall("seed")
        front = build_front(rewards=names, split=split, seed=seed, points=measured_points(store, split))
    write_front(folder, front)
    plot_front(front, folder / "front.png")
    return front


def measured_points(store: Store, split: str) -> list[Point]:
    """Return every point of a split with its scores per prompt."""
    names, samples = store.recall("reward_names"), store.recall("samples_per_prompt")
    return [
        Point(
            id=point.id,
            group=point.group,
            spec=point.spec.to_dict(),
            scores=store.scores(point.spec_id, split, names),
            kl=store.kl(point.spec_id, split),
            samples_per_prompt=samples,
        )
        for point in store.points(split)
    ]

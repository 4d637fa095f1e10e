"""From the run store of a sweep to `front.json` and the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf_lines.lock import only_writer
from rlhf_lines.pareto import Front, Point, build_front, plot_forgetting, plot_front, plot_validation, write_front
from rlhf_lines.pareto.schema import Forgetting
from rlhf_lines.sweep.finished.behaviour import read_behaviour
from rlhf_lines.sweep.store import RUN_STORE, Store


SUFFIXES = (".png", ".pdf")


def trace_front(folder: str | Path, *, split: str = "test") -> Front:
    """Write `front.json` and the figures from what the store holds, and return the front.

    The figures are `front`, and, where there is something to draw, `validation` and `forgetting`, each as .png
    and .pdf.

    Raises:
        FileNotFoundError: the folder has no run store.
        ValueError: the store is not that of a finished sweep.
    """
    folder = Path(folder)
    if not (folder / RUN_STORE).is_file():
        raise FileNotFoundError(f"{folder} has no {RUN_STORE}: expected the output_dir of rlhf-lines sweep")
    with only_writer(folder):
        return _trace_front(folder, split)


def _trace_front(folder: Path, split: str) -> Front:
    with Store(folder, reading=True) as store:
        front = build_front(
            rewards=store.recall("reward_names"),
            split=split,
            seed=store.recall("seed"),
            points=measured_points(store, split),
            sft_model=store.recall("sft_model"),
            policies=[*store.recall("policies"), *store.recall("morlhf")],
            validation=store.recall("validation"),
            surrogate=store.recall("surrogate"),
            forgetting=_forgetting(store),
            audit=store.recall("audit", None),
        )
    plot_front(front, *_files(folder, "front"))
    if front["validation"] is not None:
        plot_validation(front, *_files(folder, "validation"))
    if front["forgetting"] is not None:
        plot_forgetting(front, *_files(folder, "forgetting"))
    write_front(folder, front)  # last: who finds it finds the figures too
    return front


def _files(folder: Path, name: str) -> list[Path]:
    return [folder / f"{name}{suffix}" for suffix in SUFFIXES]


def _forgetting(store: Store) -> Forgetting | None:
    """What the texts outside the task are, or None without any."""
    tokens = store.forgetting_tokens()
    if len(tokens) == 0:
        return None
    return {"texts": len(tokens), "tokens": int(tokens.sum()), "source": store.recall("control")}


def measured_points(store: Store, split: str) -> list[Point]:
    """Every point of a split with its scores per prompt."""
    names, samples, tokens = store.recall("reward_names"), store.recall("samples_per_prompt"), store.forgetting_tokens()
    behaviours = read_behaviour(store, split, names)

    def forgetting(spec: int) -> dict[str, np.ndarray]:
        nll = store.nll(spec)
        return {"nll": nll, "text_tokens": tokens} if len(nll) else {}

    return [
        Point(
            id=point.id,
            group=point.group,
            spec=point.spec.to_dict(),
            scores=store.scores(point.spec_id, split, names),
            kl=store.kl(point.spec_id, split),
            samples_per_prompt=samples,
            behaviour=behaviours[point.spec_id],
            **forgetting(point.spec_id),
        )
        for point in store.points(split)
    ]

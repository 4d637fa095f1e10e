"""Points of a sweep in experiment trackers (trackio, wandb, tensorboard, mlflow, ...), each as soon as it is done.

accelerate knows the trackers; this says what a point tells them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lines.config import missing_trackers
from rlhf_lines.errors import unknown_name


PROJECT = "rlhf_lines"
NAMED = ("trackio", "wandb")  # whose init takes a name of the run


class Trackers:
    """The trackers of one run, which are told of its points."""

    def __init__(self, trackers: Sequence[Any]) -> None:
        self._trackers = trackers

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def tell(self, split: str, group: str, weights: Sequence[float], measured: Mapping[str, float], step: int) -> None:
        """Tell them of a point.

        Args:
            split: the prompts that it was measured on.
            group: its group.
            weights: of its spec.
            measured: its id and the means of what was measured, by name.
            step: how many points were told before it.
        """
        values = {f"weight_{number}": weight for number, weight in enumerate(weights, start=1)} | dict(measured)
        for tracker in self._trackers:
            tracker.log({f"{split}/{group}/{name}": value for name, value in values.items()}, step=step)


def tracker_problems(names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the trackers that a config names: one is unknown, or its package is not installed."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            yield f"report_to: {unknown_name('tracker', name, LOGGER_TYPE_TO_CLASS)}"
        elif LOGGER_TYPE_TO_CLASS[name].__module__.startswith("accelerate."):  # others are of the user's own code
            yield from missing_trackers([name])


@contextlib.contextmanager
def open_trackers(names: Sequence[str], run_name: str, folder: Path, settings: Mapping[str, Any]) -> Iterator[Trackers]:
    """Open trackers, which get the settings of the run first, and close them at the end.

    Args:
        names: as accelerate has them.
        run_name: of the run, in the project `rlhf_lines`.
        folder: of the run; a tracker that writes files does so in `trackers/` there.
        settings: of the run, without secrets.
    """
    if not names:
        yield Trackers([])
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    opened = []
    try:
        for name in dict.fromkeys(names):
            kind = LOGGER_TYPE_TO_CLASS[name]
            options = {"logging_dir": str(folder / "trackers")} if kind.requires_logging_directory else {}
            tracker = kind(PROJECT, **options, **({"name": run_name} if name in NAMED else {}))
            tracker.start()
            opened.append(tracker)
            tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
        yield Trackers(opened)
    finally:
        for tracker in opened:
            tracker.finish()


def _plain(value: Any) -> bool | int | float | str:
    """A setting as trackers take it."""
    return value if isinstance(value, (bool, int, float, str)) else str(value)

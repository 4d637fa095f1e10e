"""What `rlhf-lines serve` tells the processes that vLLM starts: by an environment variable, the one way there is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


VARIABLE = "RLHF_LINES_SERVE"


@dataclass(frozen=True)
class Settings:
    """What is served, and where mixes are kept; paths are absolute.

    Attributes:
        run_dir: of the sweep.
        group: whose policies are mixed.
        cache_dir: where mixes are kept.
        most: how many mixes are known at once.
        dtype: of their factors on disk, which is that of the model.
        scale: of the scores that a preference weighs, see `pick`.
    """

    run_dir: str
    group: str
    cache_dir: str
    most: int
    dtype: str
    scale: str

    def to_environment(self) -> dict[str, str]:
        """As a variable of the environment."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """What `to_environment` put there."""
        return cls(**json.loads(environment[VARIABLE]))

"""A learned router: from what the SFT model makes of a prompt to the weights of the policies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lines.artifact import write_whole
from rlhf_lines.errors import about


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CARD, TENSORS = "router.json", "router.safetensors"
FORMAT = 1
_KEYS = {
    **{"points": list, "objectives": list, "policies_sha256": list, "prompts_sha256": list},
    **{"alpha": int | float, "beta": int | float, "schedule": str, "sft_sha256": str, "numbers_sha256": str},
}


@dataclass(frozen=True)
class Router:
    """Predicts, for a prompt, the utilities of merges that were measured; a preference chooses among them.

        u(x) = bias + features(x) . coefficients      [P, J], P points and J objectives
        i(x) = the point of the largest u_i(x) . preference,  w(x) = points[i(x)]

    Utilities are in units of the range of their objective, less the mean over the points, which no choice depends on.

    Attributes:
        folder: where `rlhf-lines router` wrote it.
        card: what `router.json` holds: points, alpha, beta and schedule of the merges that were measured, objectives,
            and hashes: of the SFT model, of the policies, of the prompts that it was learned on, and of the numbers.
    """

    folder: Path
    card: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Router:
        """The router in a folder; its numbers are read when first needed.

        Raises:
            FileNotFoundError: there is none.
            ValueError: its card is damaged, or of another format.
        """
        path = Path(folder) / CARD
        if not path.is_file():
            raise FileNotFoundError(f"router {folder} has no {CARD}: make it with rlhf-lines router")
        with about(f"{path} cannot be read"):
            card = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(card, dict) or card.get("format") != FORMAT:
            raise ValueError(f"{path} is not of format {FORMAT}: make it again with rlhf-lines router")
        for key, kind in _KEYS.items():
            if not isinstance(card.get(key), kind) or (key == "points" and not _are_points(card[key])):
                raise ValueError(f"{path} has no {key}, or a wrong one: make it again with rlhf-lines router")
        return cls(Path(folder), card)

    def write(self, bias: NDArray[np.float64], coefficients: NDArray[np.float64]) -> None:
        """Write the numbers, `[P, J]` and `[d, P, J]`, and the card with their hash."""
        from safetensors.numpy import save

        numbers = save({"bias": bias, "coefficients": coefficients})
        (self.folder / TENSORS).write_bytes(numbers)
        card = {"format": FORMAT, **self.card, "numbers_sha256": hashlib.sha256(numbers).hexdigest()}
        write_whole(self.folder / CARD, json.dumps(card, indent=1) + "\n")

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits over the card, and so over all that it is made of: what a spec calls the router."""
        return hashlib.sha256(json.dumps(self.card, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def points(self) -> list[tuple[float, ...]]:
        """The weights of the merges among which it chooses, one row per point."""
        return [tuple(row) for row in self.card["points"]]

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """The utilities of every point, `[n, P, J]`, for features `[n, d]`.

        Raises:
            ValueError: the numbers are not those of the card, or of another width.
        """
        bias, coefficients = self._numbers
        if features.shape[1] != len(coefficients):
            raise ValueError(
                f"router {self.folder} reads states of {len(coefficients)} numbers, and the SFT model has "
                f"{features.shape[1]}: learn one for it"
            )
        return bias + (features @ coefficients.reshape(len(coefficients), -1)).reshape(-1, *bias.shape)

    @cached_property
    def _numbers(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        from safetensors.numpy import load

        path = self.folder / TENSORS
        with about(f"{path} cannot be read"):
            numbers = path.read_bytes()
        if hashlib.sha256(numbers).hexdigest() != self.card["numbers_sha256"]:
            raise ValueError(f"{path} is not the file that {CARD} beside it tells of: copy both again")
        tensors = load(numbers)
        return tensors["bias"], tensors["coefficients"]


def _are_points(rows: list[Any]) -> bool:
    """Whether these are weights, as many in every row."""
    if not all(isinstance(row, list) and row for row in rows) or len({len(row) for row in rows}) != 1:
        return False
    return all(isinstance(weight, int | float) for row in rows for weight in row)


def text_sha256(text: str) -> str:
    """What tells a prompt apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

"""The policies of a finished sweep, which must still be what they were then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE, Adapter
from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.models import local_folder
from rlhf_lines.pareto import Front
from rlhf_lines.sha256 import sha256_of
from rlhf_lines.sweep.adapters import load_policies
from rlhf_lines.sweep.store import open_finished


@dataclass(frozen=True)
class Swept:
    """Some policies of a finished sweep, which are what they were then.

    Attributes:
        sft: folder of the SFT model.
        folders: of the policies.
        dtype: in which the sweep loaded the SFT model.
    """

    sft: Path
    folders: list[Path]
    dtype: str

    def load(self) -> list[Adapter]:
        """The policies.

        Raises:
            FileNotFoundError, ValueError: as `load_policies`.
        """
        # What they call the SFT model has been settled by the sweep, with hashes.
        return load_policies(self.folders, self.sft, sft_renamed=True)

    def made_of(self) -> dict[str, Any]:
        """What a merge of them depends on beside its spec, as plain JSON values."""
        return {
            "format": 1,
            "sft_sha256": checkpoint_sha256(self.sft),
            "policies_sha256": [sha256_of([folder / WEIGHTS_FILE]) for folder in self.folders],
        }


def read_swept(run_dir: str | Path, front: Front, places: Sequence[int]) -> Swept:
    """The policies of a finished sweep that stand at these places of the front.

    Raises:
        FileNotFoundError: there is no finished sweep, or its models are gone.
        ValueError: they have changed since.
    """
    with open_finished(run_dir) as store:
        dtype, sft_sha256 = store.recall("dtype"), store.recall("sft_sha256")
        policies_sha256 = store.recall("policies_sha256")
    problems, folders = Problems(), []
    with problems.collect():
        sft = local_folder(front["sft_model"], what="SFT model")
    for place in places:
        with problems.collect():
            folders.append(local_folder(front["policies"][place], what="policy"))
    problems.check()
    swept = Swept(sft, folders, dtype)
    found = swept.made_of()
    if found["sft_sha256"] != sft_sha256:
        problems.add(f"the SFT model {sft} is not the one that was swept (its weights differ): restore it")
    for place, folder, sha256 in zip(places, folders, found["policies_sha256"], strict=True):
        if sha256 != policies_sha256[place]:
            problems.add(f"policy {folder} is not the one that was swept (its weights differ): restore it, or sweep it")
    problems.check()
    return swept

"""The models of a finished sweep, which must still be what they were then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.fingerprints import check_unchanged
from rlhf_lines.models import local_folder
from rlhf_lines.sweep.adapters import load_policies
from rlhf_lines.sweep.finished.front import policies_of
from rlhf_lines.sweep.inputs import fingerprints_of_models, numbered_policies
from rlhf_lines.sweep.store import Store


@dataclass(frozen=True)
class Swept:
    """The SFT model of a finished sweep and some of its policies, which are what they were then.

    Attributes:
        sft: folder of the SFT model.
        policies: folders of the policies.
        dtype: in which the sweep loaded the SFT model.
        load_in_8bit: whether it did so in 8 bits.
        load_in_4bit: whether in 4.
    """

    sft: Path
    policies: list[Path]
    dtype: str
    load_in_8bit: bool
    load_in_4bit: bool

    @property
    def quantized(self) -> bool:
        """Whether the SFT model is loaded in 8 or 4 bits."""
        return self.load_in_8bit or self.load_in_4bit

    def load(self) -> list[Adapter]:
        """The policies.

        Raises:
            FileNotFoundError, ValueError: as `load_policies`.
        """
        # What they call the SFT model has been settled by the sweep, with hashes.
        return load_policies(self.policies, self.sft, sft_renamed=True, quantise=self.quantized)


def read_swept(
    run_dir: str | Path, store: Store, places: Sequence[int] | None = None, *, sft_model: str | None = None
) -> Swept:
    """The models of a finished sweep.

    Args:
        run_dir: of the sweep.
        store: its run store.
        places: of the policies that are asked for, among the weights of specs; None is all.
        sft_model: where the SFT model is now; None is where it was.

    Raises:
        FileNotFoundError: a model is no longer where it was.
        ValueError: one has changed since.
    """
    listed = policies_of(store)
    numbered = numbered_policies(store.recall("policies"), store.recall("morlhf"), listed)
    asked = numbered if places is None else [numbered[place] for place in places]
    problems, policies = Problems(), []
    with problems.collect():
        sft = local_folder(sft_model or store.recall("sft_model"), what="SFT model")
    for what, _, name in asked:
        with problems.collect():
            policies.append(local_folder(name, what=what))
    problems.check()
    found = fingerprints_of_models(store.recall("sft_model"), sft, zip(asked, policies, strict=True), [])
    way_out = "restore it, or sweep again"
    check_unchanged(store.recall("inputs_sha256", {}), found, since=f"the sweep in {run_dir}", way_out=way_out)
    bits = (store.recall(name, False) for name in ("load_in_8bit", "load_in_4bit"))
    return Swept(sft, policies, store.recall("dtype"), *bits)

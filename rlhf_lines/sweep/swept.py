"""The models of a finished sweep, which must still be what they were then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import Adapter
from rlhf_lines.merge.inputs.fingerprints import Fingerprint, check_unchanged
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
        vllm: the arguments of its vLLM that change numbers.
    """

    sft: Path
    policies: list[Path]
    dtype: str
    load_in_8bit: bool
    load_in_4bit: bool
    vllm: dict[str, Any]

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


@dataclass(frozen=True)
class Named:
    """The models of a finished sweep, as its run store names them: of a process that has no such file, too.

    Attributes:
        run_dir: of the sweep.
        sft_model: where the SFT model was then.
        sft_now: where it is now.
        policies: what each is, its number among those, and where it is; see `numbered_policies`.
        sha256: the fingerprints of the sweep.
        dtype: see `Swept`.
        load_in_8bit: see `Swept`.
        load_in_4bit: see `Swept`.
        vllm: see `Swept`.
    """

    run_dir: str
    sft_model: str
    sft_now: str
    policies: list[tuple[str, int, str]]
    sha256: dict[str, Fingerprint]
    dtype: str
    load_in_8bit: bool
    load_in_4bit: bool
    vllm: dict[str, Any]

    def find(self) -> Swept:
        """The models, on this machine.

        Raises:
            FileNotFoundError: a model is no longer where it was.
            ValueError: one has changed since.
        """
        problems, folders = Problems(), []
        with problems.collect():
            sft = local_folder(self.sft_now, what="SFT model")
        for what, _, place in self.policies:
            with problems.collect():
                folders.append(local_folder(place, what=what))
        problems.check()
        found = fingerprints_of_models(self.sft_model, sft, zip(self.policies, folders, strict=True), [])
        way_out = "restore it, or sweep again"
        check_unchanged(self.sha256, found, since=f"the sweep in {self.run_dir}", way_out=way_out)
        return Swept(sft, folders, self.dtype, self.load_in_8bit, self.load_in_4bit, self.vllm)


def read_swept(
    run_dir: str | Path, store: Store, places: Sequence[int] | None = None, *, sft_model: str | None = None
) -> Swept:
    """The models of a finished sweep; see `named_models`.

    Raises:
        FileNotFoundError: a model is no longer where it was.
        ValueError: one has changed since.
    """
    return named_models(run_dir, store, places, sft_model=sft_model).find()


def named_models(
    run_dir: str | Path, store: Store, places: Sequence[int] | None = None, *, sft_model: str | None = None
) -> Named:
    """What the run store of a finished sweep says of its models.

    Args:
        run_dir: of the sweep.
        store: its run store.
        places: of the policies that are asked for, among the weights of specs; None is all.
        sft_model: where the SFT model is now; None is where it was.
    """
    numbered = numbered_policies(store.recall("policies"), store.recall("morlhf"), policies_of(store))
    asked = numbered if places is None else [numbered[place] for place in places]
    bits = (store.recall(name, False) for name in ("load_in_8bit", "load_in_4bit"))
    then = store.recall("sft_model")
    sha256, dtype = store.recall("inputs_sha256", {}), store.recall("dtype")
    vllm = store.recall("vllm", None) or {}
    return Named(str(run_dir), then, sft_model or then, list(asked), sha256, dtype, *bits, vllm)

"""The statistics that two rules need of each policy, from the folders that their verbs made."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lines.errors import Problems, counted
from rlhf_lines.merge.inputs.adapter import RECORD_FILE
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, read_json
from rlhf_lines.merge.inputs.fingerprints import config_sha256
from rlhf_lines.merge.inputs.optimizer_state import OPTIMIZER_FILE, OptimizerState
from rlhf_lines.merge.inputs.provenance import weights_sha256
from rlhf_lines.merge.inputs.statistics import Statistics
from rlhf_lines.merge.layers import is_linear_map
from rlhf_lines.merge.tensors.precision import DTYPES, wide
from rlhf_lines.merge.tensors.residuals import Tensors
from rlhf_lines.merge.tensors.tensor_file import TensorFile
from rlhf_lines.sha256 import sha256_of


# Keys of the metadata of Gram matrices, all JSON: which linear maps share one, which weights are stored [in, out].
SAME_INPUT = "same_input"
TRANSPOSED = "transposed"
PLUS_PLUS = "plus_plus"  # with what RegMean++ merged the layers before, where the Gram matrices are for it


class StatisticsFile:
    """One policy's statistics, read in part, as `Tensors`.

    Attributes:
        shapes: parameter name to the shape of what is known about it; several names may share one tensor.
        plus_plus: of Gram matrices for RegMean++ the `reduce` and the hashes of the `policies` of the merge; else None.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._stored = json.loads(file.metadata.get(SAME_INPUT, "{}")) or {name: name for name in file.entries}
        self.plus_plus = json.loads(file.metadata.get(PLUS_PLUS, "null"))
        self.shapes = {name: file.entries[held].shape for name, held in self._stored.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor, in float32 or wider."""
        held = self._stored[name]
        buffer = torch.empty(stop - start, dtype=self._file.entries[held].dtype)
        self._file.read_into(buffer, held, start)
        return wide(buffer, name)


def statistics_path(kind: Statistics, folder: str | Path) -> Path:
    """The file in a folder that holds its statistics: that of the verb, or an optimiser's state if that will do."""
    path, state = Path(folder) / kind.file, Path(folder) / OPTIMIZER_FILE
    return state if kind.or_optimizer and not path.is_file() and state.is_file() else path


def open_statistics(
    kind: Statistics | None,
    folders: Sequence[str | Path],
    stack: contextlib.ExitStack,
    sft: Checkpoint | None = None,
) -> list[Tensors]:
    """The statistics in the folders, open until `stack` closes; none where `kind` is None.

    Optimisers' states get the names of the SFT model's files where it is given.
    """
    if kind is None:
        return []
    opened = []
    for folder in folders:
        if statistics_path(kind, folder).name == OPTIMIZER_FILE:
            opened.append(OptimizerState(folder, sft))
            continue
        file = TensorFile(Path(folder) / kind.file)
        stack.callback(file.close)
        opened.append(StatisticsFile(file))
    return opened


def coverage_warnings(
    kind: Statistics | None, statistics: Sequence[Tensors], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """One warning where parameters of these shapes get the weighted mean because a policy has no statistics of them."""
    if kind is None:
        return []
    could = [name for name, shape in shapes.items() if not kind.of_linear_maps or is_linear_map(name, shape)]
    have = [name for name in could if all(name in tensors.shapes for tensors in statistics)]
    if have == could:
        return []
    covered, size = (sum(math.prod(shapes[name]) for name in names) for names in (have, could))
    return [
        f"the statistics cover {len(have)} of {len(could)} {'linear maps' if kind.of_linear_maps else 'parameters'} "
        f"that the policies change ({covered / size if size else 1:.1%} of their elements); the rest gets the weighted "
        f"mean (policies that adapt different modules need `rlhf-lines {kind.verb} --parameters all`)"
    ]


def statistics_sha256(kind: Statistics, folder: str | Path) -> str:
    """SHA-256 over the file of statistics in a folder."""
    return sha256_of([statistics_path(kind, folder)])


def check_statistics(
    rule: str, kind: Statistics | None, folders: Sequence[str | Path], policies: Sequence[str | Path]
) -> None:
    """Stop unless there is one folder of the right kind per policy, made of that policy; all problems are told at once.

    Where `kind` is None, there must be none.

    Raises:
        ValueError: a number that does not fit, or statistics of another policy.
        FileNotFoundError: a folder lacks the file.
    """
    if kind is None:
        if folders:
            raise ValueError(f"statistics are given, but rule {rule!r} uses none; leave them out")
        return
    if len(folders) != len(policies):
        raise ValueError(
            f"rule {rule!r} needs the statistics of each policy, got {len(folders)} for "
            f"{counted(len(policies), 'policy', 'policies')}; make them with `rlhf-lines {kind.verb}` and give the "
            "folders with --statistics, in the order of the policies"
        )
    problems = Problems()
    for folder, policy in zip(folders, policies, strict=True):
        with problems.collect():
            _check_folder(kind, Path(folder), policy)
    problems.check()


def _check_folder(kind: Statistics, folder: Path, policy: str | Path) -> None:
    path = statistics_path(kind, folder)
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {kind.file}; expected the folder that `rlhf-lines {kind.verb}` makes"
            + (f", or a Trainer's checkpoint with its {OPTIMIZER_FILE}" if kind.or_optimizer else "")
        )
    if path.name == OPTIMIZER_FILE:
        OptimizerState(folder)
        _check_made_of(folder, policy, {"policy_sha256": weights_sha256(folder)})
        return
    file = TensorFile(path)
    file.close()
    if not all(entry.dtype in DTYPES.values() for entry in file.entries.values()):
        raise ValueError(f"{str(path)!r} holds tensors that are not floating-point; make it again")
    _check_made_of(folder, policy, read_json(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else {})


def _check_made_of(folder: Path, policy: str | Path, record: Mapping[str, str]) -> None:
    """Stop where statistics are of another policy than the record of them says."""
    for key, part, sha256_now in (
        ("policy_sha256", "weights", weights_sha256),
        ("policy_config_sha256", "a config", config_sha256),
    ):
        made_of = record.get(key)
        if made_of is not None and made_of != (found := sha256_now(policy)):
            raise ValueError(
                f"the statistics in {str(folder)!r} are of a policy with {part} {made_of[:12]}, but {str(policy)!r} "
                f"has {found[:12]}; give the folders in the order of the policies"
            )

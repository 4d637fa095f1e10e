"""The statistics that two rules need of each policy, from the folders that their verbs made."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import RECORD_FILE
from rlhf_lines.merge.inputs.checkpoint import read_json, sha256_of
from rlhf_lines.merge.inputs.provenance import weights_sha256
from rlhf_lines.merge.layers import is_embedding
from rlhf_lines.merge.rules.common import VERBS
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.tensors.residuals import Tensors
from rlhf_lines.merge.tensors.tensor_file import TensorFile


FISHER_FILE = "fisher.safetensors"
GRAM_FILE = "gram.safetensors"
# Keys of the metadata of GRAM_FILE, both JSON: which layers share a matrix, which weights are stored [in, out].
SAME_INPUT = "same_input"
TRANSPOSED = "transposed"
FILES = {"fisher": FISHER_FILE, "regmean": GRAM_FILE}  # by rule


class StatisticsFile:
    """One policy's statistics, read in part, as `Tensors`.

    Attributes:
        shapes: parameter name to the shape of what is known about it; several names may share one tensor.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        stored = json.loads(file.metadata.get(SAME_INPUT, "{}")) or {name: name for name in file.entries}
        self._stored = stored
        self.shapes = {name: file.entries[held].shape for name, held in stored.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements start..stop of the flattened tensor, in float32 or wider."""
        held = self._stored[name]
        buffer = torch.empty(stop - start, dtype=self._file.entries[held].dtype)
        self._file.read_into(buffer, held, start)
        return buffer if buffer.dtype == torch.float64 else buffer.to(torch.float32)


def open_statistics(rule: str, folders: Sequence[str | Path], stack: contextlib.ExitStack) -> list[Tensors]:
    """The statistics in the folders, open until `stack` closes; none for a rule that needs none."""
    if rule not in FILES:
        return []
    opened = []
    for folder in folders:
        file = TensorFile(Path(folder) / FILES[rule])
        stack.callback(file.close)
        opened.append(StatisticsFile(file))
    return opened


@dataclass(frozen=True)
class Coverage:
    """How much of what a rule could weigh has statistics from every policy.

    Attributes:
        parameters: their number.
        of: how many there could be: of `fisher` all parameters that a policy changes, of `regmean` the linear maps.
        elements: the share of the elements of those.
    """

    parameters: int
    of: int
    elements: float


def coverage(rule: str, statistics: Sequence[Tensors], shapes: Mapping[str, tuple[int, ...]]) -> Coverage | None:
    """What the statistics cover; None for a rule that needs none.

    Args:
        rule: its name.
        statistics: K sets, from `open_statistics`.
        shapes: of the parameters that a policy changes.
    """
    if rule not in FILES:
        return None
    could = [name for name, shape in shapes.items() if rule == "fisher" or (len(shape) == 2 and not is_embedding(name))]
    have = [name for name in could if all(name in tensors.shapes for tensors in statistics)]
    covered, size = (sum(math.prod(shapes[name]) for name in names) for names in (have, could))
    return Coverage(len(have), len(could), covered / size if size else 1.0)


def coverage_warnings(rule: str, statistics: Sequence[Tensors], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One warning where parameters get the weighted mean because some policy has no statistics of them."""
    covered = coverage(rule, statistics, shapes)
    if covered is None or covered.parameters == covered.of:
        return []
    kind = "linear maps" if rule == "regmean" else "parameters"
    return [
        f"the statistics cover {covered.parameters} of {covered.of} {kind} that the policies change "
        f"({covered.elements:.1%} of their elements); the rest gets the weighted mean (policies that adapt different "
        f"modules need `rlhf-lines {VERBS[rule]} --parameters all`)"
    ]


def statistics_sha256(rule: str, folder: str | Path) -> str:
    """SHA-256 over the file of statistics in a folder."""
    return sha256_of([Path(folder) / FILES[rule]])


def check_statistics(rule: str, folders: Sequence[str | Path], policies: Sequence[str | Path]) -> None:
    """Stop unless there is one folder of the right kind per policy, made of that policy; all problems are told at once.

    Raises:
        ValueError: a number that does not fit, statistics of another policy, weights stored the other way round.
        FileNotFoundError: a folder lacks the file.
    """
    if rule not in FILES:
        if folders:
            raise ValueError(f"statistics are given, but rule {rule!r} uses none; leave them out")
        return
    if len(folders) != len(policies):
        raise ValueError(
            f"rule {rule!r} needs the statistics of each policy, got {len(folders)} for {len(policies)} policies; make "
            f"them with `rlhf-lines {VERBS[rule]}` and give the folders with --statistics, in the order of the policies"
        )
    problems = Problems()
    for folder, policy in zip(folders, policies, strict=True):
        with problems.collect():
            _check_folder(rule, Path(folder), policy)
    problems.check()


def _check_folder(rule: str, folder: Path, policy: str | Path) -> None:
    path = folder / FILES[rule]
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {FILES[rule]}; expected the folder that `rlhf-lines {VERBS[rule]}` makes"
        )
    file = TensorFile(path)
    file.close()
    if not all(entry.dtype in DTYPES.values() for entry in file.entries.values()):
        raise ValueError(f"{str(path)!r} holds tensors that are not floating-point; make it again")
    transposed = json.loads(file.metadata.get(TRANSPOSED, "[]"))
    if rule == "regmean" and transposed:
        raise ValueError(
            f"{str(path)!r} is of a model whose weights are stored [in, out] ({transposed[0]!r}), which rule 'regmean' "
            "does not take; use another rule"
        )
    record = folder / RECORD_FILE
    made_of = read_json(record).get("policy_sha256") if record.is_file() else None
    if made_of is not None and made_of != weights_sha256(policy):
        raise ValueError(
            f"the statistics in {str(folder)!r} are of a policy with weights {made_of[:12]}, but {str(policy)!r} has "
            f"{weights_sha256(policy)[:12]}; give the folders in the order of the policies"
        )

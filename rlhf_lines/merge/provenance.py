"""Whether policies and SFT model belong together: what their files prove, refute, or leave open."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_lines.merge.checkpoint import Checkpoint, checkpoint_sha256, read_json, sha256_of
from rlhf_lines.merge.precision import LostResidual
from rlhf_lines.merge.residuals import (
    RECORD_FILE,
    WEIGHTS_FILE,
    Adapter,
    check_same_base,
    is_adapter,
    load_adapter,
)
from rlhf_lines.merge.streamed import shape_difference
from rlhf_lines.merge.tokenizers import compare_tokenizers
from rlhf_lines.problems import Problems


MERGE_RECORD = "merge_spec.json"
MUCH_LOST = 0.1  # of the merged residual, above which a merge warns
# Keys of config.json that say what the parameters are, in the words of Llama's and GPT-2's relatives.
_SIZES = (
    "model_type",
    "vocab_size",
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "num_local_experts", "n_embd", "n_inner", "n_layer", "n_head", "n_positions"),
)
# Keys that do not change what the model computes.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "pad_token_id", "torch_dtype", "transformers_version")
_BOOKKEEPING += ("use_cache",)


def load_inputs(
    sft: Checkpoint, policies: Sequence[str | Path], stack: contextlib.ExitStack
) -> tuple[list[Adapter | Checkpoint], list[str]]:
    """The policies, read (adapters) or opened until `stack` closes (checkpoints), and warnings of `check_inputs`.

    Raises:
        ValueError, FileNotFoundError: the one problem; `InputProblems` with all of them if there are several.
    """
    problems = Problems()
    loaded: list[Adapter | Checkpoint] = []
    for policy in policies:
        with problems.collect():
            loaded.append(load_adapter(policy) if is_adapter(policy) else stack.enter_context(Checkpoint(policy)))
    warnings: list[str] = []
    with problems.collect():
        warnings = check_inputs(sft, loaded)
    problems.check()
    return loaded, warnings


def check_inputs(sft: Checkpoint, policies: Sequence[Adapter | Checkpoint]) -> list[str]:
    """What cannot be known about the origin of policies, and what differs without stopping a merge, as warnings.

    An adapter must have been trained on this SFT model: by hash where it records one, else by path. A checkpoint must
    have its architecture, names and shapes, and its hash where it records one. Vocabularies must be equal.

    Raises:
        ValueError, FileNotFoundError: the one problem; `InputProblems` with all of them if there are several.
    """
    problems = Problems()
    warnings: list[str] = []
    adapters = [policy for policy in policies if isinstance(policy, Adapter)]
    if adapters:
        with problems.collect():
            check_same_base(adapters, sft.folder)
    for policy in policies:
        folder = Path(policy.path) if isinstance(policy, Adapter) else policy.folder
        if isinstance(policy, Checkpoint):
            for problem in _shape_problems(policy, sft):
                problems.add(problem)
            warnings += _config_warnings(policy, sft)
        with problems.collect():
            warnings += _origin_warnings(policy, folder, sft)
        with problems.collect():
            warnings += compare_tokenizers(folder, sft.folder)
    problems.check()
    return warnings


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 over the weights of an adapter or a checkpoint (that is `checkpoint_sha256`)."""
    return sha256_of([Path(folder) / WEIGHTS_FILE]) if is_adapter(folder) else checkpoint_sha256(folder)


def hub_id(folder: str | Path) -> str | None:
    """The Hub id of a model whose folder is a snapshot in the Hub's cache, or None.

    >>> hub_id("/cache/hub/models--org--model/snapshots/9be4410")
    'org/model'
    """
    cached = re.search(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/?$", str(folder))
    return cached[1].replace("--", "/") if cached else None


def loss_warnings(lost: LostResidual, *, dtype: str, save: str, adapters_only: bool) -> list[str]:
    """One warning where the output dtype lost more than a tenth of the merged residual, with the ways out."""
    if lost.relative_l2 <= MUCH_LOST:
        return []
    ways = [] if dtype in ("float32", "float64") else ["write float32 (--dtype float32)"]
    if save == "dense" and adapters_only:
        ways.append("save an adapter, which keeps the residual apart from the weights (--save adapter)")
    return [
        f"{dtype} lost {lost.relative_l2:.1%} of the merged residual (relative L2): "
        + (" or ".join(ways) or "the residual is tiny beside the weights, look at alpha, beta and the weights")
    ]


def _shape_problems(policy: Checkpoint, sft: Checkpoint) -> Iterator[str]:
    theirs, ours = _flat(policy.config), _flat(sft.config)
    differing = [
        f"{key} {theirs[key]!r} (the SFT model {ours[key]!r})"
        for key in _SIZES
        if key in theirs and key in ours and theirs[key] != ours[key]
    ]
    of_shapes = shape_difference(policy, sft)
    if differing:
        said = f"is not of the SFT model's architecture: it has {', '.join(differing)}"
        yield f"policy {str(policy.folder)!r} {said}{f', and {of_shapes}' if of_shapes else ''}"
    elif of_shapes:
        yield f"policy {str(policy.folder)!r} {of_shapes}"


def _config_warnings(policy: Checkpoint, sft: Checkpoint) -> list[str]:
    theirs, ours = _flat(policy.config), _flat(sft.config)
    # Versions of transformers write different sets of defaults, so only what both state is compared.
    keys = sorted((theirs.keys() & ours.keys()) - {*_SIZES, *_BOOKKEEPING})
    differing = [f"{key} {theirs[key]!r} (the SFT model {ours[key]!r})" for key in keys if theirs[key] != ours[key]]
    if not differing:
        return []
    return [
        f"policy {str(policy.folder)!r} has {', '.join(differing)} in config.json; the merged model gets the SFT "
        "model's settings"
    ]


def _origin_warnings(policy: Adapter | Checkpoint, folder: Path, sft: Checkpoint) -> list[str]:
    recorded, file = _recorded_sft(folder)
    if recorded is not None:
        given = weights_sha256(sft.folder)
        # Adapters that all record a hash have been compared by check_same_base.
        if recorded != given:
            kind = "adapter" if isinstance(policy, Adapter) else "policy"
            raise ValueError(
                f"{kind} {str(folder)!r} was trained on SFT weights {recorded[:12]}, but {str(sft.folder)!r} holds "
                f"{given[:12]}; residuals add up only on one base (see sft_sha256 in {file})"
            )
        return []
    if isinstance(policy, Checkpoint):
        return [
            f"policy {str(folder)!r} does not record which SFT model it was trained from: its architecture fits, but "
            "whether it started from these weights cannot be known"
        ]
    if policy.revision and policy.revision == sft.folder.resolve().name and hub_id(sft.folder.resolve()):
        return []
    return [
        f"policy {str(folder)!r} names its SFT model ({policy.base}) but records no hash of it: whether the weights "
        "there are still those that it was trained on cannot be known"
    ]


def _recorded_sft(folder: Path) -> tuple[str | None, str]:
    """The hash of the SFT model that a stage of this package wrote beside a policy, and the file that has it."""
    for file in (RECORD_FILE, MERGE_RECORD):
        if (folder / file).is_file() and (found := read_json(folder / file).get("sft_sha256")):
            if not isinstance(found, str):
                raise ValueError(
                    f"{str(folder / file)!r} has sft_sha256 {found!r}, expected a text; copy it again or remove that"
                )
            return found, file
    return None, RECORD_FILE


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the language model, which multimodal configs keep in `text_config`."""
    inner = config.get("text_config") or {}
    return {**{key: value for key, value in config.items() if key != "text_config"}, **inner}

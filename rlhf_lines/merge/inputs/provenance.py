"""Whether policies and SFT model belong together: what their files prove, refute, or leave open."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import (
    RECORD_FILE,
    WEIGHTS_FILE,
    Adapter,
    copy_key,
    is_adapter,
    load_adapter,
    parameters_of,
)
from rlhf_lines.merge.inputs.adapter_config import CONFIG_FILE, WAY_OUT
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, checkpoint_sha256, read_json, sha256_of
from rlhf_lines.merge.inputs.policies import shape_difference
from rlhf_lines.merge.inputs.tokenizers import compare_tokenizers


MERGE_RECORD = "merge_spec.json"
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


def load_adapters(paths: Sequence[str | Path], sft_model: str | Path) -> list[Adapter]:
    """The adapters of several policies, all trained on `sft_model`; what is wrong with any of them is told at once.

    Raises:
        FileNotFoundError, ValueError: as `load_adapter` and `check_same_base`; `InputProblems` for several problems.
    """
    problems = Problems()
    adapters = []
    for path in paths:
        with problems.collect():
            adapters.append(load_adapter(path))
    if adapters:
        with problems.collect():
            check_same_base(adapters, sft_model)
    problems.check()
    return adapters


def check_same_base(adapters: Sequence[Adapter], sft_model: str | Path) -> None:
    """Stop unless every adapter was trained on `sft_model`: residuals add up only on one base.

    If every adapter records the hash of its SFT model, the hashes decide, so a moved folder is fine. Otherwise
    `base_model_name_or_path` decides, resolved where it exists. If `sft_model` is a local folder, the adapted
    parameters must exist there with matching shapes (file headers only), and base weights that an adapter's file holds
    must be those of the SFT model. A Hub id that is not a folder is compared as a name.

    Raises:
        ValueError: another base, a base that is not recorded, a parameter that the SFT model lacks, another shape, or
            other base weights; `InputProblems` with the first of each adapter if there are several.
    """
    if not adapters:
        raise ValueError("check_same_base got no adapters, expected at least one")
    by_hash = all(adapter.sft_sha256 for adapter in adapters)
    given = checkpoint_sha256(sft_model) if by_hash and Path(sft_model).is_dir() else None
    problems = Problems()
    with contextlib.ExitStack() as stack:
        checkpoint = stack.enter_context(Checkpoint(sft_model)) if Path(sft_model).is_dir() else None
        for adapter in adapters:
            with problems.collect():
                if by_hash:
                    _check_hash(adapter, adapters[0], sft_model, given)
                else:
                    _check_path(adapter, adapters[0], sft_model)
                if checkpoint is not None:
                    _check_copies(adapter, parameters_of(adapter, checkpoint), checkpoint)
    problems.check()


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


def called(model: str | Path) -> str:
    """What an input is called where others may read it: its Hub id, or its folder's name without where that lies.

    >>> called("/home/me/runs/helpful"), called("org/model")
    ('helpful', 'org/model')
    """
    text = str(model)
    if (on_hub := hub_id(text)) is not None:
        return on_hub
    is_path = text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).exists()
    return Path(text).name or text if is_path else text


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


def _check_copies(adapter: Adapter, parameters: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Stop unless the base weights in an adapter's file are those of the SFT model, as their dtype holds them."""
    if not adapter.copied:
        return
    with safe_open(Path(adapter.path) / WEIGHTS_FILE, "pt") as file:
        for name, module in parameters.items():
            if module not in adapter.copied:
                continue
            copy = file.get_tensor(copy_key(module))
            if not torch.equal(checkpoint.read(name).to(copy.dtype), copy):
                raise ValueError(
                    f"adapter {adapter.path!r} holds a base weight of {module!r} that is not {name!r} of the SFT model "
                    f"{str(checkpoint.folder)!r}, so s B A is not the whole difference; {WAY_OUT}, or, if that weight "
                    "was not trained, save the adapter with save_pretrained(folder, save_embedding_layers=False)"
                )


def _check_hash(adapter: Adapter, first: Adapter, sft_model: str | Path, given: str | None) -> None:
    if adapter.sft_sha256 != first.sft_sha256:
        raise ValueError(
            f"adapter {adapter.path!r} was trained on SFT weights {adapter.sft_sha256[:12]}, {first.path!r} on "
            f"{first.sft_sha256[:12]}; residuals add up only on one base (see sft_sha256 in {RECORD_FILE})"
        )
    if adapter is first and given is not None and given != first.sft_sha256:
        raise ValueError(
            f"adapter {first.path!r} was trained on SFT weights {first.sft_sha256[:12]}, but {str(sft_model)!r} holds "
            f"{given[:12]}; residuals add up only on one base (see sft_sha256 in {RECORD_FILE})"
        )


def _check_path(adapter: Adapter, first: Adapter, sft_model: str | Path) -> None:
    if adapter.base is None:
        raise ValueError(
            f"adapter {adapter.path!r} does not say what it was trained on; write base_model_name_or_path into its "
            f"{CONFIG_FILE}"
        )
    differs = (_identity(adapter.base), adapter.revision) != (_identity(first.base or adapter.base), first.revision)
    if first.base is not None and differs:
        raise ValueError(
            f"adapter {adapter.path!r} was trained on {_shown(adapter)}, {first.path!r} on {_shown(first)}; residuals "
            f"add up only on one base (see {CONFIG_FILE})"
        )
    if (adapter is first or first.base is None) and _identity(adapter.base) not in _names_of(sft_model):
        raise ValueError(
            f"adapter {adapter.path!r} was trained on {_shown(adapter)}, but the SFT model given is "
            f"{str(sft_model)!r}; residuals add up only on one base (if the folder only moved, correct "
            f"base_model_name_or_path in {CONFIG_FILE})"
        )


def _identity(base: str | Path) -> str:
    path = Path(base).expanduser()
    return str(path.resolve()) if path.exists() else str(base).rstrip("/")


def _names_of(sft_model: str | Path) -> set[str]:
    """The names under which an adapter may know a model: its resolved path, and its Hub id if it is cached."""
    identity = _identity(sft_model)
    return {identity, hub_id(identity) or identity}


def _shown(adapter: Adapter) -> str:
    return f"{adapter.base}@{adapter.revision}" if adapter.revision else str(adapter.base)


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

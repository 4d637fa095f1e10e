"""Whether policies and SFT model belong together: what their files prove, refute, or leave open."""

from __future__ import annotations

import contextlib
import filecmp
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import (
    RECORD_FILE,
    WEIGHTS_FILE,
    Adapter,
    adapters_below,
    check_modules,
    is_adapter,
    load_adapter,
    renamed,
)
from rlhf_lines.merge.inputs.adapter_config import CONFIG_FILE, WAY_OUT
from rlhf_lines.merge.inputs.checkpoint import Checkpoint, checkpoint_sha256, read_json
from rlhf_lines.merge.inputs.policies import match_names
from rlhf_lines.merge.inputs.tokenizers import compare_tokenizers
from rlhf_lines.sha256 import sha256_of


MERGE_RECORD = "merge_spec.json"
# Keys of config.json that say what the parameters are, in the words of Llama's and GPT-2's relatives.
_SIZES = (
    "model_type",
    "vocab_size",
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "num_local_experts", "n_embd", "n_inner", "n_layer", "n_head", "n_positions"),
)
# Keys of an adapter's config that scale its factors.
_SCALES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
# Keys that do not change what the model computes.
_BOOKKEEPING = ("_name_or_path", "architectures", "dtype", "pad_token_id", "torch_dtype", "transformers_version")
_BOOKKEEPING += ("use_cache",)


def load_inputs(
    sft: Checkpoint, policies: Sequence[str | Path], stack: contextlib.ExitStack, *, sft_renamed: bool = False
) -> tuple[list[Adapter | Checkpoint], list[str]]:
    """The policies, read (adapters) or opened until `stack` closes (checkpoints), and warnings of `check_inputs`.

    Raises:
        ValueError, FileNotFoundError: the one problem; `InputProblems` with all of them if there are several.
    """
    problems = Problems()
    loaded: list[Adapter | Checkpoint] = []
    for policy in policies:
        with problems.collect():
            loaded.append(
                load_adapter(policy) if _is_meant_as_adapter(policy) else stack.enter_context(Checkpoint(policy))
            )
    warnings: list[str] = []
    with problems.collect():
        warnings = check_inputs(sft, loaded, sft_renamed=sft_renamed)
    problems.check()
    return with_names_of_one(loaded, sft), warnings


def load_adapters(
    paths: Sequence[str | Path], sft_model: str | Path, *, sft_renamed: bool = False
) -> tuple[list[Adapter], list[str]]:
    """The adapters of several policies for a stage that takes no others, checked as for a merge, and its warnings.

    Raises:
        FileNotFoundError, ValueError: as `load_inputs`; `InputProblems` for several problems.
    """
    problems = Problems()
    for path in paths:
        if not is_adapter(path):
            with problems.collect():
                load_adapter(path)  # which says what is missing
    with Checkpoint(sft_model) as sft, contextlib.ExitStack() as stack:
        with problems.collect():
            found = load_inputs(sft, [path for path in paths if is_adapter(path)], stack, sft_renamed=sft_renamed)
        problems.check()
    return found


def check_inputs(sft: Checkpoint, policies: Sequence[Adapter | Checkpoint], *, sft_renamed: bool = False) -> list[str]:
    """What cannot be known about the origin of policies, and what differs without stopping a merge, as warnings.

    An adapter must have been trained on this SFT model: by hash where it records one, else by path. A checkpoint must
    have its architecture, names and shapes, and its hash where it records one; those that record none are told in one
    warning. Vocabularies must be equal.

    Args:
        sft: the SFT model.
        policies: of which all stages ask the same.
        sft_renamed: adapters may know the SFT model by another name or revision.

    Raises:
        ValueError, FileNotFoundError: the one problem; `InputProblems` with all of them if there are several.
    """
    problems = Problems()
    warnings: list[str] = []
    unrecorded: list[Checkpoint] = []
    adapters = [policy for policy in policies if isinstance(policy, Adapter)]
    for checkpoint in (sft, *(policy for policy in policies if isinstance(policy, Checkpoint))):
        with problems.collect():
            checkpoint.check_numbers()
    by_hash = all(adapter.sft_sha256 for adapter in adapters)  # as check_same_base compares them
    if adapters:
        with problems.collect():
            check_same_base(adapters, sft.folder, sft_renamed=sft_renamed)
    for policy in policies:
        folder = _folder(policy)
        if isinstance(policy, Checkpoint):
            for problem in _shape_problems(policy, sft):
                problems.add(problem)
            warnings += _config_warnings(policy, sft)
        with problems.collect():
            if not (isinstance(policy, Adapter) and by_hash):
                recorded = _check_record(policy, folder, sft)
                if isinstance(policy, Checkpoint) and not recorded:
                    unrecorded.append(policy)
        with problems.collect():
            warnings += compare_tokenizers(folder, sft.folder)
    problems.check()
    untrained = [policy for policy in policies if _is_sft(policy, sft)]
    if unsure := [repr(str(policy.folder)) for policy in unrecorded if policy not in untrained]:
        which = f"polic{'ies' if len(unsure) > 1 else 'y'} {', '.join(unsure)}"
        warnings.insert(0, f"no SFT model is recorded of {which}: make sure that it was {str(sft.folder)!r}")
    warnings += [f"policy {str(_folder(policy))!r} is the SFT model: its residual is zero" for policy in untrained]
    return warnings + _copy_warnings([_folder(policy) for policy in policies])


def check_same_base(adapters: Sequence[Adapter], sft_model: str | Path, *, sft_renamed: bool = False) -> None:
    """Stop unless every adapter was trained on `sft_model`: residuals add up only on one base.

    If every adapter records the hash of its SFT model, the hashes decide, so a moved folder is fine. Otherwise
    `base_model_name_or_path` decides, resolved where it exists, unless `sft_renamed` says that all these names are of
    this model. If `sft_model` is a local folder, the adapted modules must exist there with matching shapes (file
    headers only), and base weights that an adapter's file holds must be those of the SFT model. A Hub id that is not a
    folder is compared as a name.

    Raises:
        ValueError: another base, a base that is not recorded, a module that the SFT model lacks, another shape, or
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
                elif not sft_renamed:
                    _check_path(adapter, adapters[0], sft_model)
                if checkpoint is not None:
                    check_modules(adapter, checkpoint)
                    _check_copies(adapter, checkpoint)
    problems.check()


def with_names_of_one(policies: Sequence[Adapter | Checkpoint], sft: Checkpoint) -> list[Adapter | Checkpoint]:
    """The policies, the adapters with the names of one model: versions of transformers, and classes, differ in them.

    Names that transformers gives to the modules of some model that it makes of the folder stay; others become those of
    the first. Where a policy adapts what is no module there (an expert of an older version, now a part of one
    parameter), PEFT knows the older names, and policies that agree in them keep them all.
    """
    adapters = [policy for policy in policies if isinstance(policy, Adapter)]
    if not adapters or sft.calls_alike(_weights(adapters)):
        return list(policies)
    readings = list(sft.readings)
    if not readings or any(_weights(adapters) <= reading.shapes.keys() for reading in readings):
        return list(policies)
    given = [renamed(policy, readings[0]) if isinstance(policy, Adapter) else policy for policy in policies]
    known = _weights(one for one in given if isinstance(one, Adapter)) <= readings[0].shapes.keys()
    agree = len({sft.parameter(weight) or weight for weight in _weights(adapters)}) == len(_weights(adapters))
    return given if known or not agree else list(policies)


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 over the weights of an adapter or a checkpoint (that is `checkpoint_sha256`)."""
    return sha256_of([Path(folder) / WEIGHTS_FILE]) if is_adapter(folder) else checkpoint_sha256(folder)


def folder_above(name: str, path: Path) -> Path | None:
    """The folder of a relative name in the nearest of the folders above a path that has one, or None.

    A project may move as a whole, and be used from any folder.
    """
    return next((above / name for above in path.resolve().parents if (above / name).is_dir()), None)


def hub_id(folder: str | Path) -> str | None:
    """The Hub id of a model whose folder is a snapshot in the Hub's cache, or None.

    >>> hub_id("/cache/hub/models--org--model/snapshots/9be4410")
    'org/model'
    """
    cached = re.search(r"(?:^|/)models--([^/]+)/snapshots/[^/]+/?$", str(folder))
    return cached[1].replace("--", "/") if cached else None


def called(model: str | Path) -> str:
    """What an input is called where others may read it: its Hub id, or its folder's name without where that lies.

    Of an address it is what stands before its query, which may hold a key.

    >>> called("/home/me/runs/helpful"), called("org/model"), called("http://host/classify?key=1")
    ('helpful', 'org/model', 'http://host/classify')
    """
    text = str(model)
    if "://" in text:
        return text.partition("?")[0]
    if (on_hub := hub_id(text)) is not None:
        return on_hub
    is_path = text.startswith((".", "/", "~")) or text.partition("@")[0].count("/") > 1 or Path(text).exists()
    return Path(text).name or text if is_path else text


def _weights(adapters: Iterable[Adapter]) -> set[str]:
    return {f"{module}.weight" for adapter in adapters for module in adapter.modules}


def _shape_problems(policy: Checkpoint, sft: Checkpoint) -> Iterator[str]:
    if packed := policy.quantisation or sft.quantisation:
        which = policy if policy.quantisation else sft
        yield (
            f"{str(which.folder)!r} is quantised ({packed}, see quantization_config in config.json), but residuals of "
            "whole models are differences of plain weights: give the unquantised model"
        )
        return
    theirs, ours = _flat(policy.config), _flat(sft.config)
    differing = [
        f"{key} {theirs[key]!r} (the SFT model {ours[key]!r})"
        for key in _SIZES
        if key in theirs and key in ours and theirs[key] != ours[key]
    ]
    _, of_shapes = match_names(policy, sft)
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


def _check_copies(adapter: Adapter, checkpoint: Checkpoint) -> None:
    """Stop unless the base weights in an adapter's file are those of the SFT model, as their dtype holds them."""
    if not adapter.copied:
        return
    with safe_open(Path(adapter.path) / WEIGHTS_FILE, "pt") as file:
        for key, name in adapter.copied.items():
            stored, copy = checkpoint.parameter(name) or checkpoint.tied(name), file.get_tensor(key)
            if stored is not None and checkpoint.quantisation and checkpoint.shapes[stored] != tuple(copy.shape):
                continue  # it has been packed since
            if stored is None or not torch.equal(checkpoint.read(stored).to(copy.dtype), copy):
                raise ValueError(
                    f"adapter {adapter.path!r} holds a base weight of {name.removesuffix('.weight')!r} that is not "
                    f"{stored or name!r} of the SFT model {str(checkpoint.folder)!r}, so s B A is not the whole "
                    f"difference; {WAY_OUT}, or, if that weight was not trained, save the adapter with "
                    "save_pretrained(folder, save_embedding_layers=False)"
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
            f"adapter {adapter.path!r} does not say what it was trained on; if that was {str(sft_model)!r}, say "
            f"--sft_renamed, or write base_model_name_or_path into its {CONFIG_FILE}"
        )
    way_out = (
        "residuals add up only on one base; if these are names of the same weights (a Hub id and its local copy, a "
        "folder that moved), say --sft_renamed"
    )
    if first.base is not None and not _have_one_base(adapter, first):
        raise ValueError(
            f"adapter {adapter.path!r} was trained on {_shown(adapter)}, {first.path!r} on {_shown(first)}; {way_out} "
            f"(see {CONFIG_FILE})"
        )
    if (adapter is first or first.base is None) and _base_of(adapter) not in _names_of(sft_model):
        raise ValueError(
            f"adapter {adapter.path!r} was trained on {_shown(adapter)}, but the SFT model given is "
            f"{str(sft_model)!r}; {way_out} (see base_model_name_or_path in {CONFIG_FILE})"
        )


def _have_one_base(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters name one base and revision; `main` is the one that is fetched where none is named."""
    revisions = {None if adapter.revision == "main" else adapter.revision for adapter in (one, other)}
    return len(revisions) == 1 and _base_of(one) == _base_of(other)


def _base_of(adapter: Adapter) -> str:
    """The base that an adapter names: a folder, also where its project has moved, or a Hub id."""
    identity = _identity(adapter.base)
    moved = None if Path(identity).exists() else folder_above(adapter.base, Path(adapter.path))
    return str(moved.resolve()) if moved else identity


def _identity(base: str | Path) -> str:
    path = Path(base).expanduser()
    return str(path.resolve()) if path.exists() else str(base).rstrip("/")


def _names_of(sft_model: str | Path) -> set[str]:
    """The names under which an adapter may know a model: its resolved path, and its Hub id if it is cached."""
    identity = _identity(sft_model)
    return {identity, hub_id(identity) or identity}


def _shown(adapter: Adapter) -> str:
    return f"{adapter.base}@{adapter.revision}" if adapter.revision else str(adapter.base)


def _is_meant_as_adapter(folder: str | Path) -> bool:
    """Whether it is an adapter, or the folder of some, which `load_adapter` refuses."""
    return is_adapter(folder) or bool(adapters_below(Path(folder)) and not (Path(folder) / "config.json").is_file())


def _folder(policy: Adapter | Checkpoint) -> Path:
    return Path(policy.path) if isinstance(policy, Adapter) else policy.folder


def _is_sft(policy: Adapter | Checkpoint, sft: Checkpoint) -> bool:
    """Whether a policy never left the SFT model: its files are the same, or one factor of each module is zero."""
    if isinstance(policy, Checkpoint):
        return _are_copies(policy.folder, sft.folder)
    return not any(factors.A.any() and factors.B.any() for factors in policy.modules.values())


def _copy_warnings(folders: Sequence[Path]) -> list[str]:
    """One warning for each policy that is the copy of an earlier one: its weight counts twice."""
    warnings = []
    for number, folder in enumerate(folders):
        twin = next((other for other in folders[:number] if _are_copies(folder, other)), None)
        if twin is not None:
            warnings.append(
                f"policy {str(folder)!r} is {'given twice' if folder == twin else f'a copy of {str(twin)!r}'}: its "
                "residual gets both weights"
            )
    return warnings


def _are_copies(one: Path, other: Path) -> bool:
    """Whether two policies are equal in their weight files, and in what scales them."""
    if one.resolve() == other.resolve():
        return True
    if is_adapter(one) != is_adapter(other):
        return False
    if is_adapter(one) and any(
        read_json(one / CONFIG_FILE).get(key) != read_json(other / CONFIG_FILE).get(key) for key in _SCALES
    ):
        return False
    mine, theirs = ({file.name: file for file in folder.glob("*.safetensors")} for folder in (one, other))
    # Files of two policies differ in their first bytes that were trained: little is read of them.
    return mine.keys() == theirs.keys() and all(filecmp.cmp(mine[name], theirs[name], shallow=False) for name in mine)


def _check_record(policy: Adapter | Checkpoint, folder: Path, sft: Checkpoint) -> bool:
    """Whether a policy records the hash of the SFT model from which it was trained.

    Raises:
        ValueError: it was trained from another one.
    """
    recorded, file = _recorded_sft(folder)
    if recorded is None:
        return False
    given = weights_sha256(sft.folder)
    if recorded != given:
        kind = "adapter" if isinstance(policy, Adapter) else "policy"
        raise ValueError(
            f"{kind} {str(folder)!r} was trained on SFT weights {recorded[:12]}, but {str(sft.folder)!r} holds "
            f"{given[:12]}; residuals add up only on one base (see sft_sha256 in {file})"
        )
    return True


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

"""Which files make tokens of texts, images and sounds, and whether two folders hold the same tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_lines.merge.inputs.checkpoint import read_json


FAST = "tokenizer.json"
# Keys of tokenizer.json that say how a text is prepared for a batch or that are compared as the vocabulary.
_NOT_COMPARED = ("version", "truncation", "padding", "added_tokens")
_SHOWN = 3
# Names that transformers' tokenizers and processors give to their files, beside those of other libraries (tekken.json,
# *.tiktoken). Code is left out on purpose: it runs only where the user trusts it.
_FILES = (
    *("*tokenizer*", "*vocab*", "merges*", "added_tokens*", "special_tokens*", "tekken*", "*.tiktoken", "*.tokenizer"),
    *("*.model", "*.spm", "*.bpe", "*.codes", "dict.txt", "emoji.json", "normalizer.json", "byte_maps.json"),
    *("word_shape.json", "word_pronunciation.json", "*processor*.json", "chat_template*", "*.jinja"),
    "additional_chat_templates/*.jinja",
)
_CODE = (".py", ".pyc", ".so")


def tokenizer_files(folder: Path) -> list[str]:
    """The files of a model's folder, by name, that its tokenizer, chat templates or processors are read from."""
    found = (path for pattern in _FILES for path in folder.glob(pattern))
    return sorted({str(path.relative_to(folder)) for path in found if path.is_file() and path.suffix not in _CODE})


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the files that are there; their content only, so that links to a cache become files."""
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def compare_tokenizers(policy: Path, sft: Path) -> list[str]:
    """What differs between the tokenizer of a policy and that of the SFT model, beside the vocabulary, as warnings.

    A folder without tokenizer files (an adapter's, often) is not compared. The merged model gets the SFT model's.

    Raises:
        ValueError: the vocabularies differ: one token id would mean two things.
    """
    _check_vocabularies(policy, sft)
    warnings = []
    differing = _differing_parts(policy, sft)
    if differing:
        warnings.append(
            f"the tokenizer of policy {str(policy)!r} has another {' and '.join(differing)} than that of the SFT model "
            f"(see {FAST}); the merged model gets the SFT model's"
        )
    template = _chat_template(policy)
    if template is not None and template != _chat_template(sft):
        warnings.append(
            f"policy {str(policy)!r} has another chat template than the SFT model {str(sft)!r}; the merged model gets "
            "the SFT model's"
        )
    return warnings


def vocabulary(folder: Path) -> dict[str, Any] | None:
    """Token to id, added tokens included; None where the folder has no vocabulary in a readable form.

    Read from `tokenizer.json`, else `vocab.json` or `vocab.txt` with the tokens that `added_tokens.json` or
    `tokenizer_config.json` adds.
    """
    if (folder / FAST).is_file():
        content = read_json(folder / FAST)
        vocab = (content.get("model") or {}).get("vocab") or {}
        # Unigram models list [token, score] pairs, whose place is the id.
        tokens = vocab if isinstance(vocab, dict) else {token: place for place, (token, _) in enumerate(vocab)}
        added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or ()}
        return {**tokens, **added}
    if (folder / "vocab.json").is_file():
        tokens = read_json(folder / "vocab.json")
    elif (folder / "vocab.txt").is_file():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        tokens = {token: place for place, token in enumerate(lines)}
    else:
        return None
    added, config = folder / "added_tokens.json", folder / "tokenizer_config.json"
    decoder = read_json(config).get("added_tokens_decoder") or {} if config.is_file() else {}
    named = {entry["content"]: int(number) for number, entry in decoder.items()}
    return {**tokens, **(read_json(added) if added.is_file() else {}), **named}


def _check_vocabularies(policy: Path, sft: Path) -> None:
    if _same_file(policy / FAST, sft / FAST):
        return
    theirs, ours = vocabulary(policy), vocabulary(sft)
    if theirs is None or ours is None or theirs == ours:
        return
    differing = sorted(
        (token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)), key=str
    )
    shown = ", ".join(
        f"{token!r} (id {_shown(theirs.get(token))} there, {_shown(ours.get(token))} here)"
        for token in differing[:_SHOWN]
    )
    way_out = "merge only policies with the SFT model's tokenizer"
    if ours.items() < theirs.items():  # whose weights may be of no use for them
        way_out = (
            "the policy only has tokens more: if nothing was trained for them, as for a padding token, remove the "
            "tokenizer's files from its folder; else the SFT model needs them, too, before policies are trained"
        )
    count = f"{len(differing)} {'differs' if len(differing) == 1 else 'differ'}"
    raise ValueError(
        f"policy {str(policy)!r} has a vocabulary of {len(theirs)} tokens that is not the SFT model's of {len(ours)}: "
        f"{count}, such as {shown}; {way_out}"
    )


def _differing_parts(policy: Path, sft: Path) -> list[str]:
    files = [folder / FAST for folder in (policy, sft)]
    if not all(file.is_file() for file in files) or _same_file(*files):
        return []
    theirs, ours = (_compared(read_json(file)) for file in files)
    return sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))


def _compared(content: dict[str, Any]) -> dict[str, Any]:
    parts = {key: value for key, value in content.items() if key not in _NOT_COMPARED}
    model = {key: value for key, value in (content.get("model") or {}).items() if key != "vocab"}
    return {**parts, "model": model}


def _chat_template(folder: Path) -> object | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        if (folder / file).is_file() and (template := read_json(folder / file).get("chat_template")):
            return template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return None


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _shown(token_id: object) -> str:
    return "none" if token_id is None else str(token_id)

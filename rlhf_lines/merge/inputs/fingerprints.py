"""What a stage reads, as hashes by part: a later run that goes on from it, or repeats it, can say what has changed."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from reward_models.generative import PREFIX as GENERATIVE
from reward_models.load import look_here
from reward_models.presets import PRESETS, preset_of
from reward_models.rules import PREFIX
from reward_models.service import asks_a_service
from reward_models.similarity import PREFIX as SIMILARITY
from rlhf_lines.errors import Problems
from rlhf_lines.merge.inputs.adapter import is_adapter
from rlhf_lines.merge.inputs.adapter_config import CONFIG_FILE
from rlhf_lines.merge.inputs.checkpoint import read_json
from rlhf_lines.merge.inputs.provenance import weights_sha256
from rlhf_lines.merge.inputs.tokenizers import tokenizer_files
from rlhf_lines.models import cached_file
from rlhf_lines.sha256 import sha256_of
from rlhf_lines.task_rewards import RewardEntry


Fingerprint = dict[str, str]  # of one input: part (weights, config.json, rows, ...) to SHA-256

OWN_PACKAGES = ("rlhf_lines", "reward_models")  # whose version a record has

# Keys that do not change what the model or the adapter computes. A base is compared by its weights, wherever it lies.
_OF_MODEL = frozenset(["_name_or_path", "transformers_version"])
_OF_ADAPTER = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "runtime_config"),
        # Of training alone: where the factors started, and what was dropped on the way.
        *("corda_config", "eva_config", "init_lora_weights", "loftq_config", "lora_dropout", "lora_ga_config"),
        *("megatron_core", "qalora_group_size", "task_type"),
    ]
)
_SHOWN = 3
_SETS = ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform")  # PEFT writes them in any order
# Beside weights, config and tokenizer: end tokens, the text format of a reward model, code.
_OTHER_FILES = ("generation_config.json", "reward_model.json", "sentence_bert_config.json", "*.py")


def config_sha256(folder: str | Path) -> str:
    """SHA-256 over what the config of an adapter or a checkpoint says of what it computes.

    Settings that are absent, or none of their kind, are equal in an adapter's, so that PEFT may add further ones.

    Raises:
        ValueError: the file holds no JSON object.
        FileNotFoundError: there is no such file.
    """
    if not is_adapter(folder):
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no config.json; save the model with save_pretrained")
        return _sha256(_without(read_json(path), _OF_MODEL))
    config = {
        key: sorted(map(str, value)) if key in _SETS and isinstance(value, list) else value
        for key, value in read_json(Path(folder) / CONFIG_FILE).items()
        if key not in _OF_ADAPTER and not (value is None or value is False or value in ("", [], {}))
    }
    # The first pattern that matches counts: their order is kept.
    patterns = {key: list(value.items()) for key, value in config.items() if isinstance(value, dict)}
    return _sha256({**config, **patterns})


def policy_fingerprint(folder: str | Path) -> Fingerprint:
    """Weights and config of an adapter or a checkpoint."""
    name = CONFIG_FILE if is_adapter(folder) else "config.json"
    return {"weights": _weights_sha256(Path(folder)), name: config_sha256(folder)}


def model_fingerprint(folder: str | Path) -> Fingerprint:
    """All that a stage reads of a model: weights, config, tokenizer, template, end tokens; of an adapter its base."""
    folder = Path(folder)
    others = {path.name for pattern in _OTHER_FILES for path in folder.glob(pattern) if path.is_file()}
    found = {name: sha256_of([folder / name]) for name in sorted(others | set(tokenizer_files(folder)))}
    if is_adapter(folder):
        base = read_json(folder / CONFIG_FILE).get("base_model_name_or_path")
        if base and Path(base).is_dir() and not is_adapter(base):
            found |= {f"{part} of its base": known for part, known in policy_fingerprint(base).items()}
    return {**policy_fingerprint(folder), **found}


def reward_fingerprint(model: str) -> Fingerprint:
    """What a reward model of a config is made of: its files, the commit of a Hub id, or the source of a function.

    A rule is made of its options, which the config holds; what a service is made of cannot be seen from here.
    """
    if model.startswith(PREFIX) or asks_a_service(model):
        return {}
    if model.startswith((SIMILARITY, GENERATIVE)):
        return reward_fingerprint(model.partition(":")[2])
    preset = preset_of(model)
    if preset is None and Path(model).is_dir():
        return model_fingerprint(model)
    if preset is None and (":" in model or ("." in model and "/" not in model)):
        return _source(*(model.split(":", 1) if ":" in model else model.rsplit(".", 1)))
    cached = cached_file(PRESETS[preset].model if preset else model, "config.json")
    return {"commit": cached.parent.name} if cached else {}


def reward_identity(entry: RewardEntry) -> dict[str, Any]:
    """What the scores of a reward model depend on: how the config names it, and what it is made of."""
    return {**entry.identity(), "files": reward_fingerprint(entry.model)}


def rows_fingerprint(rows: Iterable[Mapping[str, Any]]) -> Fingerprint:
    """What a stage reads of a data set: its rows in their order, as they are after loading."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass") + b"\n")
    return {"rows": digest.hexdigest()}


def check_unchanged(
    before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint], *, since: str, way_out: str
) -> None:
    """Stop where an input is not what it was; all that have changed are told at once.

    Args:
        before: by the name of an input; one of which nothing is known, here or today, is not compared.
        now: the same of today.
        since: what was made of them, as in `outputs/ppo was begun`.
        way_out: what to do, the end of a sentence.

    Raises:
        ValueError: an input has changed; `InputProblems` if several have.
    """
    problems = Problems()
    for name in (name for name in now if now[name] and before.get(name)):
        if parts := changed_parts(before[name], now[name]):
            problems.add(f"{name} has changed since {since} ({', '.join(parts)}): {way_out}")
    problems.check()


def changed_parts(before: Fingerprint, now: Fingerprint) -> list[str]:
    """The parts of an input that are not what they were; of many, the first and how many more."""
    parts = sorted(part for part in before.keys() | now.keys() if before.get(part) != now.get(part))
    return parts if len(parts) <= _SHOWN else [*parts[:_SHOWN], f"{len(parts) - _SHOWN} more"]


def _weights_sha256(folder: Path) -> str:
    try:
        return weights_sha256(folder)
    except FileNotFoundError:  # other files than a merge reads, which transformers may load
        return sha256_of(sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]))


def _source(module: str, function: str) -> Fingerprint:
    """The file that a function is named in, the one that it is defined in, and what these import from beside them."""
    look_here()
    try:
        named = importlib.import_module(module)
    except ImportError:
        return {}
    defined = sys.modules.get(getattr(getattr(named, function, None), "__module__", None) or "")
    modules = {held.__file__: held.__name__ for held in (named, defined) if getattr(held, "__file__", None)}
    if not modules:
        return {}
    found = {"source": sha256_of(map(Path, modules))}
    for file, name in modules.items():
        root = _root(Path(file), name)
        beside = _imported(Path(file), root) if root else set()
        found |= {str(path.relative_to(root)): sha256_of([path]) for path in sorted(beside - set(map(Path, modules)))}
    return found


def _root(file: Path, name: str) -> Path | None:
    """The folder in which a module's first name is looked up, if it is one of the user's; installed code is not."""
    root = file.parents[name.count(".") + (file.stem == "__init__")]
    installed = root.name in ("site-packages", "dist-packages") or name.partition(".")[0] in sys.stdlib_module_names
    return None if installed else root


def _imported(file: Path, root: Path) -> set[Path]:
    """The files below `root` that a module imports, or that those import, inside functions as well."""
    found, unread = set(), [file]
    while unread:
        reader = unread.pop()
        for names in filter(None, _imports(reader, root)):
            if names[0] in OWN_PACKAGES:
                continue
            places = (root.joinpath(*names[: depth + 1]) for depth in range(len(names)))
            files = {path for place in places for path in (place.with_suffix(".py"), place / "__init__.py")}
            new = {path for path in files if path.is_file()} - found
            found |= new
            unread += sorted(new)
    return found


def _imports(file: Path, root: Path) -> Iterator[list[str]]:
    """Yield what a file imports, from its text: the parts of each name, seen from `root`."""
    package = list(file.relative_to(root).parent.parts)
    with contextlib.suppress(SyntaxError, ValueError):  # it is no Python, and nothing imports it
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                module = [*above, *(node.module.split(".") if node.module else [])]
                yield from ([*module, alias.name] for alias in node.names)


def _without(value: Any, keys: frozenset[str]) -> Any:
    """The value without these keys, at any depth."""
    if isinstance(value, dict):
        return {key: _without(held, keys) for key, held in value.items() if key not in keys}
    return [_without(held, keys) for held in value] if isinstance(value, list) else value


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

"""Where a model comes from: a folder or the Hub, in which dtype, quantised or not, with which tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from reward_models.files import open_tokenizer, refuse_pointers
from rlhf_lines.errors import about, reason


if TYPE_CHECKING:
    from torch import nn

LOAD_DTYPES = ("float32", "bfloat16", "float16")  # in which a model is loaded; a merge also writes float64
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def local_folder(name_or_path: str, *, revision: str | None = None, what: str = "model") -> Path:
    """The folder of a checkpoint: the path itself, or the local snapshot of a Hub id (downloaded if needed).

    Args:
        name_or_path: a folder, or a Hub id, `owner/name` or `owner/name@revision`.
        revision: of a stage that has a setting for it; then the name has none.
        what: what the model is, for messages.

    Raises:
        FileNotFoundError: a local path does not exist, or the Hub has no such model or cannot be reached.
        ValueError: no name was given, or a revision in both ways; or Git LFS has left a pointer in place of a file.
    """
    if not name_or_path:
        raise ValueError(f"no {what} was given: set model_name_or_path to a folder or a Hub id")
    path = Path(name_or_path)
    if path.is_dir():
        refuse_pointers(path)
        return path
    name, named = hub_name(name_or_path)
    if name is None:
        raise FileNotFoundError(f"{what} {name_or_path} does not exist: expected the folder of a checkpoint")
    if named and revision is not None:
        raise ValueError(f"{what} {name_or_path} names a revision: give {name}, and {named} as model_revision")
    from huggingface_hub import snapshot_download

    try:
        # Config, weights, the files of tokenizers; and code, which runs only where trusted.
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.py"]
        return Path(snapshot_download(name, revision=named or revision, allow_patterns=patterns))
    except Exception as error:  # offline, gated, mistyped: the library has an exception class for each
        raise FileNotFoundError(
            f"{what} {name_or_path} is neither a local folder nor a Hub model that can be fetched ({reason(error)})"
        ) from error


def hub_name(name: str) -> tuple[str | None, str | None]:
    """The Hub id that a name may be, or None for what can only be a path; and the revision behind its `@`, if any.

    >>> hub_name("owner/policy"), hub_name("owner/policy@v2"), hub_name("outputs/policies/brief")
    (('owner/policy', None), ('owner/policy', 'v2'), (None, None))
    """
    model, _, revision = name.partition("@")
    if not model or model.count("/") > 1 or model.startswith((".", "/", "~", "outputs/", "models/")):
        return None, None
    return model, revision or None


def cached_file(name: str, file: str) -> Path | None:
    """A file of a Hub model, if it is in the cache."""
    from huggingface_hub import try_to_load_from_cache

    model, revision = hub_name(name)
    if model is None:
        return None
    try:
        path = try_to_load_from_cache(model, file, revision=revision)
    except ValueError:  # not the form of a Hub id
        return None
    return Path(path) if isinstance(path, str) else None


def is_here(name: str) -> bool:
    """Whether a model can be read without the network: a folder, or a Hub id that is in the cache."""
    return Path(name).is_dir() or any(cached_file(name, file) for file in ("config.json", "adapter_config.json"))


def keep_unpacked(model: nn.Module) -> None:
    """Let gradients flow through maps in 4 bits on a CPU also after texts were read without them.

    Where a CPU has bfloat16 in AVX-512, bitsandbytes 0.50 packs the weights for a kernel in the first pass without
    gradients. That kernel has none: of what is trained later, the part that comes through the base would be lost.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False):
    """The tokenizer of a checkpoint, padding on the left.

    One without an end token takes that of the model's configs, if any; one without a padding token takes the end token.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: it holds one that cannot be loaded.
    """
    if Path(folder).is_dir() and not any((Path(folder) / file).is_file() for file in TOKENIZER_FILES):
        raise FileNotFoundError(
            f"{str(folder)!r} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}): save it there with "
            "tokenizer.save_pretrained(folder)"
        )
    with about(f"tokenizer of {folder} cannot be loaded"):
        tokenizer = open_tokenizer(
            folder, padding_side="left", truncation_side="left", trust_remote_code=trust_remote_code
        )
    if tokenizer.eos_token is None and (Path(folder) / "config.json").is_file():
        declared = checkpoint_end_token_ids(folder, tokenizer)
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(declared[0]) if declared else None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(folder: str | Path, *, trust_remote_code: bool = False):
    """The config of a checkpoint.

    Raises:
        ValueError: it cannot be read.
    """
    from transformers import AutoConfig

    with about(f"config of {folder} cannot be read"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)


def end_token_ids(model, tokenizer) -> list[int]:
    """The ids of the tokens that end a completion: those of the generation config, and the tokenizer's."""
    return _end_token_ids(model.generation_config, tokenizer)


def checkpoint_end_token_ids(folder: str | Path, tokenizer) -> list[int]:
    """What `end_token_ids` returns for the model in a folder, without loading it."""
    from transformers import AutoConfig, GenerationConfig

    with about(f"the configs of model {folder} cannot be read"):
        if (Path(folder) / "generation_config.json").is_file():
            config = GenerationConfig.from_pretrained(folder)
        else:
            config = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
    return _end_token_ids(config, tokenizer)


def _end_token_ids(generation_config, tokenizer) -> list[int]:
    declared = generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return sorted({i for i in (*declared, tokenizer.eos_token_id) if i is not None})


def init_kwargs(model_config, training) -> dict:
    """What `from_pretrained` gets of a TRL `ModelConfig` (all but the quantisation), and what training adds to it."""
    named = {"dtype": model_config.dtype, "attn_implementation": model_config.attn_implementation}
    return {**named, **(training.model_init_kwargs or {})}


def lora_config(model_config, model_type: str):
    """PEFT's LoRA config of a TRL `ModelConfig`, or None without `use_peft`.

    Without `lora_target_modules` the modules are those that PEFT names for this type of model, or all linear ones. TRL
    makes a text of a list of one module, and PEFT reads a text as a pattern of whole names: `q_proj` would match none.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN
    from trl import get_peft_config

    found = get_peft_config(model_config)
    if found is None:
        return None
    targets = model_config.lora_target_modules
    if targets is None and not model_config.lora_target_parameters:  # PEFT itself finds none of a mixture of experts
        attention = {"q_proj", "v_proj"}  # what PEFT names for most, without experts
        known = KNOWN.get(model_type, attention if "moe" in model_type else "all-linear")
        found.target_modules = known if isinstance(known, str) else set(known)
    elif isinstance(targets, str) and targets != "all-linear" and targets.replace(".", "_").isidentifier():
        found.target_modules = {targets}
    return found


def describe_adapters(model, name_or_path: str) -> None:
    """Let the configs of a PEFT model's adapters be the same wherever the run is repeated.

    They name the base as the user did, not the folder of a snapshot, and list their modules in order, not in a set's.
    """
    for config in getattr(model, "peft_config", {}).values():
        config.base_model_name_or_path = name_or_path
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)

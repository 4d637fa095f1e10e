"""A model and its tokenizer out of a folder, a PEFT adapter folder or the Hub, opened strictly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from reward_models.files import open_tokenizer, refuse_pointers


ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PREFIX = "base_model.model."
CAUSAL_ANYWAY = frozenset({"gpt_neox", "gpt_neox_japanese"})  # they do not look at is_decoder, which they have as False
HEADS = ("score", "classifier", "classification_head")
AS_A_CLASSIFIER = "write it without generative: to have its own output as the score"


class Kind(NamedTuple):
    """What a checkpoint is opened as.

    Attributes:
        auto: the class of transformers that opens it.
        expected: what a checkpoint without some of the weights should have been.
    """

    auto: str
    expected: str


CLASSIFIER = Kind(
    "AutoModelForSequenceClassification",
    "a sequence classification model with a trained head; train one with: rlhf-lines reward, or write generative: "
    "before it to let a language model grade",
)
LANGUAGE_MODEL = Kind("AutoModelForCausalLM", "a causal language model with all its weights")


def open_checkpoint(
    source: str, *, dtype: Any, device: Any, trust_remote_code: bool = False, kind: Kind = CLASSIFIER
) -> tuple[Any, Any]:
    """`(model, tokenizer)`, the model in evaluation mode on `device`.

    An adapter folder is loaded on the base that it names and merged in float32 before the cast to `dtype`. Only
    safetensors are read. A head that the files do not hold is an error: it would be random.

    Args:
        source: folder or Hub id.
        dtype: torch dtype of the weights.
        device: torch device.
        trust_remote_code: whether code from the source may run.
        kind: what it is opened as.

    Raises:
        FileNotFoundError: the base of an adapter is a folder that does not exist.
        ValueError: a file is damaged or a pointer of Git LFS, weights are missing from the files, an adapter does not
            fit its base, or a language model is wanted and the files hold a classifier, an encoder or an
            encoder-decoder.
    """
    is_adapter = (Path(source) / ADAPTER_FILE).is_file()
    if is_adapter:
        model, base = _open_adapter(Path(source), trust_remote_code, kind)
        model = model.to(dtype)
    else:
        model, missing = _open_model(source, dtype, trust_remote_code, kind)
        _require_nothing_missing(missing, source, kind)
    has_tokenizer = not is_adapter or (Path(source) / "tokenizer_config.json").is_file()
    tokenizer = open_tokenizer(source if has_tokenizer else base, trust_remote_code=trust_remote_code)
    config = model.config.get_text_config()
    if is_adapter and config.pad_token_id is None:
        # Training sets the pad token, which decides the token that the head reads, but an adapter does not save it.
        config.pad_token_id = tokenizer.pad_token_id
    return model.to(device).eval().requires_grad_(False), tokenizer


def reads_later(config: Any) -> bool:
    """Whether models of a transformers config read the tokens that come later, as encoders do."""
    text = config.get_text_config()
    is_switched_off = getattr(text, "is_decoder", True) is False and not text.is_encoder_decoder
    return is_switched_off and text.model_type not in CAUSAL_ANYWAY


def check_causal(config: Any, source: str | Path) -> None:
    """Stop where a config is of no causal language model: what reads the tokens that come later foretells no grade.

    Args:
        config: of transformers.
        source: what the model is called in the message.

    Raises:
        ValueError: it is of a classifier, an encoder or an encoder-decoder.
    """
    for name in config.architectures or ():
        if name.endswith("ForSequenceClassification"):
            raise ValueError(f"{source} is a classifier ({name}), so it is no language model; {AS_A_CLASSIFIER}")
    if config.is_encoder_decoder or reads_later(config):
        kind = "an encoder-decoder" if config.is_encoder_decoder else "an encoder"
        raise ValueError(f"{source} is {kind} ({config.model_type}); expected a causal language model")


def torch_dtype(dtype: Any, source: str | Path) -> Any:
    """The torch dtype of this name, or the dtype itself; None is float32.

    Raises:
        ValueError: torch has no such floating-point dtype.
    """
    import torch

    named = getattr(torch, dtype or "float32", None) if dtype is None or isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(
            f"the dtype of reward model {str(source)!r} is {dtype!r}; expected float32, bfloat16 or float16"
        )
    return named


def torch_device(device: Any) -> Any:
    """The device itself; None is the current CUDA device, or the CPU if there is none."""
    import torch

    if device is not None:
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _open_model(source: str, dtype: Any, trust_remote_code: bool, kind: Kind, **config: Any) -> tuple[Any, set[str]]:
    import transformers

    refuse_pointers(source)
    if kind == LANGUAGE_MODEL:
        stated = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        check_causal(stated, source)
    model, info = getattr(transformers, kind.auto).from_pretrained(
        source,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **config,
    )
    if kind == LANGUAGE_MODEL:
        _refuse_heads(source, info["unexpected_keys"])
    return model, set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}


def _refuse_heads(source: str | Path, names: Iterable[str]) -> None:
    """Stop where a language model is wanted and these weights are a classifier's; a tied head hides that it lacks one.

    Raises:
        ValueError: they are.
    """
    heads = sorted(name for name in names if set(name.split(".")) & set(HEADS))
    if heads:
        raise ValueError(
            f"{source} holds {heads[0]}, the head of a classifier, so it is no language model; {AS_A_CLASSIFIER}"
        )


def _open_adapter(folder: Path, trust_remote_code: bool, kind: Kind) -> tuple[Any, str]:
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    base = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise FileNotFoundError(
            f"{folder / ADAPTER_FILE} names the base {base}, which does not exist; restore that folder"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder / ADAPTER_WEIGHTS} does not exist; save the adapter again as safetensors")
    refuse_pointers(folder)
    saved = load_file(folder / ADAPTER_WEIGHTS)
    heads = {
        name.removeprefix(ADAPTER_PREFIX): tensor
        for name, tensor in saved.items()
        if "lora_" not in name and any(f".{head}." in name for head in HEADS)
    }
    if kind == LANGUAGE_MODEL:
        _refuse_heads(folder, heads)
    outputs = [tensor.shape[0] for name, tensor in sorted(heads.items()) if name.endswith("weight")]
    config = {"num_labels": outputs[-1]} if outputs else {}
    try:
        model, missing = _open_model(base, torch.float32, trust_remote_code, kind, **config)
    except OSError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"{folder / ADAPTER_FILE} names the base {base}, which can be read neither as a folder, from here, nor "
            f"from the Hub ({reason})"
        ) from error
    _require_nothing_missing(missing - set(heads), f"{folder} on its base {base}", kind)

    adapted = PeftModel.from_pretrained(model, folder)
    loaded = get_peft_model_state_dict(adapted)
    # PEFT only warns of tensors that it could not place, and an adapter that was not placed scores like its base.
    for name, tensor in saved.items():
        if name not in loaded or not torch.equal(loaded[name].to(tensor.dtype), tensor):
            raise ValueError(f"{folder / ADAPTER_WEIGHTS} holds {name}, which has no place in the base {base}")
    return adapted.merge_and_unload(), base


def _require_nothing_missing(missing: set[str], source: str, kind: Kind) -> None:
    if missing:
        raise ValueError(
            f"{source} has no weights for {sorted(missing)}, so its scores would be random; expected {kind.expected}"
        )

"""Where the shape of a model is known from, without its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lines.errors import about
from rlhf_lines.merge.inputs.checkpoint import read_json
from rlhf_lines.models import cached_file, hub_name


if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
_GPT2_LARGE = {**_GPT2, "n_embd": 1280, "n_layer": 36, "n_head": 20, "num_labels": 1}
# Shapes of the models that the shipped configs and presets name, from their cards and config.json files. With these
# numbers transformers builds as many parameters as the weights have.
KNOWN: dict[str, dict] = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "max_position_embeddings": 512,
    },
    "meta-llama/Llama-2-7b-hf": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "Tristan/gpt2_reward_summarization": {**_GPT2, "num_labels": 1},
    "Ray2333/gpt2-large-helpful-reward_model": _GPT2_LARGE,
    "Ray2333/gpt2-large-harmless-reward_model": _GPT2_LARGE,
    "CogComp/bart-faithful-summary-detector": {  # its card: BART (base)
        "model_type": "bart",
        "vocab_size": 50265,
        "d_model": 768,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "decoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "decoder_ffn_dim": 3072,
        "num_labels": 2,
    },
    "OpenAssistant/reward-model-deberta-v3-large-v2": {
        "model_type": "deberta-v2",
        "vocab_size": 128100,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "max_position_embeddings": 512,
        "type_vocab_size": 0,
        "relative_attention": True,
        "position_buckets": 256,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pooler_hidden_size": 1024,
        "num_labels": 1,
    },
    "mohameddhiab/humor-no-humor": {
        "model_type": "distilbert",
        "vocab_size": 30522,
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "num_labels": 2,
    },
}


# Folders that scripts/fetch_models.py makes, and whose shapes they have.
FETCHED = {
    "models/SmolLM2-135M-Instruct": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "models/all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2",
}


@dataclass(frozen=True)
class Shape:
    """A model without weights.

    Attributes:
        config: what transformers builds it from.
        source: where that was found, for the reader of a plan.
    """

    config: PreTrainedConfig
    source: str


def find_shape(name: str, *, beside: Path | None = None, base_model: str | None = None, what: str = "model") -> Shape:
    """The shape of a model, from the first of these that knows it.

    1. `config.json` in the folder `name`; of an adapter's folder, the shape of its base.
    2. `base_model`, for a folder that does not exist yet.
    3. A config beside the one that is planned, whose `output_dir` is the folder: the shape of what it starts from.
    4. The Hub's `config.json`, from the cache; the demo's models and `KNOWN`; then from the Hub itself.

    Args:
        name: folder or Hub id.
        beside: folder of the config that is planned.
        base_model: folder or Hub id that says the shape of a folder that does not exist.
        what: what the model is, for messages.

    Raises:
        FileNotFoundError: none of them knows it.
    """
    folder = Path(name)
    if (folder / "config.json").is_file():
        return Shape(_read(folder), f"{folder / 'config.json'}")
    if (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path") or ""
        inner = find_shape(base, beside=beside, what=f"the base of {what} {name},")
        return Shape(inner.config, f"{folder / 'adapter_config.json'}, whose base is {base}: {inner.source}")
    if folder.is_dir():
        raise FileNotFoundError(f"{what} {name} has no config.json: expected the folder of a checkpoint")
    if base_model is not None:
        inner = find_shape(base_model, beside=beside, what="base_model")
        return Shape(inner.config, f"--base_model {base_model}: {inner.source}")
    for path, maker in makers(name, beside):
        origin = maker.get("model_name_or_path") or maker.get("sft_model")
        if origin and not _same(origin, name):
            inner = find_shape(origin, beside=beside, what=what)
            return Shape(inner.config, f"{path}, which makes it from {origin}: {inner.source}")
    known = _cached(name) or _demo(name) or _known(name) or _fetched(name)
    if known is None:
        raise FileNotFoundError(
            f"the shape of {what} {name} is not known: there is no such folder, no config beside the given one makes "
            "it, and the Hub does not have it or cannot be reached; rlhf-lines plan takes a model of its shape as "
            "--base_model"
        )
    return known


def makers(output_dir: str, beside: Path | None) -> Iterator[tuple[Path, dict]]:
    """Yield path and content of the configs in `beside` that make the folder `output_dir`."""
    import yaml

    for path in sorted(beside.glob("*.yaml")) if beside else ():
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError):  # some other file; the one that is planned has been read
            continue
        if isinstance(content, dict) and content.get("output_dir") and _same(content["output_dir"], output_dir):
            yield path, content


def _same(one: object, other: str) -> bool:
    return os.path.normpath(str(one)) == os.path.normpath(other)


def _read(folder: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    read_json(folder / "config.json")  # its own sentence where the file is no JSON
    with about(f"{folder / 'config.json'} is no model that transformers knows"):
        return AutoConfig.from_pretrained(folder)


def _cached(name: str) -> Shape | None:
    path = cached_file(name, "config.json")
    return Shape(_read(path.parent), "config.json in the Hub's cache") if path else None


def _demo(name: str) -> Shape | None:
    from rlhf_lines.demo_models import UNTRAINED

    settings = UNTRAINED.get(os.path.normpath(name))
    return Shape(_config(settings), "the demo, which makes it") if settings else None


def _known(name: str) -> Shape | None:
    name, _ = hub_name(FETCHED.get(os.path.normpath(name), name))
    return Shape(_config(KNOWN[name]), "table of known shapes") if name in KNOWN else None


def _fetched(name: str) -> Shape | None:
    from huggingface_hub import hf_hub_download

    name, revision = hub_name(name)
    if name is None:
        return None
    try:
        path = hf_hub_download(name, "config.json", revision=revision)
    except Exception:  # offline, gated, mistyped: the library has an exception class for each
        return None
    return Shape(_read(Path(path).parent), "config.json on the Hub")


def _config(settings: dict) -> PreTrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.for_model(**settings)

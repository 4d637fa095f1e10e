"""Which transformer layer a parameter belongs to.

The index is read at one fixed place of the name, per architecture. A search for `.{i}.` anywhere would take expert 0 of
`model.layers.3.mlp.experts.0.w1` for layer 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


_PEFT = r"(?:base_model\.model\.)?"
_SHARED = r"(?:model\.)?shared"  # the embedding of an encoder and its decoder


@dataclass(frozen=True)
class Family:
    """Architectures whose parameters are named alike: where the layers are, and what else there is."""

    name: str
    prefix: str
    layers: str
    outside: tuple[str, ...]
    head: tuple[str, ...]
    embeddings: tuple[str, ...]

    def layer(self, name: str) -> re.Match[str] | None:
        """The match of a layer parameter: group `place` is the name up to the index, group `index` the index."""
        return re.match(rf"(?P<place>{_PEFT}{self.prefix}{self.layers}\.)(?P<index>\d+)\.", name)

    def is_outside(self, name: str) -> bool:
        """Whether the name is an embedding, the final norm or the head of this family."""
        inside_trunk = rf"{self.prefix}(?:{'|'.join(self.outside)})"
        shared = rf"|{_SHARED}" if self.partner else ""
        return re.match(rf"{_PEFT}(?:{inside_trunk}|{'|'.join(self.head)}{shared})(?:\.|$)", name) is not None

    @property
    def partner(self) -> str | None:
        """The name of the encoder's family, of a decoder's, and the other way round."""
        names = {family.name for family in FAMILIES}
        for one, other in (("decoder", "encoder"), ("encoder", "decoder")):
            if one in self.name and self.name.replace(one, other) in names:
                return self.name.replace(one, other)
        return None

    def is_head(self, name: str) -> bool:
        """Whether the name is the head of this family."""
        return re.match(rf"{_PEFT}(?:{'|'.join(self.head)})(?:\.|$)", name) is not None

    def is_embedding(self, name: str) -> bool:
        """Whether the name is an embedding of tokens or positions of this family."""
        shared = rf"|{_SHARED}" if self.partner else ""
        inside = rf"{self.prefix}(?:{'|'.join(self.embeddings)})"
        return re.match(rf"{_PEFT}(?:{inside}{shared})(?:\.|$)", name) is not None


# The parts of a model that sees, hears or reads images beside its language model: outside its layers.
_OTHER_PARTS = (
    r"\w*(?:vision|visual|image|video|audio|speech|sound)\w*",
    r"(?:multi_modal|mm|modality)_\w+",
    r"\w*(?:connector|qformer|resampler|aligner|projector)\w*",
)
# In front of an encoder or a decoder, which is the model itself, and no part of that names.
_WHOLE = rf"(?!(?:{'|'.join(_OTHER_PARTS)})\.)(?:\w+\.)?"

FAMILIES = (
    Family(  # Llama, Mistral, Mixtral, Qwen2/3, Gemma 1-3, Phi, Phi-3, OLMo, Cohere, StableLM, Llava, Qwen-VL
        "model.layers",
        r"(?:model\.)?(?:language_model\.|text_model\.)?(?:model\.)?",
        "layers",
        (
            *("embed_tokens", "norm", "final_layernorm", "embedding_norm", "rotary_emb"),
            *("embed_tokens_per_layer", r"per_layer_\w+", r"altup_\w+"),  # Gemma 3n and 4
            *_OTHER_PARTS,
        ),
        (r"(?:language_model\.)?lm_head",),
        ("embed_tokens", "embed_tokens_per_layer"),
    ),
    Family(  # GPT-2, GPT-J, Falcon, Bloom
        "transformer.h",
        r"(?:transformer\.)?",
        "h",
        ("wte", "wpe", "ln_f", "word_embeddings", "word_embeddings_layernorm"),
        ("lm_head",),
        ("wte", "wpe", "word_embeddings"),
    ),
    Family(
        "gpt_neox.layers", r"(?:gpt_neox\.)?", "layers", ("embed_in", "final_layer_norm"), ("embed_out",), ("embed_in",)
    ),
    Family(  # OPT, and the decoders of BART and Whisper
        "model.decoder.layers",
        rf"{_WHOLE}decoder\.",
        "layers",
        (
            *("embed_tokens", "embed_positions", "final_layer_norm", "project_in", "project_out"),
            *("layernorm_embedding", "layer_norm"),
        ),
        ("lm_head", "proj_out"),
        ("embed_tokens", "embed_positions"),
    ),
    Family(  # the encoders of BART and Whisper
        "model.encoder.layers",
        rf"{_WHOLE}encoder\.",
        "layers",
        ("embed_tokens", "embed_positions", "layernorm_embedding", "final_layer_norm", "layer_norm", "conv1", "conv2"),
        ("lm_head", "proj_out"),
        ("embed_tokens", "embed_positions"),
    ),
    *(  # T5
        Family(
            f"{part}.block",
            rf"(?:model\.)?{part}\.",
            "block",
            ("embed_tokens", "final_layer_norm"),
            ("lm_head",),
            ("embed_tokens",),
        )
        for part in ("decoder", "encoder")
    ),
    Family(  # Mamba, Mamba 2, Falcon Mamba, xLSTM
        "backbone.layers",
        r"(?:backbone\.)",
        "layers",
        ("embeddings", "norm_f", "out_norm"),
        ("lm_head",),
        ("embeddings",),
    ),
    Family(  # MPT
        "transformer.blocks", r"(?:transformer\.)?", "blocks", ("wte", "wpe", "norm_f"), ("lm_head",), ("wte", "wpe")
    ),
)


def layer_of(name: str) -> tuple[str, int] | None:
    """The name of a layer's parameter or module up to the 0-based index, and the index; None outside the layers.

    >>> layer_of("model.decoder.layers.3.fc1.weight"), layer_of("lm_head.weight")
    (('model.decoder.layers.', 3), None)
    """
    match = next(filter(None, (family.layer(name) for family in FAMILIES)), None)
    return match and (match["place"], int(match["index"]))


def layer_indices(names: Iterable[str], *, num_layers: int | None = None) -> dict[str, int | None]:
    """The 0-based layer index of every name, None for embeddings, final norm and head.

    Names may be parameters or modules, with or without the `model.` or `transformer.` prefix and PEFT's
    `base_model.model.`, but all in the same way. An encoder and a decoder of one depth L are two stacks of
    layers 0..L-1.

    >>> layer_indices(["model.embed_tokens.weight", "model.layers.0.mlp.experts.3.w1.weight"])
    {'model.embed_tokens.weight': None, 'model.layers.0.mlp.experts.3.w1.weight': 0}

    Args:
        names: parameter or module names.
        num_layers: the model's number of layers. Then layers may be missing (an adapter on some layers); otherwise the
            indices must be 0..L-1 without gaps, and L is their number.

    Raises:
        ValueError: no layer among the names, a gap, an index >= `num_layers`, an unknown name, or names of more than
            one architecture.
    """
    names = list(names)
    families = [family for family in FAMILIES if any(family.layer(name) for name in names)]
    if not families and num_layers is not None and names:  # an adapter on the head alone
        families = [family for family in FAMILIES if all(map(family.is_outside, names))][:1]
    if not families:
        shown = ", ".join(repr(name) for name in names[:3]) or "no names"
        places = ", ".join(f"{family.name}.<i>" for family in FAMILIES)
        raise ValueError(f"no transformer layer among {len(names)} names ({shown}); expected names such as {places}")
    family = max(families, key=lambda family: sum(_knows(family, name) for name in names))
    partner = next((other for other in FAMILIES if other.name == family.partner), None)
    depth, depth_beside = (_depth(one, names) for one in (family, partner))
    stacks = [family]
    if partner is not None and depth_beside == (num_layers or depth):  # layer l of each is l of L
        stacks.append(partner)
    indices: dict[str, int | None] = {}
    first_of_place: dict[str, str] = {}
    for name in names:
        match = next(filter(None, (stack.layer(name) for stack in stacks)), None)
        if match is None and not any(one.is_outside(name) for one in (family, partner) if one is not None):
            other = next((other for other in FAMILIES if other.layer(name)), None)
            reason = (
                f"belongs to layers {other.name}.<i>, whose depth is another ({_depth(other, names)}, not "
                f"{num_layers or depth}); merge policies that change one of them"
                if other
                else "is neither a layer nor a known outside parameter"
            )
            raise ValueError(
                f"cannot place {name!r}: the other names have layers {family.name}.<i>, but this one {reason}"
            )
        indices[name] = int(match["index"]) if match else None
        if match:
            first_of_place.setdefault(match["place"], name)
    if len(first_of_place) > len({stack.name for stack in stacks if any(map(stack.layer, first_of_place.values()))}):
        mixed = " and ".join(repr(name) for name in first_of_place.values())
        raise ValueError(
            f"{mixed} name their layers differently; give the names of one model, all with the same prefix"
        )
    for stack in stacks:
        _check_range({int(match["index"]) for match in map(stack.layer, names) if match}, stack, num_layers)
    return indices


def is_placed(name: str) -> bool:
    """Whether the name is a layer's, or known to lie outside the layers, in some architecture.

    >>> is_placed("model.norm.weight"), is_placed("mtp.fc.weight")
    (True, False)
    """
    return any(_knows(family, name) for family in FAMILIES)


def is_embedding(name: str) -> bool:
    """Whether a parameter or module is an embedding of tokens or positions, whose rows are looked up; heads are not.

    >>> [is_embedding(name) for name in ("model.embed_tokens.weight", "transformer.wpe.weight", "lm_head.weight")]
    [True, True, False]
    """
    return any(family.is_embedding(name) for family in FAMILIES)


def is_head(name: str) -> bool:
    """Whether a parameter or module is a head, from which logits come.

    >>> [is_head(name) for name in ("lm_head.weight", "model.embed_tokens.weight")]
    [True, False]
    """
    return any(family.is_head(name) for family in FAMILIES)


def is_linear_map(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter is the matrix of a linear map: of two dimensions, and no embedding.

    >>> is_linear_map("model.norm.weight", (8,)), is_linear_map("lm_head.weight", (32, 8))
    (False, True)
    """
    return len(shape) == 2 and not is_embedding(name)


def _knows(family: Family, name: str) -> bool:
    return family.layer(name) is not None or family.is_outside(name)


def _depth(family: Family | None, names: Iterable[str]) -> int:
    """One more than the highest layer of a family among the names; 0 without one."""
    found = filter(None, map(family.layer, names)) if family else ()
    return max((int(match["index"]) + 1 for match in found), default=0)


def _check_range(found: set[int], family: Family, num_layers: int | None) -> None:
    if not found:
        return
    if num_layers is None:
        missing = sorted(set(range(max(found) + 1)) - found)
        if missing:
            raise ValueError(
                f"layers {family.name}.<i> have gaps: {missing[:5]} are missing below {max(found)}; "
                "pass num_layers if the residual covers only some layers"
            )
    elif max(found) >= num_layers:
        raise ValueError(
            f"layer {family.name}.{max(found)} is out of range for a model of {num_layers} layers "
            f"(0..{num_layers - 1}); "
            "check that policy and SFT model are the same architecture"
        )

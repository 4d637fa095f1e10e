"""Reading a dense checkpoint: one safetensors file, or shards with an index."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_lines.merge.inputs.model_names import CAUSAL_LM, SEEING, TRANSLATOR, ModelNames, Readings
from rlhf_lines.merge.layers import is_embedding, is_head, layer_of
from rlhf_lines.merge.tensors.precision import DTYPES
from rlhf_lines.merge.tensors.spans import cut
from rlhf_lines.merge.tensors.tensor_file import Entry, TensorFile
from rlhf_lines.sha256 import sha256_of


_T = TypeVar("_T")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r".*-\d+-of-(\d+)\.safetensors")
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_OF_PARTS = ("decoder_layers", "num_decoder_layers", "encoder_layers", "num_encoder_layers")
_WRITERS = ("ForCausalLM", "LMHeadModel")  # the ends of classes that AutoModelForCausalLM makes
_COMPARED = 1 << 20  # elements at once
_TRUNK_PREFIXES = ("model.", "transformer.", "gpt_neox.")
_OF_MODELS = (*_TRUNK_PREFIXES, "backbone.", "lm_head.")  # how a language model's parameters begin
_PARTS = ("text_config", "vision_config", "audio_config")  # of a model that sees or hears
_CONV1D_MODELS = ("gpt2", "openai-gpt")
_CONV1D_PLACES = re.compile(r"(?:transformer\.)?h\.\d+\.")


class Checkpoint:
    """A folder with `config.json` and safetensors weights, read in parts by position; threads may share it.

    Attributes:
        folder: where it lies.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f"{str(folder)!r} is not a folder; expected a local checkpoint with config.json and {_SINGLE} "
                "(download a Hub model first: hf download ID --local-dir FOLDER)"
            )
        if not holds_weights(self.folder):
            if (self.folder / "adapter_config.json").is_file():
                raise FileNotFoundError(
                    f"{str(folder)!r} is a PEFT adapter, expected a whole model: give the folder of the model that it "
                    "was trained on"
                )
            raise FileNotFoundError(
                f"{str(folder)!r} has neither {_SINGLE} nor {_INDEX}; save the model there with "
                "model.save_pretrained(folder), which writes safetensors"
            )
        self._open: dict[str, TensorFile] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

    @cached_property
    def index(self) -> dict[str, Any] | None:
        """The content of the shard index, or None for a single file."""
        path = self.folder / _INDEX
        if (self.folder / _SINGLE).is_file():
            return None
        index = read_json(path)
        weight_map = index.get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else ()
        if not named or not all(isinstance(file, str) for file in named):
            raise ValueError(f"{str(path)!r} has no weight_map from tensor names to files; copy or save it again")
        return index

    @cached_property
    def files(self) -> dict[str, list[str]]:
        """Weight file name to the tensor names in it, both in a stable order."""
        files = [_SINGLE] if self.index is None else sorted(set(self.index["weight_map"].values()))
        for file in files:
            if Path(file).name != file or not (self.folder / file).is_file():
                raise FileNotFoundError(f"{str(self.folder)!r} has no {file!r}, which {_INDEX} names; copy it there")
        held = {file: list(self._file(file).entries) for file in files}
        if self.index is not None:
            self._check_index(held)
            self._check_number(files)
        return held

    def _check_number(self, files: Sequence[str]) -> None:
        """Stop where shards are called `...-of-N` and the index does not name N: some tensors would be missing."""
        totals = {int(found[1]) for found in map(_SHARD.fullmatch, files) if found}
        if len(totals) == 1 and totals != {len(files)}:
            raise ValueError(
                f"{_INDEX} of {str(self.folder)!r} names {len(files)} of the {totals.pop()} shards that {files[0]} is "
                "one of: copy the model again, or save it again with save_pretrained"
            )

    def _check_index(self, held: Mapping[str, Sequence[str]]) -> None:
        """Stop where the index and the headers of the shards disagree: they are of two models, or one is damaged."""
        said = self.index["weight_map"].items()
        found = {(name, file) for file, names in held.items() for name in names}
        missing, extra = sorted(said - found), sorted(found - said)
        if not (missing or extra):
            return
        if missing:
            name, file = missing[0]
            example = f"{name!r} should be in {file}, which does not hold it"
        else:
            name, file = extra[0]
            example = f"{file} holds {name!r}, which should not be there"
        names = {name for name, _ in missing + extra}
        raise ValueError(
            f"{_INDEX} of {str(self.folder)!r} disagrees with the shards on {len(names)} of the tensors ({example}): "
            "copy the model again, or save it again with save_pretrained"
        )

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Tensor name to its dtype and shape, from the file headers."""
        return {name: self._file(file).entries[name] for file, names in self.files.items() for name in names}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to shape."""
        return {name: entry.shape for name, entry in self.entries.items()}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`."""
        path = self.folder / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{str(self.folder)!r} has no config.json; save the model with save_pretrained")
        config = read_json(path)
        if not (isinstance(config.get("model_type"), str) and config["model_type"]):
            raise ValueError(
                f"{str(path)!r} has model_type {config.get('model_type')!r}, expected the name of an architecture, "
                "such as llama; save the model with save_pretrained"
            )
        return config

    @cached_property
    def copies(self) -> dict[str, str]:
        """Tensors that are stored a second time, to the name of the first: a head that is the embedding.

        Older files hold both although the model ties them. Equal bytes decide: a head that differs is one of its own.
        """
        if self._says_tied is False:
            return {}
        embeddings = list(filter(is_embedding, self.entries))
        pairs = ((head, embedding) for head in filter(is_head, self.entries) for embedding in embeddings)
        return {
            head: embedding for head, embedding in pairs if self._equal(head, embedding) and self._ties(head, embedding)
        }

    @cached_property
    def distinct(self) -> dict[str, tuple[int, ...]]:
        """Tensor name to shape, without the copies."""
        return {name: shape for name, shape in self.shapes.items() if name not in self.copies}

    def check_plain(self, names: Iterable[str]) -> None:
        """Stop unless these tensors are plain floating-point values, of which a residual is a difference.

        Raises:
            ValueError: the checkpoint is quantised, or a tensor has another dtype.
        """
        if self.quantisation:
            raise ValueError(
                f"{str(self.folder)!r} is quantised ({self.quantisation}, see quantization_config in config.json), but "
                "residuals are added to plain weights: give the unquantised model, or merge adapters by a linear rule "
                "with --save adapter, which needs no weight of it"
            )
        for name in names:
            dtype = self.entries[name].dtype
            if dtype not in DTYPES.values():
                raise ValueError(
                    f"{name!r} has dtype {str(dtype).removeprefix('torch.')} in {str(self.folder)!r}, and no "
                    "quantization_config in config.json says how its numbers are scaled; a residual needs one of "
                    f"{', '.join(DTYPES)}: dequantise the checkpoint or drop this tensor"
                )

    def check_numbers(self) -> None:
        """Stop where weights are the codes of a quantisation, and nothing says what numbers they stand for.

        Raises:
            ValueError: so it is.
        """
        if not self.quantisation:
            eight_bits = (torch.float8_e4m3fn, torch.float8_e5m2)
            entries = self.entries.items()
            self.check_plain(name for name, one in entries if name.endswith(".weight") or one.dtype in eight_bits)

    @property
    def quantisation(self) -> str | None:
        """How the weights are quantised, by the name in `config.json`; None for plain ones."""
        found = self.config.get("quantization_config")
        if not found:
            return None
        return str(found.get("quant_method", "unknown") if isinstance(found, dict) else found)

    def num_layers(self, names: Iterable[str] = ()) -> int:
        """The number of transformer layers of the part of the model that these parameters lie in.

        That is how many layers the files hold in the place of these names, where `config.json` states that number for
        some part: an encoder and a decoder, or a vision tower and a language model, have their own. Files with more
        than it states end in layers that the model does not load (for the prediction of further tokens).

        Args:
            names: of parameters or modules; without any, the number is what `config.json` states first.

        Raises:
            ValueError: none of the usual keys is there, or the files hold another number.
        """
        stated = list(_stated_layers(self.config))
        name = next((name for name in names if layer_of(name)), None)
        stored = name and (self.parameter(name if name in self.shapes else f"{name}.weight") or name)
        place, _ = (stored and layer_of(stored)) or ("", 0)
        held = self._layers_held.get(place, 0)
        if held and held in stated:
            return held
        if not stated or 0 < held < stated[0]:
            says = f"states {stated[0]} layers" if stated else f"does not state the number of layers {_LAYER_KEYS}"
            files = f", but its files hold {held} named {place}<i>" if held else ""
            raise ValueError(f"{str(self.folder / 'config.json')!r} {says}{files}; correct the config")
        return stated[0]

    @cached_property
    def _layers_held(self) -> dict[str, int]:
        """How many layers the files hold, by what stands before their number."""
        held: dict[str, int] = {}
        for place, index in filter(None, map(layer_of, self.shapes)):
            held[place] = max(held.get(place, 0), index + 1)
        return held

    @cached_property
    def readings(self) -> Readings:
        """How transformers reads these files, for names that differ between files and model."""
        return Readings(self.folder, self.shapes)

    def loader(self, weights: Collection[str] = ()) -> str | None:
        """The class of transformers that loads the folder as the model with these parameters, by any as it was saved.

        That is an `AutoModelFor...`, or else the class itself, as of a model that hears; None where transformers does
        not know the model.
        """
        saved = next(iter(self.config.get("architectures") or ()), None)
        if str(saved).endswith(_WRITERS) and self.calls_alike(weights):
            return CAUSAL_LM
        made = {loader: self.readings.loaded_by(loader) for loader in (SEEING, TRANSLATOR, CAUSAL_LM)}
        made = {loader: reading for loader, reading in made.items() if reading is not None}
        whole = self.readings.loaded_by(None)
        if whole is not None and not whole.shapes.keys() >= set(weights):  # they may be of a text model within it
            part = next((loader for loader, reading in made.items() if reading.shapes.keys() >= set(weights)), None)
            if part is not None:
                return part
        same = next((loader for loader, reading in made.items() if saved in (None, reading.architecture)), None)
        return same or (saved if whole is not None else next(iter(made), None))

    def parameter(self, name: str) -> str | None:
        """The name under which the files hold a model's parameter, or None.

        Checkpoints that were saved from the trunk alone (GPT-2's on the Hub) lack the trunk's prefix; others have the
        names of another version of transformers, which knows them.
        """
        return self._direct(name) or self._read_as(lambda reading: reading.stored.get(reading.key(name)))

    def calls_alike(self, names: Iterable[str]) -> bool:
        """Whether the files of a language model alone hold these parameters, as a trunk and a head call them.

        Then transformers need not be asked, whose import takes longer than adapters take to merge.
        """
        if any(
            isinstance(part, Mapping) and ("model_type" in part or key in _PARTS) for key, part in self.config.items()
        ):
            return False
        return all(name.startswith(_OF_MODELS) and self._direct(name) for name in names)

    def tied(self, name: str) -> str | None:
        """The name in the files of what a parameter that they do not hold is tied to, or None."""
        return self._read_as(lambda reading: reading.tied.get(reading.key(name)))

    def model_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a parameter in the model, whatever the files hold of it; None where it is not known."""
        return self._read_as(lambda reading: reading.shapes.get(reading.key(name)))

    def is_transposed(self, name: str) -> bool:
        """Whether a matrix, called as in the files or in the model, is stored `[in, out]`, as GPT-2's layers are."""
        return self.config.get("model_type") in _CONV1D_MODELS and _CONV1D_PLACES.match(name) is not None

    def renamed(self, name: str) -> str:
        """The parameter that a tensor of this name in a file becomes, or a part of which."""
        reading = next(iter(self.readings), None)
        return name if reading is None else reading.renamed(name)

    def left_out(self, name: str) -> bool:
        """Whether a tensor in these files is no parameter of the model, which does without it.

        Such are buffers that older versions stored (rotary frequencies, masks), and layers after the last one, for the
        prediction of further tokens. What the model does not know at all is not left out.
        """
        reading = next(iter(self.readings), None)
        if reading is None or reading.loads(name):
            return False
        layer = layer_of(name)
        behind = layer is not None and layer[1] >= self.num_layers([name])
        return behind or self.shapes[name] == () or reading.ignores(name)

    def _direct(self, name: str) -> str | None:
        """The name in the files that differs from a parameter's by the trunk's prefix at most, or None."""
        stripped = [name.removeprefix(prefix) for prefix in _TRUNK_PREFIXES]
        return next((candidate for candidate in [name, *stripped] if candidate in self.shapes), None)

    def _read_as(self, find: Callable[[ModelNames], _T | None]) -> _T | None:
        """What the first reading of the files finds."""
        return next((found for found in map(find, self.readings) if found is not None), None)

    def read(self, name: str) -> Tensor:
        """One tensor, as stored."""
        entry = self.entries[name]
        tensor = torch.empty(entry.size, dtype=entry.dtype)
        self.read_into(tensor, name, 0)
        return tensor.view(entry.shape)

    def read_into(self, buffer: Tensor, name: str, start: int) -> None:
        """Fill `buffer` (flat, of the stored dtype) with the elements of a tensor from `start` on."""
        self._file(self._file_of[name]).read_into(buffer, name, start)

    def metadata(self, file: str) -> dict[str, str]:
        """The metadata in the header of one weight file."""
        return self._file(file).metadata

    def _ties(self, head: str, embedding: str) -> bool:
        """Whether the model uses one weight for both.

        Where the config is silent the class says it (GPT-2, Gemma and OPT tie, Llama does not): transformers is asked,
        whose import takes seconds, once they are known to be equal.
        """
        return bool(self._says_tied or self._read_as(lambda reading: reading.ties(head, embedding)))

    @property
    def _says_tied(self) -> bool | None:
        """What the config says of tied embeddings; None where it is silent, or has parts, of which any may count."""
        return None if "text_config" in self.config else self.config.get("tie_word_embeddings")

    def _equal(self, first: str, second: str) -> bool:
        one, other = self.entries[first], self.entries[second]
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        for span in cut(first, one.shape, "element", _COMPARED):
            parts = [torch.empty(span.stop - span.start, dtype=one.dtype) for _ in range(2)]
            for part, name in zip(parts, (first, second), strict=True):
                self.read_into(part, name, span.start)
            if not torch.equal(*(part.view(torch.uint8) for part in parts)):
                return False
        return True

    @cached_property
    def _file_of(self) -> dict[str, str]:
        return {name: file for file, names in self.files.items() for name in names}

    def _file(self, file: str) -> TensorFile:
        if file not in self._open:
            self._open[file] = TensorFile(self.folder / file)
        return self._open[file]


def holds_weights(folder: str | Path) -> bool:
    """Whether a folder has the weights of a whole model, in one file or in shards."""
    return any((Path(folder) / file).is_file() for file in (_SINGLE, _INDEX))


def checkpoint_sha256(folder: str | Path) -> str:
    """SHA-256 over the contents of a checkpoint's safetensors files, in the order of their names.

    Depends on the bytes only, so it survives moving or renaming the folder. Written by the PPO stage into
    `rlhf_lines.json` as `sft_sha256`, and compared when policies are merged.

    Raises:
        FileNotFoundError: the folder holds no such checkpoint.
    """
    with Checkpoint(folder) as checkpoint:
        return sha256_of(checkpoint.folder / file for file in sorted(checkpoint.files))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file does not hold one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist: expected a JSON file that an earlier run wrote")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not JSON ({error}); copy or save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(path)!r} holds a {type(content).__name__}, expected a JSON object; save it again")
    return content


def _stated_layers(config: Mapping[str, Any]) -> Iterator[int]:
    """The numbers of layers that a config states: of the model or its text part first, then of all other parts."""
    inner = [part for part in (config.get("text_config"), *config.values()) if isinstance(part, Mapping)]
    for keys in (_LAYER_KEYS, _OF_PARTS):
        for part in (config, *inner):
            yield from (part[key] for key in keys if isinstance(part.get(key), int))

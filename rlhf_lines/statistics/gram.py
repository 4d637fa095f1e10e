"""Stage `gram`: the Gram matrices of the inputs of one policy's linear modules."""

from __future__ import annotations

import contextlib
import json
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.merge.inputs.statistics import GRAM
from rlhf_lines.merge.inputs.statistics_files import SAME_INPUT, TRANSPOSED
from rlhf_lines.progress import Bar
from rlhf_lines.statistics.config import GramConfig
from rlhf_lines.statistics.files import new_statistics_file
from rlhf_lines.statistics.inputs import fingerprints, in_groups, read_inputs
from rlhf_lines.statistics.policy import Policy
from rlhf_lines.statistics.samples import Sample, batches


FLOAT64 = 8  # bytes


def run(run_config: RunConfig, data_config: DataConfig, config: GramConfig, given: dict) -> Path:
    """Write `gram.safetensors` and return its folder; `read_gram` reads a matrix by the name of a weight.

    The file holds one matrix per distinct input. Its metadata have, as JSON, `same_input`: the name of every weight
    to that of the stored matrix; and `transposed`: the names of weights that are stored as `[in, out]`.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `read_inputs`; or `max_memory` is less than one matrix
            takes, a module is not linear or does not see every token, or a value is not finite.
    """
    inputs = read_inputs(run_config, data_config, config, "gram")
    with new_folder(config.output_dir, overwrite=run_config.overwrite) as folder:
        policy = inputs.load_policy()
        modules = linear_modules(policy, inputs.parameters)
        same_input = shared_inputs(policy.model, modules, inputs.prompts[0])
        widths = {name: _width(modules[name]) for name in dict.fromkeys(same_input.values())}
        groups = in_groups({name: FLOAT64 * width**2 for name, width in widths.items()}, config.max_memory)
        if config.inputs == "samples":
            samples = inputs.sample(policy, "gram, samples")
        else:
            samples = [Sample(prompt, ()) for prompt in inputs.prompts]
        metadata = {SAME_INPUT: same_input, TRANSPOSED: [name for name in same_input if _is_conv1d(modules[name])]}
        with (
            new_statistics_file(
                folder / GRAM.file,
                {name: (width, width) for name, width in widths.items()},
                {key: json.dumps(value) for key, value in metadata.items()},
            ) as file,
            Bar(total=len(groups) * len(samples), desc="gram", unit="sequences") as bar,
        ):
            sequences = [sample.prompt + sample.completion for sample in samples]
            for name, gram in input_grams(
                policy.model, modules, sequences, groups, batch_size=config.batch_size, advance=bar.update
            ):
                file.write(name, 0, gram.flatten())
        facts = {"inputs": config.inputs, "layers": len(same_input), "matrices": len(widths), "passes": len(groups)}
        write_record(folder, "gram", given, **inputs.record(policy, samples), **facts)
    return Path(config.output_dir)


def inputs(run_config: RunConfig, data_config: DataConfig, config: GramConfig) -> dict[str, Fingerprint]:
    """What the stage would read with these settings, as its record holds it."""
    return fingerprints(data_config, config)


def linear_modules(policy: Policy, parameters: str) -> dict[str, nn.Module]:
    """The linear modules of a policy by the names of their weights.

    A weight that is tied (an output head that is the embedding) is no module of its own, and left out.

    Args:
        policy: the policy, loaded.
        parameters: `adapted` or `all`.
    """
    names = {policy.parameters[name]: name for name in policy.selected(parameters) if name not in policy.tied}
    return {
        names[module.weight]: module
        for module in policy.model.modules()
        if (isinstance(module, nn.Linear) or _is_conv1d(module)) and module.weight in names
    }


@torch.no_grad()
def shared_inputs(model: nn.Module, modules: Mapping[str, nn.Module], token_ids: Sequence[int]) -> dict[str, str]:
    """From the name of every module to that of the first module that reads the same tensor, in the order of the calls.

    Args:
        model: a causal language model.
        modules: weight name to linear module of the model.
        token_ids: any sequence; one forward pass runs on its start.

    Raises:
        ValueError: a module runs more than once, or not at all.
    """
    same_input: dict[str, str] = {}
    seen: dict[int, tuple[str, weakref.ref, int]] = {}  # by id, which a later tensor may get: hence the reference

    def look(name: str, tensor: Tensor) -> None:
        if name in same_input:
            raise ValueError(f"the module of {name!r} runs more than once for a token; it has no one Gram matrix")
        first, reference, version = seen.get(id(tensor), (name, None, 0))
        if reference is None or reference() is not tensor or version != tensor._version:
            first = name
            seen[id(tensor)] = (name, weakref.ref(tensor), tensor._version)
        same_input[name] = first

    with _inputs_of(modules, look):
        model(input_ids=torch.tensor([token_ids[:8]], device=next(model.parameters()).device), use_cache=False)
    idle = next((name for name in modules if name not in same_input), None)
    if idle is not None:
        raise ValueError(f"the module of {idle!r} does not see every token (a mixture of experts has no Gram matrices)")
    return same_input


@torch.no_grad()
def input_grams(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    sequences: Sequence[Sequence[int]],
    groups: Sequence[Sequence[str]],
    *,
    batch_size: int,
    advance: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every module's name and G = X^T X / n, `[in, in]`, float32, group by group.

    X, `[n, in]`, are the inputs of the module at all tokens of all sequences; padding is left out. The products over
    one batch are taken in float32, which is fast everywhere; the sum over batches in float64, in which its error does
    not grow with their number (a float32 sum of 4,000 batches was off by 1e-5); the result is rounded to float32.

    A forward pass stops at the last module of a group, so logits are never computed.

    Source: arXiv 2212.09849, section 3.

    Args:
        model: a causal language model.
        modules: weight name to linear module of the model.
        sequences: token ids.
        groups: the names, in parts that are summed up in one pass over the sequences.
        batch_size: sequences in one forward pass.
        advance: called with the number of sequences after every batch of every pass.

    Raises:
        ValueError: a module does not see every token, or a value is not finite.
    """
    device = next(model.parameters()).device
    num_tokens = sum(map(len, sequences))
    for group in groups:
        widths = {name: _width(modules[name]) for name in group}
        sums = {name: torch.zeros(w, w, dtype=torch.float64, device=device) for name, w in widths.items()}
        for batch in batches(sequences, batch_size):
            tokens, mask = _right_pad(batch, device)
            missing = set(group)

            def add(name: str, tensor: Tensor, mask=mask, missing=missing, sums=sums) -> None:
                rows = tensor.reshape(-1, tensor.shape[-1])
                if len(rows) != mask.numel():
                    raise ValueError(f"the module of {name!r} does not see every token; it has no Gram matrix here")
                rows = rows[mask.flatten()].float()
                sums[name] += rows.T @ rows
                missing.remove(name)
                if not missing:
                    raise _Enough

            with contextlib.suppress(_Enough), _inputs_of({name: modules[name] for name in group}, add):
                model(input_ids=tokens, attention_mask=mask.long(), use_cache=False)
            advance(len(batch))
        for name in group:
            gram = sums.pop(name).div_(num_tokens).float()
            if not torch.isfinite(gram).all():
                raise ValueError(f"the inputs of {name!r} are not finite; choose dtype float32")
            yield name, gram


class _Enough(Exception):
    """All inputs of this forward pass are seen."""


@contextlib.contextmanager
def _inputs_of(modules: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, `see(name, input)` is called before each of the modules runs."""
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _right_pad(rows: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """Token ids and which of them are real, both `[N, longest row]`.

    Padding after the end: a causal model's real tokens do not see it, and their positions count from zero.
    """
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(width, device=device) < lengths.unsqueeze(1)


def _width(module: nn.Module) -> int:
    return module.weight.shape[0] if _is_conv1d(module) else module.in_features


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)

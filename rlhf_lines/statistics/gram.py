"""Stage `gram`: the Gram matrices of the inputs of one policy's linear modules."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.merge.inputs.statistics import GRAM
from rlhf_lines.merge.inputs.statistics_files import PLUS_PLUS, SAME_INPUT, TRANSPOSED, open_statistics
from rlhf_lines.progress import Bar
from rlhf_lines.statistics.config import GramConfig
from rlhf_lines.statistics.files import new_statistics_file
from rlhf_lines.statistics.inputs import Inputs, fingerprints, in_groups, read_inputs
from rlhf_lines.statistics.linear_inputs import add_products, is_conv1d, linear_modules, shared_inputs, sum_bytes, width
from rlhf_lines.statistics.plus_plus import LayerByLayer
from rlhf_lines.statistics.policy import Policy, load_policy, open_residuals
from rlhf_lines.statistics.samples import Sample, batches


def run(run_config: RunConfig, data_config: DataConfig, config: GramConfig, given: dict) -> Path:
    """Write `gram.safetensors` and return its folder; `read_gram` reads a matrix by the name of a weight.

    The file holds one matrix per distinct input. Its metadata have, as JSON, `same_input`: the name of every weight
    to that of the stored matrix; and `transposed`: the names of weights that are stored as `[in, out]`. For RegMean++
    (`merged_with`) there is such a folder for each policy, `1` and up, and `plus_plus` says what they were made with.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `read_inputs`; or `max_memory` is less than one matrix
            takes, a module is not linear or does not see every token, or a value is not finite.
    """
    if config.merged_with:
        return _run_plus_plus(run_config, data_config, config, given)
    inputs = read_inputs(run_config, data_config, config, "gram")
    inputs.tell_few(data_config.dataset_name)
    with new_folder(config.output_dir, overwrite=run_config.overwrite) as folder:
        policy = inputs.load_policy()
        modules = linear_modules(policy, inputs.parameters)
        same_input = shared_inputs(policy.model, modules, inputs.prompts[0])
        widths = {name: width(modules[name]) for name in dict.fromkeys(same_input.values())}
        groups = in_groups(sum_bytes({name: modules[name] for name in widths}), config.max_memory)
        samples = _samples(inputs, policy)
        metadata = _metadata(same_input, modules)
        with (
            new_statistics_file(
                folder / GRAM.file,
                {name: (size, size) for name, size in widths.items()},
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
    found: dict[str, Fingerprint] = {}
    for policy in (config.policy, *config.merged_with):
        found |= fingerprints(data_config, config.alone(policy))
    return found


def _samples(inputs: Inputs, policy: Policy) -> list[Sample]:
    if inputs.config.inputs == "samples":
        return inputs.sample(policy, "gram, samples")
    return [Sample(prompt, ()) for prompt in inputs.prompts]


def _metadata(same_input: Mapping[str, str], modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {SAME_INPUT: same_input, TRANSPOSED: [name for name in same_input if is_conv1d(modules[name])]}


def _run_plus_plus(run_config: RunConfig, data_config: DataConfig, config: GramConfig, given: dict) -> Path:
    """Write a folder of Gram matrices for each of the policies, `1` and up, as `run` has one; see `LayerByLayer`."""
    names = [config.policy, *config.merged_with]
    every = [read_inputs(run_config, data_config, config.alone(policy), "gram") for policy in names]
    every[0].tell_few(data_config.dataset_name)
    with new_folder(config.output_dir, overwrite=run_config.overwrite) as folder, contextlib.ExitStack() as stack:
        samples, records = [], []
        for inputs in every:
            policy = inputs.load_policy()
            # Stops before anything is sampled where one matrix does not fit.
            in_groups(sum_bytes(linear_modules(policy, inputs.parameters)), config.max_memory)
            samples.append(_samples(inputs, policy))
            records.append(inputs.record(policy, samples[-1]))
            del policy  # one model is in memory at a time
        sft = load_policy(every[0].sft, every[0].sft, dtype=config.dtype)
        residuals, not_finite = open_residuals(
            every[0].sft, [inputs.policy for inputs in every], stack, sft_renamed=config.sft_renamed
        )
        modules = linear_modules(sft, "all")
        modules = {name: module for name, module in modules.items() if name in residuals.shapes}
        sequences = [[sample.prompt + sample.completion for sample in own] for own in samples]
        layers = LayerByLayer(
            sft.model,
            sft.parameters,
            modules,
            residuals,
            sequences,
            reduce=config.reduce,
            batch_size=config.batch_size,
            max_memory=config.max_memory,
        )
        widths = {name: width(modules[name]) for name in dict.fromkeys(layers.same_input.values())}
        made_with = {"reduce": config.reduce, "policies": [record["policy_sha256"] for record in records]}
        metadata = _metadata(layers.same_input, modules) | {PLUS_PLUS: made_with}
        files = []
        for number in range(1, len(names) + 1):
            (folder / str(number)).mkdir()
            file = new_statistics_file(
                folder / str(number) / GRAM.file,
                {name: (size, size) for name, size in widths.items()},
                {key: json.dumps(value) for key, value in metadata.items()},
            )
            files.append(stack.enter_context(file))
        written = open_statistics(GRAM, [folder / str(number) for number in range(1, len(names) + 1)], stack)
        total = sum(map(len, sequences)) * (layers.passes + layers.merged)
        with Bar(total=total, desc="gram, layer by layer", unit="sequences") as bar:
            for k, name, gram in layers.grams(written, bar.update):
                files[k].write(name, 0, gram.flatten())
        if not_finite:
            path, name = min(not_finite)
            raise ValueError(f"{name!r} of {path!r} has values that are not finite, there or in the SFT model")
        facts = {"inputs": config.inputs, "layers": len(layers.same_input), "matrices": len(widths)}
        facts |= {"passes": layers.passes, "plus_plus": made_with}
        for number, record in enumerate(records, start=1):
            write_record(folder / str(number), "gram", given, **record, **facts)
        write_record(folder, "gram", given, **_together(records), **facts)
    return Path(config.output_dir)


def _together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the record of a folder says whose policies have records of their own."""
    counted = ("sequences", "prompt_tokens", "completion_tokens")
    return {
        "policies": [record["policy"] for record in records],
        "inputs_sha256": {name: value for record in records for name, value in record["inputs_sha256"].items()},
        "lost_residual": None,
        **{name: sum(record[name] for record in records) for name in counted},
    }


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
    """Yield every module's name and G = X^T X / n, `[in, in]`, float32, on the CPU, group by group.

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
        widths = {name: width(modules[name]) for name in group}
        sums = {name: torch.zeros(w, w, dtype=torch.float64, device=device) for name, w in widths.items()}
        for batch in batches(sequences, batch_size):
            add_products(model, {name: modules[name] for name in group}, batch, sums)
            advance(len(batch))
        for name in group:
            gram = sums.pop(name).div_(num_tokens).float().cpu()
            if not torch.isfinite(gram).all():
                raise ValueError(f"the inputs of {name!r} are not finite; choose dtype float32")
            yield name, gram

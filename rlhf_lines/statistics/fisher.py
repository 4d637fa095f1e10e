"""Stage `fisher`: the diagonal Fisher information of one policy over its own samples."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_lines.artifact import new_folder, write_record
from rlhf_lines.config import RunConfig
from rlhf_lines.data.config import DataConfig
from rlhf_lines.merge.inputs.fingerprints import Fingerprint
from rlhf_lines.merge.inputs.statistics import FISHER
from rlhf_lines.progress import Bar
from rlhf_lines.reading import last_logits
from rlhf_lines.sampling import chosen_logprobs
from rlhf_lines.statistics.config import FisherConfig
from rlhf_lines.statistics.files import new_statistics_file
from rlhf_lines.statistics.inputs import fingerprints, in_groups, read_inputs
from rlhf_lines.statistics.samples import Sample


def run(run_config: RunConfig, data_config: DataConfig, config: FisherConfig, given: dict) -> Path:
    """Write `fisher.safetensors` and return its folder.

    The file maps the name that the SFT model's files give a parameter to its diagonal Fisher, float32, of its shape.
    Of an adapter theta is the dense weight W + s B A: the Fisher of the factors does not give that of the residual.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `read_inputs`; or `max_memory` is less than one parameter
            takes, or a value is not finite.
    """
    inputs = read_inputs(run_config, data_config, config, "fisher")
    inputs.tell_few(data_config.dataset_name)
    with new_folder(config.output_dir, overwrite=run_config.overwrite) as folder:
        policy = inputs.load_policy()
        parameters = {name: policy.parameters[name] for name in policy.selected(inputs.parameters)}
        groups = in_groups(
            {name: torch.float32.itemsize * entry.numel() for name, entry in parameters.items()}, config.max_memory
        )
        samples = inputs.sample(policy, "fisher, samples")
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        with (
            new_statistics_file(folder / FISHER.file, shapes, {}) as file,
            Bar(total=len(groups) * len(samples), desc="fisher", unit="sequences") as bar,
        ):
            for name, fisher in diagonal_fisher(policy.model, parameters, samples, groups, advance=bar.update):
                file.write(name, 0, fisher.flatten())
        write_record(
            folder, "fisher", given, **inputs.record(policy, samples), tensors=len(parameters), passes=len(groups)
        )
    return Path(config.output_dir)


def inputs(run_config: RunConfig, data_config: DataConfig, config: FisherConfig) -> dict[str, Fingerprint]:
    """What the stage would read with these settings, as its record holds it."""
    return fingerprints(data_config, config)


def diagonal_fisher(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    samples: Sequence[Sample],
    groups: Sequence[Sequence[str]],
    *,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter's name and diagonal Fisher, float32, of its shape, on the CPU, group by group.

        F = 1/N sum_i (d/dtheta log pi(y_i|x_i))^2,   y_i ~ pi(.|x_i),   log pi(y|x) = sum_t log pi(y_t|x, y_<t)

    One backward pass per sequence, since the square of a sum of gradients is not the sum of their squares. A gradient
    is squared and freed as soon as it is complete, so that the sums of one group and one gradient are in memory.
    Float32 sums are enough: no summand is negative, so the relative error is at most N 6e-8.

    Source: arXiv 2111.09832, section 2.3 (there the expectation over y is exact, over classes; over sequences it has
    to be sampled). On a CPU, equal samples give equal bits, whatever the groups.

    Args:
        model: a causal language model; afterwards none of its parameters asks for a gradient.
        parameters: name to a parameter of the model; one that is used in several places counts once, with the sum of
            its gradients.
        samples: n prompts with completions of this model.
        groups: the names, in parts that are summed up in one pass over the samples.
        advance: called after every sequence of every pass.

    Raises:
        ValueError: a value is not finite.
    """
    model.requires_grad_(False)
    for group in groups:
        sums = {name: torch.zeros_like(parameters[name], dtype=torch.float32) for name in group}
        with _squared_gradients({parameters[name]: total for name, total in sums.items()}):
            for sample in samples:
                logprob = completion_logprob(model, sample)
                if logprob.requires_grad:  # else the model uses no parameter of the group: their derivative is zero
                    logprob.backward()
                advance()
        for name in group:
            fisher = sums.pop(name).div_(len(samples)).cpu()
            if not torch.isfinite(fisher).all():
                raise ValueError(f"the Fisher information of {name!r} is not finite; choose dtype float32")
            yield name, fisher


def completion_logprob(model: nn.Module, sample: Sample) -> Tensor:
    """Log pi(y|x) of one completion, the end token included, a scalar with a graph."""
    device = next(model.parameters()).device
    tokens = torch.tensor([sample.prompt + sample.completion], device=device)
    length = len(sample.completion)
    logits = last_logits(model, tokens, torch.ones_like(tokens), length + 1)[:, :-1]
    return chosen_logprobs(logits, tokens[:, -length:], 1.0).sum()


@contextlib.contextmanager
def _squared_gradients(sums: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, every backward pass adds its squared gradients to the sums and keeps none."""

    def add(parameter: nn.Parameter) -> None:
        gradient, parameter.grad = parameter.grad, None
        sums[parameter].addcmul_(gradient, gradient)  # in float32, also of a gradient in bfloat16

    hooks = [parameter.requires_grad_(True).register_post_accumulate_grad_hook(add) for parameter in sums]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in sums:
            parameter.requires_grad_(False)

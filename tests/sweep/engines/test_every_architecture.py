"""Greedy texts of a mixed batch are what transformers' own `generate` writes with each merged model, alone."""

from __future__ import annotations

import copy

import pytest
import torch

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import Adapter, Factors
from rlhf_lines.reading import Reader
from rlhf_lines.sweep.engines.multi_lora import MultiLoRA
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.engines.sampling import sample, text_nll
from tests.architectures import ARCHITECTURES, Architecture
from tests.sweep.by_hand import cross_entropy, kl_by_hand
from tests.tiny import EOS, PAD


PROMPTS = [(5, 9, 14, 3, 7), (8,), (12, 13), (10, 4)]  # of several lengths, two of them of one
SFT = MergeSpec("linear", (0.0, 0.0))
SPECS = [MergeSpec("linear", (0.3, 0.7)), SFT, MergeSpec("linear", (1.0, -0.5), alpha=1.5)]
LENGTH = 7
ENDS = [EOS, 4, 11]  # several, so that rows leave a batch at different tokens


def adapters_of(model, architecture: Architecture) -> list[Adapter]:
    """Two policies of random factors, of other ranks, on the modules that the architecture names."""
    policies = []
    for rank in (2, 3):
        generator = torch.Generator().manual_seed(rank)
        modules = {}
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in architecture.targets and getattr(module, "weight", None) is not None:
                rows, columns = module.weight.shape[:: -1 if type(module).__name__ == "Conv1D" else 1]
                A, B = (torch.randn(*shape, generator=generator) * 0.4 for shape in ((rank, columns), (rows, rank)))
                modules[name] = Factors(A, B, 1.0)
        policies.append(Adapter("policy", modules))
    return policies


def merged(model, adapters: list[Adapter], spec: MergeSpec):
    """A copy of the model whose weights are W + alpha sum_k w_k B_k A_k: the specs here scale all layers alike."""
    dense = copy.deepcopy(model)
    with torch.no_grad():
        for name in adapters[0].modules:
            module = dense.get_submodule(name)
            for weight, adapter in zip(spec.weights, adapters, strict=True):
                residual = spec.alpha * weight * adapter.modules[name].B @ adapter.modules[name].A
                module.weight += residual.T if type(module).__name__ == "Conv1D" else residual
    return dense


def generated(model, prompt) -> tuple[int, ...]:
    """What transformers writes after a prompt, alone in its batch."""
    ids = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": LENGTH, "eos_token_id": ENDS, "pad_token_id": PAD}
    # RecurrentGemma's modules keep the states of the last text read with a cache, and `generate` goes on from them.
    settings["use_cache"] = not hasattr(model, "_setup_cache")
    return tuple(model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, ids.shape[1] :].tolist())


SWEPT = [architecture for architecture in ARCHITECTURES if not architecture.refused]


@pytest.mark.parametrize("architecture", SWEPT, ids=lambda architecture: architecture.name)
def test_a_mixed_batch_is_generate_of_each_merged_model(architecture):
    model = architecture.model()
    adapters = adapters_of(model, architecture)
    assert {name.rpartition(".")[2] for name in adapters[0].modules} == set(architecture.targets)
    dense = {spec: merged(model, adapters, spec) for spec in SPECS}
    multi_lora = MultiLoRA(model, adapters)
    requests = [Request(spec, prompt, key) for key, prompt in enumerate(PROMPTS) for spec in SPECS]
    settings = {"max_new_tokens": LENGTH, "eos_token_ids": ENDS, "pad_token_id": PAD, "seed": 0}
    got = sample(multi_lora, requests, temperature=0.0, **settings)
    for request, completion in zip(requests, got, strict=True):
        want = generated(dense[request.spec], request.prompt_ids)
        assert completion.token_ids == want
        kl = kl_by_hand(dense[request.spec], dense[SFT], request, want, 1.0)
        assert completion.kl == pytest.approx(kl, abs=1e-4 * max(1, abs(kl)))
    assert len({completion.token_ids for completion in got}) > 3
    rows = [(*prompt, 6, 11) for prompt in PROMPTS]
    specs = [SPECS[i % 3] for i in range(len(rows))]
    for spec, row, nll in zip(specs, rows, text_nll(multi_lora, specs, rows, PAD), strict=True):
        assert nll == pytest.approx(cross_entropy(dense[spec], row), rel=1e-4)


@pytest.mark.parametrize(
    "architecture", [a for a in ARCHITECTURES if a.refused], ids=lambda architecture: architecture.name
)
def test_what_cannot_be_swept_is_refused(architecture):
    model = architecture.model()
    with pytest.raises(ValueError, match=architecture.refused):
        MultiLoRA(model, adapters_of(model, architecture))


@pytest.mark.parametrize("architecture", SWEPT, ids=lambda architecture: architecture.name)
@torch.no_grad()
def test_a_row_reads_the_same_once_others_have_left(architecture):
    model = architecture.model()
    rows = torch.tensor([[5, 9, 14], [8, 3, 7], [12, 13, 2]])
    reader = Reader(model, rows[:, :2], torch.ones_like(rows[:, :2]))
    reader.next_logits()
    reader.append(rows[:, 2])
    reader.keep(torch.tensor([0, 2]))
    want = model(input_ids=rows[[0, 2]], attention_mask=torch.ones(2, 3), use_cache=False).logits[:, -1]
    torch.testing.assert_close(reader.next_logits(), want, rtol=1e-4, atol=1e-5)

"""Completions and their noise are functions of what was asked for, not of the batch that it was asked in."""

from __future__ import annotations

import math
import re

import pytest
import torch

from rlhf_lines import reading
from rlhf_lines.completions import StopTexts
from rlhf_lines.merge import MergeSpec
from rlhf_lines.sampling import gumbel, truncated
from rlhf_lines.sweep.engines import sampling
from rlhf_lines.sweep.engines.protocol import Completion, Request
from rlhf_lines.sweep.engines.sampling import rows_of_pass, sample, sft_logprobs, text_nll
from tests.splitmix import noise_by_hand
from tests.sweep.by_hand import kl_by_hand


PAD, EOS = 0, 1
SPECS = [
    MergeSpec("linear", (0.3, 0.7), alpha=0.5, beta=1.0),
    MergeSpec("linear", (0.0, 0.0)),
    MergeSpec("linear", (1.0, 0.0)),
    MergeSpec("linear", (0.5, 0.5)),
    MergeSpec("linear", (0.0, 1.0), alpha=1.5, beta=-1.0),
]
PROMPTS = {101: (5, 9, 14, 3), 7: (8,), 2**55 + 3: (22, 30, 4, 11, 8, 19, 6), 40: (12, 13)}
SETTINGS = {"max_new_tokens": 16, "temperature": 1.0, "eos_token_ids": [EOS], "pad_token_id": PAD, "seed": 3}


def all_requests(samples: int = 2) -> list[Request]:
    """Every spec on every prompt, ``samples`` times: requests of many lengths and specs."""
    return [
        Request(spec, ids, key, number) for key, ids in PROMPTS.items() for number in range(samples) for spec in SPECS
    ]


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return all_requests()


@pytest.fixture(scope="module")
def completions(multi_lora, requests) -> list[Completion]:
    """All requests in one batch."""
    return sample(multi_lora, requests, **SETTINGS)


def tokens(completions: list[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def test_the_batch_is_worth_testing(completions):
    lengths = [len(completion.token_ids) for completion in completions]
    ended = [completion.token_ids[-1] == EOS for completion in completions]
    assert len(set(lengths)) > 5 and any(ended) and not all(ended)
    assert len(set(tokens(completions))) > len(completions) // 2


@pytest.mark.parametrize("size", [1, 3, 7])
def test_completions_do_not_depend_on_batch_size(multi_lora, requests, completions, size):
    chunks = [requests[i : i + size] for i in range(0, len(requests), size)]
    got = [completion for chunk in chunks for completion in sample(multi_lora, chunk, **SETTINGS)]
    assert tokens(got) == tokens(completions)
    for one, other in zip(got, completions, strict=True):
        assert one.kl == pytest.approx(other.kl, abs=1e-4)


def test_completions_do_not_depend_on_how_many_prompts_are_read_at_once(multi_lora, requests, completions, monkeypatch):
    passes = []
    hook = multi_lora.model.register_forward_pre_hook(
        lambda model, arguments, options: passes.append(options["input_ids"].shape), with_kwargs=True
    )
    monkeypatch.setattr(reading, "AT_ONCE", 24)
    try:
        got = sample(multi_lora, requests, **SETTINGS)
    finally:
        hook.remove()
    assert tokens(got) == tokens(completions)
    width = max(map(len, PROMPTS.values()))
    prompts = [rows for rows, length in passes if length == width]
    assert max(prompts) == 24 // width and sum(prompts) == len(requests)


def test_completions_do_not_depend_on_order(multi_lora, requests, completions):
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(0)).tolist()
    got = sample(multi_lora, [requests[i] for i in order], **SETTINGS)
    assert tokens(got) == [completions[i].token_ids for i in order]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_completions_do_not_depend_on_the_other_specs(multi_lora, requests, completions, spec):
    rows = [i for i, request in enumerate(requests) if request.spec == spec]
    got = sample(multi_lora, [requests[i] for i in rows], **SETTINGS)
    assert tokens(got) == [completions[i].token_ids for i in rows]


def test_a_completion_is_the_argmax_of_dense_logits_and_noise(dense_model, requests, completions):
    """Token by token, without cache, batch or hooks, with the noise worked out by hand."""
    for request, completion in list(zip(requests, completions, strict=True))[:: len(requests) // 8]:
        ids, model = list(request.prompt_ids), dense_model(request.spec)
        for step, token in enumerate(completion.token_ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()
            numbers = (SETTINGS["seed"], request.prompt_key, request.sample, step)
            sums = [logit + noise_by_hand(*numbers, v) for v, logit in enumerate(logits)]
            assert token == max(range(len(sums)), key=sums.__getitem__)
            ids.append(token)


def test_completions_end_with_the_first_end_token_or_at_the_limit(completions):
    for completion in completions:
        assert EOS not in completion.token_ids[:-1]
        assert completion.token_ids[-1] == EOS or len(completion.token_ids) == SETTINGS["max_new_tokens"]


def test_a_shorter_limit_cuts_and_changes_nothing(multi_lora, requests, completions):
    for limit in (1, 5):
        got = sample(multi_lora, requests, **{**SETTINGS, "max_new_tokens": limit})
        assert tokens(got) == [completion.token_ids[:limit] for completion in completions]


def test_any_of_several_end_tokens_ends(multi_lora, requests, completions):
    ends = [EOS, 7, 20]
    got = sample(multi_lora, requests, **{**SETTINGS, "eos_token_ids": ends})
    for one, longer in zip(got, completions, strict=True):
        stop = next((i for i, token in enumerate(longer.token_ids) if token in ends), len(longer.token_ids) - 1)
        assert one.token_ids == longer.token_ids[: stop + 1]


def test_equal_specs_meet_the_same_noise_and_other_samples_do_not(multi_lora):
    spec, twin = MergeSpec("linear", (0.3, 0.7)), MergeSpec("linear", (0.3, 0.7), alpha=1.0, beta=0.0)
    requests = [Request(s, PROMPTS[101], 101, n) for n in range(4) for s in (spec, twin)]
    got = sample(multi_lora, requests, **SETTINGS)
    assert tokens(got[0::2]) == tokens(got[1::2])
    assert len(set(tokens(got[0::2]))) == 4
    other_seed = sample(multi_lora, requests, **{**SETTINGS, "seed": 4})
    assert all(a != b for a, b in zip(tokens(got), tokens(other_seed), strict=True))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_greedy_is_generate(multi_lora, dense_model, spec):
    others = [Request(SPECS[0], ids, key) for key, ids in PROMPTS.items()]
    asked = [Request(spec, ids, key) for key, ids in PROMPTS.items()]
    got = sample(multi_lora, others + asked, **{**SETTINGS, "temperature": 0.0})[len(others) :]
    for request, completion in zip(asked, got, strict=True):
        ids = torch.tensor([request.prompt_ids])
        generated = dense_model(spec).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=SETTINGS["max_new_tokens"]
        )
        assert list(completion.token_ids) == generated[0, ids.shape[1] :].tolist()


# --- among the most likely tokens, and up to a text ---

FEW = {"top_k": 5, "top_p": 0.8}


def kept_by_hand(logits: list[float], top_k: int | None, top_p: float | None) -> set[int]:
    """The tokens that may be drawn, by the definitions: the k most likely; of these the fewest that reach p."""
    order = sorted(range(len(logits)), key=lambda v: -logits[v])[:top_k]
    weights = [math.exp(logits[v] - logits[order[0]]) for v in order]
    kept, reached = set(), 0.0
    for token, weight in zip(order, weights, strict=True):
        if top_p is not None and reached >= top_p:
            break
        kept.add(token)
        reached += weight / math.fsum(weights)
    return kept


@pytest.mark.parametrize("few", [{"top_k": 3, "top_p": None}, {"top_k": None, "top_p": 0.6}, FEW], ids=str)
def test_what_may_be_drawn_is_what_the_definitions_say(few):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 30, generator=generator, dtype=torch.float64)
    finite = truncated(logits, **few).isfinite()
    assert [set(row.nonzero().flatten().tolist()) for row in finite] == [
        kept_by_hand(row, few["top_k"], few["top_p"]) for row in logits.tolist()
    ]
    assert len(set(finite.sum(dim=1).tolist())) > 1 or few["top_p"] is None
    assert torch.equal(truncated(logits, top_k=None, top_p=None), logits)


def test_draws_follow_the_distribution_of_what_is_kept():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -2.0], dtype=torch.float64)
    n = 20_000
    noise = gumbel(1, torch.arange(n), torch.zeros(n, dtype=torch.long), 3, len(logits))
    drawn = (truncated(logits.expand(n, -1), top_k=4, top_p=0.9) + noise).argmax(dim=1)
    kept = sorted(kept_by_hand(logits.tolist(), 4, 0.9))
    assert kept == [0, 3, 4]
    counts, expected = torch.bincount(drawn, minlength=6).double(), n * logits[kept].softmax(0)
    assert counts.sum() == counts[kept].sum() == n
    # Chi-square with 2 degrees of freedom exceeds 18.4 once in 10,000 draws.
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 18.4


def test_a_token_among_few_is_the_argmax_of_kept_logits_and_the_same_noise(dense_model, multi_lora, requests):
    """Token by token from dense merges, with transformers' own warpers on its logits and the noise by hand."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(5), TopPLogitsWarper(0.8)])
    few = sample(multi_lora, requests, **{**SETTINGS, **FEW, "temperature": 0.7})
    all_of_them = sample(multi_lora, requests, **{**SETTINGS, "temperature": 0.7})
    assert tokens(few) != tokens(all_of_them)
    for request, completion in list(zip(requests, few, strict=True))[:: len(requests) // 8]:
        ids, model = list(request.prompt_ids), dense_model(request.spec)
        for step, token in enumerate(completion.token_ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1:]
            kept = warpers(torch.tensor([ids]), logits)[0].tolist()
            numbers = (SETTINGS["seed"], request.prompt_key, request.sample, step)
            sums = [logit + noise_by_hand(*numbers, v) for v, logit in enumerate(kept)]
            assert token == max(range(len(sums)), key=sums.__getitem__)
            ids.append(token)


def test_the_log_ratio_of_a_draw_among_few_is_that_among_all(dense_model, multi_lora, requests):
    few = sample(multi_lora, requests, **{**SETTINGS, **FEW})
    sft = dense_model(MergeSpec("linear", (0.0, 0.0)))
    for request, completion in list(zip(requests, few, strict=True))[:: len(requests) // 8]:
        expected = kl_by_hand(dense_model(request.spec), sft, request, completion.token_ids, 1.0)
        assert completion.kl == pytest.approx(expected, abs=1e-4)


STOPS = ("e", "b'", "qx")


@pytest.fixture(scope="module")
def tokenizer(sft):
    from rlhf_lines.models import load_tokenizer

    return load_tokenizer(sft)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stop_text_ends_a_completion_and_changes_no_token(multi_lora, requests, tokenizer, temperature):
    """As transformers' own criterion says of the completions without: all up to the token that completes one."""
    from transformers import StopStringCriteria

    settings = {**SETTINGS, "temperature": temperature, "max_new_tokens": 40}
    whole = sample(multi_lora, requests, **settings)
    stopped = sample(multi_lora, requests, **settings, stop=StopTexts(tokenizer, STOPS))
    criterion, ended = StopStringCriteria(tokenizer, list(STOPS)), 0
    for one, longer in zip(stopped, whole, strict=True):
        ids = longer.token_ids
        found = [n for n in range(1, len(ids) + 1) if criterion(torch.tensor([ids[:n]]), None).item()]
        assert one.token_ids == ids[: found[0] if found else len(ids)]
        ended += len(one.token_ids) < len(ids)
        written = tokenizer.decode(one.token_ids, skip_special_tokens=True)
        assert StopTexts(tokenizer, STOPS).cut(written) == re.split("e|b'|qx", written)[0]
    assert 0 < ended < len(requests)


def test_the_log_ratio_of_a_stopped_completion_is_of_its_tokens(dense_model, multi_lora, requests, tokenizer):
    stopped = sample(multi_lora, requests, **SETTINGS, stop=StopTexts(tokenizer, STOPS))
    sft = dense_model(MergeSpec("linear", (0.0, 0.0)))
    for request, completion in list(zip(requests, stopped, strict=True))[:: len(requests) // 8]:
        expected = kl_by_hand(dense_model(request.spec), sft, request, completion.token_ids, 1.0)
        assert completion.kl == pytest.approx(expected, abs=1e-4)


def test_greedy_text_up_to_a_stop_text_is_that_of_transformers(dense_model, multi_lora, tokenizer):
    spec = MergeSpec("linear", (0.5, 0.5))
    requests = [Request(spec, ids, key) for key, ids in PROMPTS.items()]
    got = sample(
        multi_lora, requests, **{**SETTINGS, "temperature": 0.0, "max_new_tokens": 30}, stop=StopTexts(tokenizer, STOPS)
    )
    for request, completion in zip(requests, got, strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = dense_model(spec).generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30, eos_token_id=EOS,
            pad_token_id=PAD, stop_strings=list(STOPS), tokenizer=tokenizer,
        )  # fmt: skip
        assert completion.token_ids == tuple(expected[0, ids.shape[1] :].tolist())


# --- the KL ---


@pytest.mark.parametrize(("temperature", "of_softmax"), [(1.0, 1.0), (0.7, 0.7), (0.0, 1.0)])
def test_kl_is_that_of_the_dense_models(multi_lora, dense_model, temperature, of_softmax):
    requests = all_requests(samples=1)
    got = sample(multi_lora, requests, **{**SETTINGS, "temperature": temperature})
    sft = dense_model(SPECS[1])
    expected = [
        kl_by_hand(dense_model(request.spec), sft, request, completion.token_ids, of_softmax)
        for request, completion in zip(requests, got, strict=True)
    ]
    for request, completion, want in zip(requests, got, expected, strict=True):
        assert completion.kl == pytest.approx(want, abs=1e-4)
        if request.spec == SPECS[1]:
            # Not exactly 0: the policy is read while sampling with a cache, the SFT model in one pass.
            assert completion.kl == pytest.approx(0.0, abs=1e-5)
    assert max(map(abs, expected)) > 0.5


PAIRS = [((3 + i % 20, 4, 5, 6, 7)[: 1 + i % 5], (8, 9 + i % 3, 1)[: 1 + i % 3]) for i in range(40)]


@pytest.mark.parametrize(
    ("vocab_size", "device", "length", "judged", "rows"),
    [
        (1 << 15, "cuda", 60, 31, 128),  # 2^27 logits
        (1 << 15, "cuda", 1 << 10, 31, 32),  # 2^15 tokens
        (1 << 15, "cuda", 1 << 14, 31, 2),
        (1 << 9, "cpu", 60, 31, 128),  # 2^21 logits
        (1 << 15, "cpu", 60, 31, 8),  # 2, but 8 rows are faster
        (1 << 17, "cpu", 300, 255, 4),  # 2^27 logits
        (1 << 15, "cpu", 1 << 14, 31, 2),
        (128256, "cpu", 3000, 3000, 1),
        (128256, "cuda", 1 << 16, 3000, 1),
    ],
)
def test_rows_of_a_pass_are_what_logits_and_tokens_allow(vocab_size, device, length, judged, rows):
    assert rows_of_pass(vocab_size, device, length, judged) == rows


@pytest.mark.parametrize("trees", [True, False])
def test_long_prompts_are_read_in_more_passes_and_with_the_same_result(multi_lora, monkeypatch, trees):
    monkeypatch.setattr(sampling, "takes_trees", lambda model: trees)
    sizes = []
    hook = multi_lora.model.base_model.register_forward_pre_hook(
        lambda model, arguments, options: sizes.append(options["input_ids"].shape), with_kwargs=True
    )
    try:
        together = sft_logprobs(multi_lora, PAIRS, 0, 1.0)
        assert len(sizes) == 1
        for limit in ("MOST_TOKENS", "TREE_TOKENS"):
            monkeypatch.setattr(sampling, limit, 40)
        sizes.clear()
        apart = sft_logprobs(multi_lora, PAIRS, 0, 1.0)
    finally:
        hook.remove()
    assert apart == pytest.approx(together, abs=1e-5)
    assert len(sizes) > 3
    assert all(rows * length <= 40 for rows, length in sizes)


def test_texts_are_read_in_more_passes_with_the_same_result(multi_lora, monkeypatch):
    rows = [list(range(3, 5 + i)) for i in range(20)]
    specs = [MergeSpec("linear", (i / 20, 1 - i / 20)) for i in range(20)]
    together = text_nll(multi_lora, specs, rows, 0)
    monkeypatch.setattr(sampling, "MOST_TOKENS", 40)
    assert text_nll(multi_lora, specs, rows, 0) == pytest.approx(together, abs=1e-4)

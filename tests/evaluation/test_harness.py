"""A point on the loaded base answers as lm-eval's own model of transformers does on its merged checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_lines.evaluation.asking import Asking
from rlhf_lines.evaluation.models import describe_models, open_models
from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.sweep.store import open_finished


lm_eval = pytest.importorskip("lm_eval")
TASKS = ["tiny_choice", "tiny_answer", "tiny_text"]
SPECS = [
    MergeSpec("linear", (0.5, 0.5), alpha=0.5, beta=1.0),
    MergeSpec("ties", (0.5, 0.5), options={"density": 0.5}),
    MergeSpec("linear", (0.0, 0.0)),
]


@pytest.fixture
def peer(sft, policies, tasks, tmp_path):
    """A function from a spec to what lm-eval itself finds of its merged checkpoint."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def find(spec, names=TASKS, template=None, **settings):
        folder = sft
        if any(spec.weights):
            folder = tmp_path / spec.digest()
            merge_policies(sft, policies[:2], spec, save="dense", output_dir=folder)
        model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
        model.tokenizer.chat_template = template
        manager = TaskManager(include_path=tasks, include_defaults=False)
        return lm_eval.simple_evaluate(model, tasks=names, task_manager=manager, **settings)

    return find


@pytest.fixture
def engine(run):
    with open_finished(run) as store, open_models(describe_models(run, store)) as opened:
        yield opened


@pytest.fixture
def ours(engine, tasks, monkeypatch):
    """A function from a spec to what is found of it on the loaded base, by name, and what lm-eval logs of documents."""
    from rlhf_lines.evaluation import harness

    evaluate, samples = harness.evaluate, {}

    def kept(model, loaded, **settings):
        results = evaluate(model, loaded, **settings)
        samples.update(results["samples"])
        return results

    def find(spec, names=TASKS, template=None, **settings):
        engine.tokenizer.chat_template = template
        asking = Asking(**settings)
        model = harness.LoadedModel(engine.multi_lora.model, engine.tokenizer)
        loaded = harness.load_tasks(names, asking, tasks)
        with engine.following(spec):
            return {name: harness.ask(model, name, loaded[name], asking) for name in names}, samples

    monkeypatch.setattr(harness, "evaluate", kept)
    return find


def answers(samples, task) -> list:
    return [row["filtered_resps"] for row in samples[task]]


@pytest.mark.parametrize("spec", SPECS, ids=["LiNeS", "ties", "SFT"])
def test_a_point_answers_as_its_merged_checkpoint_does_in_lm_eval(ours, peer, spec):
    expected = peer(spec)
    by_task, raw = ours(spec)
    found = list(by_task.values())
    theirs, ours = (answers(samples, "tiny_choice") for samples in (expected["samples"], raw))
    likelihoods = [[[pair[0] for pair in row] for row in each] for each in (theirs, ours)]
    np.testing.assert_allclose(likelihoods[1], likelihoods[0], rtol=0, atol=1e-4)
    assert [[pair[1] for pair in row] for row in ours] == [[pair[1] for pair in row] for row in theirs]
    said = answers(raw, "tiny_answer")
    assert said == answers(expected["samples"], "tiny_answer")
    assert len(set(map(str, said))) > 1 and np.ptp(likelihoods[0]) > 1
    metrics = {name: value for each in found for name, value in each["metrics"].items()}
    keys = {"tiny_choice/acc": "acc", "tiny_choice/acc_norm": "acc_norm", "tiny_answer/exact_match": "exact_match"}
    assert list(metrics) == [*keys, "tiny_text/word_perplexity"]
    for name, metric in keys.items():
        task = name.partition("/")[0]
        assert metrics[name]["value"] == expected["results"][task][f"{metric},none"]
        assert metrics[name]["stderr"] == expected["results"][task][f"{metric}_stderr,none"]
        assert metrics[name]["values"] == [row[metric] for row in expected["samples"][task]]
        assert metrics[name]["higher_is_better"] is True
    perplexity = metrics["tiny_text/word_perplexity"]
    assert perplexity["value"] == pytest.approx(expected["results"]["tiny_text"]["word_perplexity,none"], rel=1e-4)
    assert perplexity["higher_is_better"] is False and perplexity["values"] is None
    of_choice = found[0]["tasks"]["tiny_choice"]
    assert (of_choice["version"], of_choice["documents"], of_choice["num_fewshot"]) == (3.0, 6, 1)


TEMPLATE = (  # of characters that the tokenizer has
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
SETTINGS = {
    "as the tasks say": {},
    "the first documents": {"limit": 2},
    "two examples": {"num_fewshot": 2},
    "a system instruction": {"system_instruction": "be so"},
    "chat": {"apply_chat_template": True},
    "chat with a system": {"apply_chat_template": True, "system_instruction": "be so", "num_fewshot": 1},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_kind_of_task_however_it_is_asked_finds_what_lm_eval_does(ours, peer, settings):
    names = ["tiny_mean", "tiny_filtered", *([] if "num_fewshot" in settings else ["tiny_answer"])]
    template = TEMPLATE if "apply_chat_template" in settings else None
    turns = {"fewshot_as_multiturn": True} if template else {}
    expected = peer(SPECS[0], names, template, **settings, **turns)
    by_task, samples = ours(SPECS[0], names, template, **settings)
    for leaf, rows in expected["samples"].items():
        assert [row["prompt_hash"] for row in samples[leaf]] == [row["prompt_hash"] for row in rows], leaf
        found, want = answers(samples, leaf), answers(expected["samples"], leaf)
        if leaf in ("tiny_choice", "tiny_likely"):
            pairs = [[pair for row in each for pair in row] for each in (found, want)]
            np.testing.assert_allclose(*([pair[0] for pair in each] for each in pairs), rtol=0, atol=1e-4)
            assert [pair[1] for pair in pairs[0]] == [pair[1] for pair in pairs[1]]
        else:
            assert found == want and any(map(any, want))
    metrics = {name: value for each in by_task.values() for name, value in each["metrics"].items()}
    filtered = ["tiny_filtered/exact_match,last", "tiny_filtered/exact_match,whole"]
    assert list(metrics) == ["tiny_mean/acc", *filtered, *(["tiny_answer/exact_match"] if len(names) == 3 else [])]
    for name, metric in metrics.items():
        task, _, key = name.partition("/")
        key, _, of_filter = key.partition(",")
        of_filter = of_filter or "none"
        assert metric["value"] == expected["results"][task][f"{key},{of_filter}"]
        assert metric["stderr"] == expected["results"][task][f"{key}_stderr,{of_filter}"]
    limit = settings.get("limit")
    about = by_task["tiny_mean"]["tasks"]
    assert {name: one["documents"] for name, one in about.items()} == {
        "tiny_choice": limit or 6,
        "tiny_likely": limit or 4,
    }
    shown = settings.get("num_fewshot")
    assert (about["tiny_choice"]["num_fewshot"], about["tiny_likely"]["num_fewshot"]) == (shown or 1, shown or 0)


def test_a_perplexity_of_answers_has_the_standard_error_of_lm_evals_bootstrap(ours, peer):
    expected = peer(SPECS[0], ["tiny_likely"])["results"]["tiny_likely"]
    found, _ = ours(SPECS[0], ["tiny_likely"])
    perplexity = found["tiny_likely"]["metrics"]["tiny_likely/perplexity"]
    assert perplexity["value"] == pytest.approx(expected["perplexity,none"], rel=1e-4)
    assert perplexity["stderr"] == pytest.approx(expected["perplexity_stderr,none"], rel=1e-4)


@pytest.fixture
def passes(engine):
    """Rows and tokens of every pass that begins; as many rows as `most` says fit into memory, if it is there."""
    seen, most = [], []

    def note(model, arguments, options):
        shape = options.get("input_ids", arguments[0] if arguments else None).shape
        if shape[1] > 1:  # a token that is written follows its prompt
            seen.append(tuple(shape))
        if most and shape[0] > most[0]:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    hook = engine.multi_lora.model.register_forward_pre_hook(note, with_kwargs=True)
    yield seen, most
    hook.remove()


def test_a_pass_that_does_not_fit_is_halved_with_the_same_result(ours, passes):
    def values():
        return {name: one["value"] for each in ours(SPECS[0])[0].values() for name, one in each["metrics"].items()}

    seen, most = passes
    whole = values()
    assert [rows for rows, _ in seen] == [16, 5, 2]  # of 18 choices three differ in their last letter alone
    most.append(2)
    seen.clear()
    assert values() == pytest.approx(whole, rel=1e-4)
    assert {rows for rows, _ in seen} == {16, 8, 4, 2} | {5, 2, 3, 1}


def test_short_texts_are_read_in_more_rows_than_long_ones(ours, passes, monkeypatch):
    monkeypatch.setattr("rlhf_lines.sweep.engines.sampling.MOST_TOKENS", 90)
    ours(SPECS[0], ["tiny_choice"])
    seen, _ = passes
    assert all(rows == 1 or rows * length <= 90 for rows, length in seen)
    assert len({rows for rows, _ in seen}) > 1
    assert [length for _, length in seen] == sorted((length for _, length in seen), reverse=True)

"""A point on the loaded base answers as lm-eval's own model of transformers does on its merged checkpoint."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_lines.evaluation.models import models_of
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

    def find(spec):
        folder = sft
        if any(spec.weights):
            folder = tmp_path / spec.digest()
            merge_policies(sft, policies[:2], spec, save="dense", output_dir=folder)
        model = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
        manager = TaskManager(include_path=tasks, include_defaults=False)
        return lm_eval.simple_evaluate(model, tasks=TASKS, task_manager=manager)

    return find


@pytest.fixture
def engine(run):
    with open_finished(run) as store, models_of(run, store) as opened:
        yield opened


def answers(samples, task) -> list:
    return [row["filtered_resps"] for row in samples[task]]


@pytest.mark.parametrize("spec", SPECS, ids=["LiNeS", "ties", "SFT"])
def test_a_point_answers_as_its_merged_checkpoint_does_in_lm_eval(engine, peer, tasks, monkeypatch, spec):
    from rlhf_lines.evaluation import harness

    asking, evaluate, raw = harness.Asking(), harness.evaluate, {}

    def kept(model, loaded, **settings):
        results = evaluate(model, loaded, **settings)
        raw.update(results["samples"])
        return results

    monkeypatch.setattr(harness, "evaluate", kept)
    expected = peer(spec)
    model = harness.LoadedModel(engine.multi_lora.model, engine.tokenizer)
    loaded = harness.load_tasks(TASKS, asking, tasks)
    with engine.following(spec):
        found = [harness.ask(model, task, loaded[task], asking) for task in TASKS]
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

"""A run of `learn`: its files, its numbers worked out from the store, and what resumes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.data.config import PromptDataConfig
from rlhf_lines.learn import methods
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.learn.counts import specs_of_splits
from rlhf_lines.learn.demonstrations import read_demonstrations
from rlhf_lines.learn.shown import result_text
from rlhf_lines.merge import MergeSpec, merge_policies
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines.local import LocalEngine
from rlhf_lines.sweep.measure import Worker
from rlhf_lines.sweep.store import Store
from tests.sweep.of_a_run import COMPLETIONS, SCORES, read


REWARDS = ["short", "early"]


def means(folder: Path, split: str) -> dict[MergeSpec, np.ndarray]:
    """The mean scores of every spec on a split, from the rows of the store."""
    with Store(folder, reading=True) as store:
        return {point.spec: store.scores(point.spec_id, split, REWARDS).mean(axis=0) for point in store.points(split)}


def spec_of(options: dict, weights=(0.5, 0.5)) -> MergeSpec:
    return MergeSpec("layerwise", weights, options=options)


def test_what_is_learned_is_the_candidate_that_is_worth_most(flags, tmp_path):
    folder = run_stage("learn", flags(tmp_path / "out", preference=[0.7, 0.3], seed=5))
    record, learned = read_record(folder), json.loads((folder / "learned.json").read_text())
    of_split = {split: means(folder, split) for split in ("train", "validation")}
    anchors = [MergeSpec("linear", row) for row in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))]

    def utility(spec: MergeSpec, split: str) -> float:
        ends = np.stack([of_split[split][anchor] for anchor in anchors])
        low, high = ends.min(axis=0), ends.max(axis=0)
        reference = low - 0.1 * (high - low)
        return float((of_split[split][spec] - reference) / (high - reference) @ [0.7, 0.3])

    candidates = [one for one in learned["candidates"] if one["by"] == "evolution"]
    assert len(candidates) == record["candidates"] == 9
    factors = json.loads((folder / "factors.json").read_text())
    assert factors == record["profiles"]["learned"]
    assert record["train"]["learned"]["value"] == max(one["value"] for one in candidates)
    assert record["vector"] == max(candidates, key=lambda one: one["value"])["vector"]
    # The grid has three weights, one of which is the soup's; all that was measured on train prompts is in the store.
    assert len(of_split["train"]) == 3 + 9 + sum(one["by"] == "grid" for one in learned["candidates"]) + 1
    for split in of_split:
        for name, options in record["profiles"].items():
            assert record[split][name]["value"] == pytest.approx(utility(spec_of(options), split), rel=1e-9, abs=1e-12)
    assert record["differences"].keys() == {"lines", "soup"}
    more = record["validation"]["learned"]["value"] - record["validation"]["soup"]["value"]
    assert record["differences"]["soup"]["value"] == pytest.approx(more, rel=1e-9, abs=1e-12)
    text = result_text(record, ["brief", "kind"])
    assert "layer 4" in text and f"{2 * factors['factors'][0][3]:z.2f}" in text.splitlines()[-1]
    counts = {split: len(specs) for split, specs in of_split.items()}
    settings = LearnConfig("sft", ["a", "b"], ["rule:length", "m:f"], "out", num_candidates=9, population=4)
    assert counts == specs_of_splits(settings, 4), "as plan and bar have it"
    splits = {split for _, split, *_ in read(folder, SCORES)}
    assert splits == {"train", "validation"}, "test prompts are not read"


def test_a_killed_run_goes_on_and_finds_the_same(flags, tmp_path, monkeypatch):
    whole = run_stage("learn", flags(tmp_path / "whole", compare_grid="false"))
    calls, complete = [], LocalEngine.complete

    def killed(engine, requests):
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return complete(engine, requests)

    arguments = flags(tmp_path / "out", compare_grid="false")
    with monkeypatch.context() as patched:
        patched.setattr(LocalEngine, "complete", killed)
        with pytest.raises(KeyboardInterrupt):
            run_stage("learn", arguments)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError, match=r"learning into .* was stopped after \d+ completions: add --resume"):
        run_stage("learn", arguments)
    with pytest.raises(ValueError, match=r"had step 0.3, now it is 0.5: give the settings of that run"):
        run_stage("learn", [*arguments, "--step", "0.5", "--resume"])
    resumed = run_stage("learn", [*arguments, "--resume"])
    assert read(resumed, SCORES) == read(whole, SCORES)
    assert [row[:-1] for row in read(resumed, COMPLETIONS)] == [row[:-1] for row in read(whole, COMPLETIONS)]
    assert (resumed / "factors.json").read_bytes() == (whole / "factors.json").read_bytes()
    assert run_stage("learn", [*arguments, "--resume"]) == resumed


def test_a_front_is_worth_its_hypervolume_at_all_weights(flags, tmp_path):
    folder = run_stage("learn", flags(tmp_path / "out", aim="hypervolume", num_weights=3, space="coefficients"))
    record = read_record(folder)
    of_train = means(folder, "train")
    ends = np.stack([of_train[MergeSpec("linear", row)] for row in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))])
    reference = ends.min(axis=0) - 0.1 * np.ptp(ends, axis=0)
    boxes = [
        of_train[spec_of(record["profiles"]["learned"], row)] - reference
        for row in ((1.0, 0.0), (0.5, 0.5), (0.0, 1.0))
    ]
    boxes = sorted((box for box in boxes if (box > 0).all()), key=lambda box: -box[0])
    area, height = 0.0, 0.0
    for width, own in boxes:  # from the widest, each adds what stands above those before it
        area, height = area + width * max(own - height, 0.0), max(own, height)
    assert record["train"]["learned"]["value"] == pytest.approx(area, rel=1e-9, abs=1e-12)
    assert record["differences"] == {} and len(record["vector"]) == 2 * 5


def test_a_limit_of_kl_is_kept_or_said_to_be_too_low(flags, tmp_path):
    free = read_record(run_stage("learn", flags(tmp_path / "free", method="grid", population=None)))
    kls = sorted(one["kl"] for one in json.loads((tmp_path / "free" / "learned.json").read_text())["candidates"])
    limit = (kls[0] + kls[1]) / 2
    kept = run_stage("learn", flags(tmp_path / "kept", method="grid", population=None, max_kl=limit))
    assert read_record(kept)["train"]["learned"]["kl"] == kls[0] and free["method"] == "grid"
    with pytest.raises(ValueError, match="none of the 9 candidates of grid keeps max_kl"):
        run_stage("learn", flags(tmp_path / "none", method="grid", population=None, max_kl=1e-9))


def test_a_limit_that_was_too_low_is_raised_and_nothing_is_measured_again(flags, tmp_path, rewards):
    arguments = flags(tmp_path / "out", max_kl=1e-9, compare_grid="false")
    with pytest.raises(ValueError, match=r"none of the 9 candidates of evolution keeps max_kl 1e-09 .*add --resume"):
        run_stage("learn", arguments)
    rewards.SCORED.clear()
    arguments[arguments.index("--max_kl") + 1] = "50"
    folder = run_stage("learn", [*arguments, "--resume"])
    validation = 4 * (3 + 2)  # the ends, what was learned and the soup
    scored = sum(map(len, rewards.SCORED))
    fresh = run_stage("learn", flags(tmp_path / "fresh", max_kl=50, compare_grid="false"))
    assert (folder / "learned.json").read_bytes() == (fresh / "learned.json").read_bytes()
    assert validation <= scored < sum(map(len, rewards.SCORED)) - scored
    with Store(folder, reading=True) as store:
        assert store.recall("max_kl") == 50


def test_where_no_lines_keeps_a_limit_what_was_learned_stands_alone(flags, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "evolution", lambda search: search.tried([(0.01, 0.01)]))
    free = run_stage("learn", flags(tmp_path / "free", space="policies"))
    tried = json.loads((free / "learned.json").read_text())["candidates"]
    least = {by: min(one["kl"] for one in tried if one["by"] == by) for by in ("evolution", "grid")}
    limit = (least["evolution"] + least["grid"]) / 2
    record = read_record(run_stage("learn", flags(tmp_path / "out", space="policies", max_kl=limit)))
    assert record["profiles"].keys() == {"learned", "soup"} == record["validation"].keys()
    assert record["train"]["learned"]["kl"] == least["evolution"] < limit < least["grid"]
    assert "candidates of grid keeps max_kl" in caplog.text and "there is no LiNeS to compare with" in caplog.text
    assert result_text(record, ["brief", "kind"])


def test_a_limit_that_does_not_hold_on_validation_prompts_is_told(flags, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "evolution", lambda search: search.tried([(0.2, 1.5)]))
    settings = {"space": "policies", "compare_grid": "false", "seed": 5}
    free = read_record(run_stage("learn", flags(tmp_path / "free", **settings)))
    low, high = (free[split]["learned"]["kl"] for split in ("train", "validation"))
    assert low < high, "else this test needs another candidate"
    run_stage("learn", flags(tmp_path / "kept", **settings, max_kl=2 * high))
    assert "validation prompts: more" not in caplog.text
    run_stage("learn", flags(tmp_path / "broken", **settings, max_kl=(low + high) / 2))
    assert f"on train prompts, but has {high:.4g} on validation prompts" in caplog.text


def test_niches_prefer_what_is_less_beyond_a_limit(flags, tmp_path, monkeypatch):
    worth = []
    monkeypatch.setattr(methods, "evolve_niches", lambda evaluate, first, **_: worth.append(evaluate(first)))
    settings = {"method": "natural_niches", "space": "policies", "compare_grid": "false", "max_kl": 1e-9}
    with pytest.raises(ValueError, match="candidates of natural_niches keeps max_kl"):
        run_stage("learn", flags(tmp_path / "out", **settings))
    with Store(tmp_path / ".out.partial", reading=True) as store:
        kls = {point.spec: store.kl(point.spec_id, "train").mean() for point in store.points("train")}
    of_niches = [kl for spec, kl in kls.items() if spec.rule == "layerwise"]
    (found,) = worth
    assert len(found) == len(of_niches) > 2
    for kl, by_prompt in zip(of_niches, found, strict=True):
        assert by_prompt == pytest.approx(1e-6 / (kl / 1e-9))


def test_texts_longer_than_the_model_reads_are_refused(flags, sft, tmp_path):
    positions = json.loads((sft / "config.json").read_text())["max_position_embeddings"]
    (tmp_path / "texts.txt").write_text(f"{'abc ' * positions}\n\nxyz w\n")
    limits = {"control": tmp_path / "texts.txt", "control_tokens": positions + 1, "max_forgetting": 2.0}
    with pytest.raises(ValueError, match=f"control_tokens is {positions + 1}, but the model has {positions} positions"):
        run_stage("learn", flags(tmp_path / "out", **limits))
    assert not list(tmp_path.glob("*out*"))


def test_a_limit_of_forgetting_is_kept_or_said_to_be_too_low(flags, tmp_path):
    (tmp_path / "texts.txt").write_text("abc\n\nxyz w\n\nhello there\n")
    of_grid = {"method": "grid", "population": None, "control": tmp_path / "texts.txt"}
    free = run_stage("learn", flags(tmp_path / "free", **of_grid, max_forgetting=1e6))
    tried = json.loads((free / "learned.json").read_text())["candidates"]
    with Store(free, reading=True) as store:
        tokens, by_spec = (
            store.forgetting_tokens().sum(),
            {spec: store.nll(i).sum() for i, spec in store.specs().items()},
        )
    of_sft = by_spec[MergeSpec("linear", (0.0, 0.0))]
    ratios = {float(np.exp((nats - of_sft) / tokens)) for spec, nats in by_spec.items() if spec.rule == "layerwise"}
    assert all(any(one["forgetting"] == pytest.approx(ratio, rel=1e-9) for ratio in ratios) for one in tried)
    found = sorted(one["forgetting"] for one in tried)
    kept = run_stage("learn", flags(tmp_path / "kept", **of_grid, max_forgetting=(found[0] + found[1]) / 2))
    assert read_record(kept)["train"]["learned"]["forgetting"] == pytest.approx(found[0], rel=1e-9)
    assert found[0] < found[-1] and read_record(free)["train"]["learned"]["forgetting"] is not None
    with pytest.raises(
        ValueError, match=r"none of the 9 candidates of grid keeps max_forgetting 0.1 \(the smallest is"
    ):
        run_stage("learn", flags(tmp_path / "none", **of_grid, max_forgetting=0.1))


ALONG_GRADIENTS = {"population": None, "num_candidates": None, "compare_grid": "false", "step_prompts": 5}


@pytest.fixture
def dense(sft, policies, tmp_path):
    """A function from weights, or factors, to the merge of two policies as a model, and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load(spec: MergeSpec):
        folder = tmp_path / spec.digest()
        if not folder.exists():
            merge_policies(sft, policies[:2], spec, save="dense", output_dir=folder)
        return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(sft)

    return load


def logits_of(model, token_ids) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(token_ids)])).logits[0].double()


def test_adamerging_lowers_the_entropy_of_prompts_from_that_of_the_soup(flags, dense, tmp_path):
    settings = {"method": "adamerging", "space": "coefficients", "num_steps": 6, "learning_rate": 0.1}
    folder = run_stage("learn", flags(tmp_path / "out", **settings, **ALONG_GRADIENTS))
    record, learned = read_record(folder), json.loads((folder / "learned.json").read_text())
    model, tokenizer = dense(MergeSpec("linear", (0.5, 0.5)))
    with Store(folder, reading=True) as store:
        prompts = [prompt.text for prompt in store.prompts("train").values()]
    entropies = [
        torch.distributions.Categorical(logits=logits_of(model, tokenizer(text)["input_ids"])).entropy().mean()
        for text in prompts
    ]
    assert len(prompts) == 5 and learned["losses"][0] == pytest.approx(float(np.mean(entropies)), rel=1e-5)
    assert learned["losses"] == sorted(learned["losses"], reverse=True)
    (candidate,) = learned["candidates"]
    assert candidate["vector"] == record["vector"] and len(record["vector"]) == 2 * 5
    assert all(0 <= number <= 2 for number in record["vector"]) and record["candidates"] == 1


@pytest.mark.parametrize(("method", "space"), [("atlas", "profile"), ("frank_wolfe", "policies")])
def test_demonstrations_become_likely(flags, dense, demonstrations, tmp_path, method, space):
    settings = {"method": method, "space": space, "num_steps": 4, "dataset_name": demonstrations, "test_size": 10}
    rate = {"learning_rate": 0.05} if method == "atlas" else {}
    folder = run_stage("learn", flags(tmp_path / "out", **settings, **rate, **ALONG_GRADIENTS))
    losses = json.loads((folder / "learned.json").read_text())["losses"]
    model, tokenizer = dense(MergeSpec("linear", (0.5, 0.5)))
    nats, count = 0.0, 0
    rows = [json.loads(line) for line in demonstrations.read_text().splitlines()]
    trained = read_demonstrations(PromptDataConfig(str(demonstrations), test_size=10), 5, 3, tokenizer)
    for before, after in trained:
        text = tokenizer.decode([*before, *after], skip_special_tokens=True)
        assert any((row["prompt"] + row["completion"]).startswith(text) for row in rows) and len(after) == 3
        logprobs = logits_of(model, before + after).log_softmax(-1)
        nats -= sum(logprobs[len(before) + i - 1, token].item() for i, token in enumerate(after))
        count += len(after)
    assert losses[0] == pytest.approx(nats / count, rel=1e-5)
    assert method == "frank_wolfe" or losses == sorted(losses, reverse=True)
    vector = read_record(folder)["vector"]
    assert method == "atlas" or sum(vector) == pytest.approx(2)


def test_a_step_of_the_reward_gradient_makes_good_completions_likelier(flags, dense, tmp_path, monkeypatch):
    seen, call = [], Worker.__call__

    def watched(worker, job):
        rows = call(worker, job)
        seen.append((job, rows))
        return rows

    monkeypatch.setattr(Worker, "__call__", watched)
    settings = {"method": "reward_gradient", "space": "policies", "num_steps": 1, "learning_rate": 1e-3}
    more = {"kl_coef": 0.2, "samples_per_prompt": 2, "batch_size": 3, **ALONG_GRADIENTS}
    folder = run_stage("learn", flags(tmp_path / "out", **settings, **more))
    record, learned = read_record(folder), json.loads((folder / "learned.json").read_text())
    of_step = [(job, rows) for job, rows in seen if job[0].request.spec.rule == "layerwise"][:4]
    assert [len(job) for job, _ in of_step] == [3, 3, 3, 1], "in batches of the size that is given"
    tasks, rows = ([one for batch in batches for one in batch] for batches in zip(*of_step, strict=True))
    assert len(rows) == 5 * 2

    of_train = means(folder, "train")
    ends = np.stack([of_train[MergeSpec("linear", row)] for row in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))])
    low, high = ends.min(axis=0), ends.max(axis=0)
    reference = low - 0.1 * (high - low)
    scores = np.array([[row.scores[name] for name in REWARDS] for row in rows])
    rewards = ((scores - reference) / (high - reference)).mean(axis=1) - 0.2 * np.array([row.kl for row in rows])
    assert learned["losses"] == [pytest.approx(-rewards.mean(), rel=1e-9)]
    pairs = rewards.reshape(5, 2)
    better = (pairs - pairs[:, ::-1]).ravel()  # of two samples the other one is the baseline

    def likelihood(spec: MergeSpec) -> float:
        model, _ = dense(spec)
        total = 0.0
        for task, row, advantage in zip(tasks, rows, better, strict=True):
            before = task.request.prompt_ids
            logprobs = logits_of(model, before + row.token_ids).log_softmax(-1)
            found = sum(logprobs[len(before) + i - 1, token].item() for i, token in enumerate(row.token_ids))
            total += advantage * found
        return total

    np.testing.assert_allclose(np.abs(np.array(record["vector"]) - 1), 1e-3, rtol=1e-3)  # Adam's first step
    assert likelihood(spec_of(record["profiles"]["learned"])) > likelihood(MergeSpec("linear", (0.5, 0.5)))


def test_natural_niches_measure_so_many_candidates(flags, tmp_path):
    settings = {"method": "natural_niches", "population": 5, "num_candidates": 10, "compare_grid": "false"}
    folder = run_stage("learn", flags(tmp_path / "out", **settings))
    candidates = json.loads((folder / "learned.json").read_text())["candidates"]
    assert len(candidates) == 10
    # The soup, the two policies alone, then draws around the soup.
    assert candidates[0]["vector"] == [1.0, 0.0, 0.0] * 2
    assert [one["vector"] for one in candidates[1:3]] == [[2.0, 0, 0, 0, 0, 0], [0, 0, 0, 2.0, 0, 0]]
    assert read_record(folder)["train"]["learned"]["value"] == max(one["value"] for one in candidates)


def test_the_command_tells_what_was_found_and_a_merge_takes_the_file(flags, sft, policies, tmp_path, capsys):
    assert cli.main(["learn", *flags(tmp_path / "out", num_candidates=5)]) == 0
    told = capsys.readouterr().out
    assert "utility of 5 candidates on 5 train prompts, best: learned " in told
    assert "learned - lines: " in told and "embeddings, head" in told
    (command,) = (line for line in told.splitlines() if line.startswith("rlhf-lines merge"))
    record = read_record(tmp_path / "out")
    del record["rule"]  # as an earlier version wrote it
    (tmp_path / "out" / "rlhf_lines.json").write_text(json.dumps(record))
    assert cli.main(["learn", *flags(tmp_path / "out", num_candidates=5), "--resume"]) == 0
    assert command in capsys.readouterr().out
    *arguments, output_dir = shlex.split(command)[1:]
    assert output_dir == "merged" and str(sft) in arguments and str(policies[1]) in arguments
    assert cli.main([*arguments, str(tmp_path / "merged")]) == 0
    record = json.loads((tmp_path / "merged" / "merge_spec.json").read_text())
    assert record["spec"]["options"] == json.loads((tmp_path / "out" / "factors.json").read_text())

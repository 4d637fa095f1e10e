"""The plan of a sweep: what is counted, by hand, and how many rows a batch has that is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from rlhf_lines.plan import Options, plan
from rlhf_lines.plan import sweeping as of_sweep
from rlhf_lines.plan.trial import Trial
from rlhf_lines.sweep.engines import batches as of_batches
from tests import tiny


WIDTHS = 2 * ((16 + 16) + (16 + 8))  # two layers, in + out of q_proj and v_proj
ROWS = 8  # prompts; they count as 11 tokens


@pytest.fixture
def policies(folder, llama):
    """Two policies of ranks 2 and 3 and a MORLHF run, as files."""
    from transformers import AutoModelForCausalLM

    for name, rank in (("a", 2), ("b", 3), ("both", 1)):
        model = AutoModelForCausalLM.from_config(llama)
        tiny.save_adapter(model, folder / name, seed=rank, r=rank, target_modules=["q_proj", "v_proj"])
    return ["a", "b"]


@pytest.fixture
def planned(policies):
    """A function from changes of a small config to its plan."""

    def make(options: Options | None = None, **changes):
        content = {
            "sft_model": "sft",
            "policies": policies,
            "rewards": ["string:capwords", "rule:length"],
            "output_dir": "out",
            "dataset_name": "data",
            "num_weights": 5,
            "alphas": [0.5, 1.0],
            "betas": [0.5, 1.0, 1.5],
            "validation_weights": 3,
            "validation_prompts": 6,
            "test_prompts": 8,
            "max_new_tokens": 7,
            "batch_size": 16,
            **changes,
        }
        with Path("sweep.yaml").open("w") as file:
            yaml.safe_dump(content, file)
        return plan(["--config", "sweep.yaml"], options or Options())

    return make


def work(result) -> dict[str, str]:
    return dict(result.work)


def test_a_grid_by_hand(planned):
    result = planned()
    # 6 scalings of LiNeS and of either control, and up to 6 more of each, at 3 weights; the SFT model and the policies.
    # The SFT model, and soup, LiNeS and its two controls at 5 weights.
    completions = (3 * 12 * 3 + 3) * 6 + (1 + 4 * 5) * 8
    points = "57 on validation prompts (and up to 54 beyond the edge), 21 on test prompts"
    assert work(result)["points"] == points
    assert work(result)["completions to generate"] == f"at most {completions}"
    assert work(result)["tokens to generate"] == f"at most {completions * 7:,}"
    assert work(result)["batches"] == f"{-(-completions // 16)} of 16"
    assert result.disk == {"run store": completions * of_sweep.BYTES_PER_COMPLETION} and result.notes == []
    assert [phase.name for phase in result.phases] == ["generation", "reference", "scoring"]
    for phase in result.phases:
        assert phase.parts["adapters"] == (2 + 3) * WIDTHS * 4
    sets = [{"name": name, "policies": ["both", "a"]} for name in ("slow", "frozen")]
    assert planned(policy_sets=sets).phases[0].parts["adapters"] == (2 + 3 + 1) * WIDTHS * 4  # each of them once
    # Logits of 16 rows of 7 tokens and the one before, in float32 and three copies.
    assert result.phases[1].parts["logits"] == 16 * 8 * 64 * (4 + 12)
    # Keys and values of 2 layers, 2 heads of 4 numbers, 16 rows of 11 + 7 tokens.
    assert result.phases[0].parts["KV cache"] == 2 * 2 * 2 * 4 * 16 * (11 + 7) * 4


@pytest.mark.parametrize(
    ("changes", "validation", "test"),
    [
        ({"controls": False}, 6 * 3 + 3, 1 + 2 * 5),
        ({"alphas": ["auto"], "betas": [1.0]}, 0, 21),
        ({"scalings": ["1 0.5", "auto 1 sqrt"]}, 3 * 2 * 3 + 3, 21),
        ({"schedules": ["linear", "sqrt"]}, 3 * 12 * 3 + 3, 21),
        ({"scaled_alphas": [1, 2]}, (6 + 2 + 6) * 3 + 3, 21),
        ({"betas": [0.0, 1.0, 1.5]}, (6 + 6 + 4) * 3 + 3, 21),  # with beta 0 nothing is upside down
        ({"betas": [0.0, 1.0], "schedules": ["linear", "sqrt"]}, (6 + 6 + 4) * 3 + 3, 21),
        ({"betas": [0.0, 1.0, 1.5], "scaled_alphas": [0.5, 2]}, (6 + 1 + 4) * 3 + 3, 21),
        ({"scalings": ["1 1"], "max_kl": 5.0}, 3 * 3 + 3, 21),
        ({"scalings": ["1 1"], "minimum": {"length": -9}}, 3 * 3 + 3, 21),
        ({"morlhf": ["both"]}, 57, 22),
        ({"wise_ft": True}, 57, 21 + 2 * 5),
        ({"policies": ["a"]}, 3 * 6 + 2, 1 + 4 + 5),
        ({"sampler": "list", "weights": ["0.3 0.7"]}, 57, 1 + 4 * 3),  # and the single policies
        ({"sampler": "dirichlet"}, 57, 1 + 4 * (2 + 5)),
        ({"sampler": "map", "map_points": 2}, 57, 1 + 4 * (5 + 2)),
        ({"sampler": "search", "search_points": 30}, 57 + 30, 1 + 5 * 5),
        ({"sampler": "search", "scalings": ["1 1"], "search_points": 30}, 3 * 3 + 3 + 30, 1 + 5 * 5),
        ({"groups": [{"name": "sum", "rule": "sum"}]}, 57 + 6 * 3, 1 + 5 * 5),  # as many as scaled
        ({"groups": [{"name": "sum", "rule": "sum"}], "scaled_alphas": [1, 2]}, 3 * (6 + 2 + 6 + 2) + 3, 1 + 5 * 5),
        ({"groups": [{"name": "sum", "rule": "sum", "alpha": 1}]}, 57, 1 + 5 * 5),
        ({"groups": [{"name": "sum", "rule": "sum", "alphas": [1, 2]}]}, 57 + 2 * 3, 1 + 5 * 5),
        ({"policy_sets": [{"name": "slow", "policies": ["both", "a"]}]}, 57 + 6 * 3, 1 + 5 * 5),
        ({"policy_sets": [{"name": "slow", "policies": ["both", "a"], "alphas": [1, 2]}]}, 57 + 2 * 3, 1 + 5 * 5),
        ({"policy_sets": [{"name": "slow", "policies": ["both", "a"], "alpha": 1}]}, 57, 1 + 5 * 5),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_points_and_completions_of_every_choice(planned, changes, validation, test):
    result = planned(samples_per_prompt=2, edge_extensions=0, **changes)
    text = f"{validation:,} on" if validation else "none on validation prompts (one scaling),"
    assert work(result)["points"].startswith(text)
    assert work(result)["points"].endswith(f"{test} on test prompts")
    assert work(result)["completions to generate"] == f"at most {2 * (validation * 6 + test * 8):,}"
    assert "points merged one by one" not in work(result)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"minimum": {"lenght": -9}},
            "minimum: unknown reward 'lenght'; known: capwords, length; did you mean 'length'?",
        ),
        ({"objectives": ["lenght"]}, "objectives: unknown reward 'lenght'; known: capwords, length; did you mean"),
    ],
)
def test_names_that_no_reward_has_are_refused(planned, changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        planned(**changes)


def test_the_plan_counts_what_the_sweep_makes(planned):
    """Of sampler map, whose weights are those of a design; the soup of three policies has six numbers."""
    from rlhf_lines.pareto.surrogate import design

    result = planned(policies=["a", "b", "a"], sampler="map", num_weights=9, controls=False, scalings=["1 1"])
    assert work(result)["points"].endswith(f"{1 + 2 * (len(design(3, 9)) + 4)} on test prompts")


def test_it_tells_what_has_no_effect(planned):
    assert not any("no effect" in note for note in planned().notes)
    notes = planned(sampler="list", weights=["0.3 0.7"], scalings=["1 1"], controls=False).notes
    assert [note.partition(" has")[0] for note in notes if "no effect" in note] == [
        "num_weights 5",
        "validation_weights and validation_prompts have no effect: no group",
    ]


def test_control_texts_are_read_by_every_spec_of_the_test_prompts(planned):
    result = planned(control="data", control_texts=10, control_tokens=20)
    assert work(result)["control texts to read"] == f"at most {21 * 10}, {21 * 10 * 20:,} tokens"
    plain = planned()
    extra = 210 * of_sweep.BYTES_PER_NLL
    assert result.disk["run store"] == plain.disk["run store"] + extra
    (phase,) = [phase for phase in result.phases if phase.name == "control texts"]
    # 256 texts at a time: 20 tokens each, of a vocabulary of 64, in float32 and three copies of it.
    assert phase.parts["logits"] == 256 * 20 * 64 * (4 + 12)


def test_completions_of_a_prompt_are_read_together_even_where_few_logits_fit(planned, monkeypatch):
    monkeypatch.setattr("rlhf_lines.sweep.engines.sampling.LOGITS_ON_CPU", 64)
    assert planned().phases[1].parts["logits"] == 16 * 7 * 64 * (4 + 12)  # 8 rows of 8 are fewer
    assert planned(batch_size=500).phases[1].parts["logits"] == 1024 * 64 * (4 + 12)


def test_rules_that_are_not_linear_take_weights_of_their_own(planned):
    ties = {"name": "ties", "rule": "ties"}
    result = planned(groups=[{**ties, "alpha": 1}], dtype="bfloat16", morlhf=["both"])
    assert work(result)["points merged one by one"] == "5: their rules are not linear"
    chosen = work(planned(groups=[ties]))["points merged one by one"]  # 6 factors, and 6 beyond the edge
    assert chosen == f"{5 + (6 + 6) * 3}: their rules are not linear"
    assert work(planned(groups=[ties], scalings=["1 1"]))["points merged one by one"].startswith("5:")
    changed = 2 * (16 * 16 + 16 * 8) * 2  # q_proj and v_proj of two layers, bfloat16
    for phase in result.phases:
        assert phase.parts["merged weights of one spec"] == changed
        assert phase.parts["adapters"] == (2 + 3 + 1) * WIDTHS * 2  # in the dtype of the model


def test_a_quantised_base_takes_less(planned):
    def weights(**changes):
        return planned(dtype="bfloat16", **changes).phases[0].parts["weights"]

    assert weights() > weights(load_in_8bit=True) > weights(load_in_4bit=True)


def test_a_plan_is_for_this_machine_unless_the_sweep_could_not_run_here(planned, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: True)  # whose kernel takes no width of 16
    half = {"dtype": "bfloat16"}
    assert planned(**half).device == planned(**half, load_in_8bit=True).device == "cpu"
    assert planned(**half, load_in_4bit=True).device == planned(**half, engine="vllm").device == "cuda"
    assert planned(Options(device="cuda"), **half).device == "cuda"


def test_vllm_in_float32_is_planned_for_a_cpu_alone(planned, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert planned(engine="vllm").device == "cpu"
    told = "dtype is float32, but on a GPU vLLM takes adapters in 16 bits only: give dtype: bfloat16"
    with pytest.raises(ValueError, match=told):
        planned(Options(device="cuda"), engine="vllm")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ValueError, match=told):
        planned(engine="vllm")


def test_no_more_is_counted_than_the_data_has(planned):
    """8 prompts in either split, of which the test split has one twice; the texts of control are among 8."""
    path = Path("data/test.jsonl")
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    rows = "".join(json.dumps({"text": f"a {word}"}) + "\n" for word in "bcd")
    Path("texts.jsonl").write_text(rows)
    tiny.word_tokenizer().save_pretrained("sft")
    result = planned(
        validation_prompts=500, test_prompts=1200, edge_extensions=0, scalings=["1 1", "1 2"], control="texts.jsonl"
    )
    # 2 scalings of LiNeS and of either control at 3 weights, the SFT model and the policies; 21 points as by hand.
    assert work(result)["completions to generate"] == f"at most {(3 * 2 * 3 + 3) * 8 + 21 * 8}"
    assert "data has 8 different validation prompts, not 500" in result.notes
    assert "data has 8 different test prompts, not 1,200" in result.notes
    assert work(result)["control texts to read"].startswith(f"at most {21 * 3},")


def test_a_single_prompt_is_refused_as_the_sweep_refuses_it(planned):
    path = Path("data/test.jsonl")
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(
        ValueError, match=r"1 prompt in its test split, expected at least 2.* or hold out more of them \(test_size\)$"
    ):
        planned()


def test_vllm_writes_every_spec_as_an_adapter_of_the_policies_that_it_mixes(planned):
    """Of ranks 2 and 3: 3 weights or 5, at their ends one policy alone."""
    result = planned(engine="vllm", dtype="bfloat16")
    ranks = 3 * 12 * (2 + 5 + 3) + 4 * (2 + 3 * 5 + 3)
    assert result.disk["adapters for vLLM"] == ranks * WIDTHS * 2
    for changes, further in (
        ({"morlhf": ["both"]}, 1),
        ({"wise_ft": True}, 3 * (2 + 3)),  # three of five weights: neither the SFT model nor a policy as it is
        ({"policy_sets": [{"name": "slow", "policies": ["both", "a"], "alpha": 1}]}, 1 + 3 * (1 + 2) + 2),
        ({"sampler": "map", "map_points": 2}, 4 * 2 * 5),
        ({"sampler": "search", "search_points": 30}, 30 * 5),
    ):
        assert planned(engine="vllm", dtype="bfloat16", **changes).disk["adapters for vLLM"] == (
            (ranks + further) * WIDTHS * 2
        )
    assert any("engine vllm: what vLLM holds is its own to plan" in note for note in result.notes)


# --- a batch size that is left out ---


def test_rows_are_those_of_the_sweep_for_the_memory_that_is_free(planned, monkeypatch):
    held = sum(value for name, value in planned().phases[0].parts.items() if name not in ("KV cache", "activations"))
    row = 2 * 2 * 2 * 4 * (11 + 7) * 4 + 32 * 64  # cache of a row, and what a token is drawn from
    monkeypatch.setattr(of_sweep, "free_bytes", lambda device: held + 100 * row)
    result = planned(Options(device="cpu"), batch_size=None)
    assert work(result)["batches"].endswith(" of 60")  # six tenths of what is free
    assert "60 rows of the longest prompt" in result.notes[0]
    monkeypatch.setattr(of_sweep, "free_bytes", lambda device: 2**50)
    result = planned(Options(device="cpu"), batch_size=None)
    assert work(result)["batches"].endswith(" of 768")
    assert result.notes[0].endswith("GiB beside the models, and at most 768 for a model of this size")
    monkeypatch.setattr(of_batches, "WORK_ON_CPU", 12 * 2 * 16**2 * 300)  # 2 layers of width 16
    assert work(planned(Options(device="cpu"), batch_size=None))["batches"].endswith(" of 300")
    monkeypatch.setattr(of_sweep, "free_bytes", lambda device: 0)
    assert work(planned(Options(device="cpu"), batch_size=None))["batches"].endswith(" of 1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
def test_without_a_gpu_one_of_80_gigabytes_is_planned_for(planned, monkeypatch):
    result = planned(Options(device="cuda"), batch_size=None)
    assert work(result)["batches"].endswith(" of 1,024")  # the most that a sweep takes
    assert "by the memory of a GPU of 80 GB (none is here)" in result.notes[0]
    held = sum(value for name, value in planned().phases[0].parts.items() if name not in ("KV cache", "activations"))
    row = 2 * 2 * 2 * 4 * (11 + 7) * 4 + 32 * 64
    monkeypatch.setattr(of_sweep, "USUAL_GPU", held + 50 * row)
    assert work(planned(Options(device="cuda"), batch_size=None))["batches"].endswith(" of 30")


def test_a_dense_policy_is_refused(planned, policies):
    Path("dense").mkdir()
    Path("dense/config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match="policy dense is a dense checkpoint, and a sweep mixes adapters"):
        planned(morlhf=["dense"])


# --- time ---


def test_the_time_of_a_sweep_by_hand(planned, monkeypatch):
    """On a machine on which every token of a pass takes a second, and a step of sampling 10 s and 1 s a row."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Trial, "seconds", lambda self, prepare: 10.0 + prepare.keywords["tokens"].rows)
    monkeypatch.setattr(Trial, "seconds_of", lambda self, prepare, tokens, through_layers=True: float(tokens.count))
    tiny.word_tokenizer().save_pretrained("sft")
    Path("texts.jsonl").write_text("".join(json.dumps({"text": f"a b {word}"}) + "\n" for word in "bcd"))
    choice = {"scalings": ["1 1"], "max_new_tokens": 2, "control": "texts.jsonl", "control_texts": 2}
    result = planned(Options(timed=True), batch_size=12, **choice)
    completions = 21 * 8  # of prompts that are one unknown word; completions, one word and the end
    assert result.seconds == {
        "sampling": completions * 1 + completions / 12 * (2 * 10 + 12 * 2),
        "reference": 8 * (1 + 21 * 2) + completions * 2,
        "scores": 0.0,
        "control texts": 21 * 2 * 3 * 2,
    }
    assert result.untimed == ["starting and loading", "reward capwords", "reward length"]
    assert "time: as if completions were those of the data, 2 tokens in the mean" in result.notes
    ties = [{"name": "ties", "rule": "ties", "alpha": 1}]
    assert "merging 5 points one by one" in planned(Options(timed=True), groups=ties, **choice).untimed
    assert planned(Options(timed=True, device="cuda"), **choice).seconds == {}
    assert planned(Options(timed=True, device="cpu"), engine="vllm").untimed == ["vLLM has kernels of its own"]


def test_every_part_of_a_sweep_is_tried_on_this_machine(planned, llama):
    llama.num_labels = 1
    llama.save_pretrained("judge")
    seconds = planned(Options(timed=True, device="cpu"), dtype="bfloat16", rewards=["./judge"]).seconds
    assert list(seconds) == ["sampling", "reference", "scores"] and all(value > 0 for value in seconds.values())

"""Plans of whole configs: every shipped one, numbers by hand, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from rlhf_lines import cli
from rlhf_lines.plan import Options, plan, plan_table
from rlhf_lines.plan.memory import peak
from rlhf_lines.plan.trial import Trial, updating
from tests import tiny


CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "accelerate")


def unlike(paths: list[Path]) -> list[Path]:
    """Those whose settings differ from those before by more than a folder or the names of rewards: a plan takes 5 s."""
    found = {}
    for path in paths:
        config = yaml.safe_load(path.read_text())
        kept = {key: len(value) if key == "rewards" else value for key, value in config.items() if key != "output_dir"}
        found.setdefault(json.dumps(kept, sort_keys=True), path)
    return list(found.values())


PAGE = (CONFIGS.parent / "docs" / "models.md").read_text(encoding="utf-8")
PEAKS = dict(re.findall(r"^\| `(\w+/\w+\.yaml)` \| ([\d.]+) \|", PAGE, re.MULTILINE))  # GiB, by config of 7B
STAGE_OF = {"base": "sft", **{name: name for name in ("sft", "reward", "sweep", "merge", "learn")}}


def planned(path: str, *flags: str, **options):
    return plan(["--config", path, *flags], Options(**options))


def refused(capsys, *arguments: str) -> str:
    """See that the command refuses with one sentence, and return it."""
    capsys.readouterr()
    assert cli.main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rlhf-lines plan: ") and "Traceback" not in err
    return err


# --- the configs that come with the project ---


def test_the_shipped_configs_are_found():
    assert len(FILES) >= 10


def test_the_page_of_models_tells_of_configs_that_are_planned_here():
    planned_here = {f"{path.parent.name}/{path.name}" for path in unlike(FILES)}
    assert len(PEAKS) == 6 and PEAKS.keys() <= planned_here


@pytest.mark.parametrize("path", unlike(FILES), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_config_has_a_plan_offline(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where nothing of it has been made
    of_7b = path.parts[-3] == "llama2_7b"
    result = planned(str(path), device="cuda" if of_7b else None)
    assert result.stage == STAGE_OF.get(path.stem.split("_")[0], "ppo")
    assert peak(result.phases).total > 0 and sum(result.disk.values()) > 0
    if of_7b:
        told = PEAKS.get(f"{path.parent.name}/{path.name}")
        assert told is None or f"{peak(result.phases).total / 2**30:.2f}" == told
        assert result.parameters == 6_738_415_616
        assert 12 < peak(result.phases).total / 2**30 < 141  # more than its weights; less than the largest GPU
    assert list(tmp_path.iterdir()) == []


# --- numbers ---


def test_a_ppo_plan_by_hand(write_config):
    result = planned(write_config())
    lora = 2 * 4 * (2 * 32 + 2 * 24 + 3 * 40)  # as in test_shapes
    assert result.parameters == 2 * 64 * 16 + 16 + 2 * (2 * 256 + 2 * 128 + 3 * 384 + 2 * 16)
    assert result.trainable == lora + 17  # the value head: 16 weights and a bias
    update = next(phase for phase in result.phases if phase.name == "update").parts
    assert update["adapters"] == update["gradients"] == 4 * (lora + 17)
    assert update["optimizer"] == 8 * (lora + 17)
    assert update["weights"] == 4 * result.parameters + 2 * 2 * 4  # and rotary frequencies, twice
    generation = next(phase for phase in result.phases if phase.name == "generation").parts
    # A prompt of 41 characters counts as 11 tokens; 5 are added; 4 rows; keys and values of 2 layers, 2 heads of 4.
    assert generation["KV cache"] == 2 * 2 * 2 * 4 * (11 + 5) * 4 * 4
    work = dict(result.work)
    assert work["updates"] == "6" and work["updates of one rollout"] == "2"
    assert work["rollouts"] == "3 of 4 completions"
    assert work["tokens to generate"] == "at most 60"  # 3 rollouts x 4 completions x 5 tokens
    assert result.disk["adapter"] == 4 * (lora + 17)


def test_epochs_are_counted_where_the_data_is_here(write_config):
    work = dict(planned(write_config(max_steps=None, num_train_epochs=3)).work)
    assert work["updates"] == str(3 * (8 // 4) * 2)  # epochs x rollouts of 4 of 8 prompts x updates of a rollout
    assert work["prompts"] == "8"


def test_a_larger_batch_and_kept_activations_take_more(write_config):
    def update(**changes):
        return planned(write_config(**changes)).phases[-1].total

    small = update(gradient_checkpointing=True)
    assert small < update() < update(per_device_train_batch_size=4)


def test_a_quantised_base_takes_less(write_config):
    def weights(**changes):
        return planned(write_config(dtype="bfloat16", **changes)).phases[0].parts["weights"]

    assert weights() > weights(load_in_8bit=True) > weights(load_in_4bit=True)


def test_a_plan_is_for_this_machine_unless_the_stage_could_not_run_here(write_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("bitsandbytes.functional.has_avx512bf16", lambda: True)  # whose kernel takes no width of 16
    quantised = {"dtype": "bfloat16", "load_in_8bit": True}

    def device(**changes):
        return planned(write_config(**changes)).device

    assert device() == device(bf16=True) == device(**quantised) == "cpu"
    assert device(dtype="bfloat16", load_in_4bit=True) == "cuda"
    assert planned(write_config(**quantised), device="cuda").device == "cuda"


def test_rewards_are_normalised_on_no_more_prompts_than_there_are(write_config):
    rewards = [{"model": "string:capwords", "normalize": True}]
    assert dict(planned(write_config(rewards=rewards)).work)["completions to normalise rewards on"].startswith("8, ")
    few = dict(planned(write_config(rewards=rewards, normalization_samples=3)).work)
    assert few["completions to normalise rewards on"] == "3, at most 15 tokens"


def test_the_checkpoints_that_lie_there_at_a_time_are_counted(write_config):
    saving = {"save_strategy": "steps", "save_steps": 2}
    result = planned(write_config(**saving))
    adapter = result.disk["adapter"]
    assert result.disk["checkpoints, 3 at a time"] == 3 * (adapter + 2 * adapter)  # Adam's moments
    limited = planned(write_config(**saving, save_total_limit=2))
    assert limited.disk["checkpoints, 2 at a time"] == 2 * 3 * adapter
    beyond = planned(write_config(**saving | {"save_steps": 8}))  # than the 6 updates: the adapter at the end is saved
    assert dict(beyond.work)["updates"] == "6"
    assert beyond.disk["checkpoints, 0 at a time"] == 0 and beyond.disk["adapter"] == adapter


def test_sft_reward_merge_and_sweep(folder, write_config):
    common = {"rewards": None, "num_iterations": None, "max_completion_length": None}
    sft = planned(write_config("sft.yaml", **common, output_dir="theta"))
    hub = planned(write_config("hub.yaml", **common, dataset_name="tldr", max_length=77), stage="sft")
    assert dict(hub.work)["tokens of the longest sequence"] == "77 (max_length)"  # nothing else is known
    assert sft.stage == "sft" and sft.disk["merged model"] == 4 * sft.parameters
    assert dict(sft.work)["rows"] == "8"
    pairs = [{"prompt": "p", "chosen": "c" * 8, "rejected": "r" * 4}] * 5
    (folder / "pairs").mkdir()
    for split in ("train", "validation", "test"):
        rows = "".join(json.dumps({**row, "prompt": split[1]}) + "\n" for row in pairs)
        (folder / "pairs" / f"{split}.jsonl").write_text(rows)
    reward = planned(write_config("reward.yaml", **common, dataset_name="pairs", use_peft=False, output_dir="judge"))
    assert reward.stage == "reward" and reward.trainable == reward.parameters
    assert dict(reward.work)["tokens of the longest sequence"].startswith("3 ")  # 9 characters
    write_config("ppo.yaml", output_dir="policies/a")
    (folder / "merge.yaml").write_text(
        yaml.safe_dump(
            {
                "sft_model": "theta",
                "policies": ["policies/a", "policies/a"],
                "weights": [0.5, 0.5],
                "save": "adapter",
                "output_dir": "merged",
            }
        )
    )
    merge = planned("merge.yaml")
    lora = 2 * 4 * (2 * 32 + 2 * 24 + 3 * 40)
    assert (merge.stage, merge.disk["merged adapter"]) == ("merge", 2 * lora * 4)
    assert planned("merge.yaml", "--save", "dense").disk["merged model"] == 4 * sft.parameters
    write_config("ppo.yaml", output_dir="policies/a", frozen_layers=1)  # of two
    assert planned("merge.yaml").disk["merged adapter"] == lora * 4


def test_an_adapter_is_measured_by_the_header_of_its_file(folder, write_config):
    import torch

    (folder / "a").mkdir()
    save_file({"x.lora_A.weight": torch.zeros(3, 5)}, folder / "a" / "adapter_model.safetensors")
    config = {"sft_model": "sft", "policies": ["a"], "weights": [1.0], "save": "adapter", "output_dir": "merged"}
    (folder / "merge.yaml").write_text(yaml.safe_dump(config))
    assert planned("merge.yaml").disk["merged adapter"] == 15 * 4


# --- the command ---


def test_the_command_prints_the_table_and_writes_nothing(folder, write_config, capsys):
    path = write_config()
    before = sorted(folder.rglob("*"))
    assert cli.main(["plan", "--config", path, "--per_device_train_batch_size", "1"]) == 0
    out = capsys.readouterr().out
    words = ("stage ppo", "KV cache", "optimizer", "peak: ", "to be written", "sft/config.json")
    assert all(word in out for word in words)
    assert sorted(folder.rglob("*")) == before


def test_help_needs_no_torch(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["plan", "--help"])
    assert stopped.value.code == 0 and "--base_model" in capsys.readouterr().out


def test_plans_of_what_trains_nothing_do_not_wait_for_the_libraries_of_training():
    """Their import takes seconds, and on a busy machine many."""
    heavy = ("peft", "trl", "transformers.training_args", "rlhf_lines.train.settings", "matplotlib")
    modules = ("plan.learning", "plan.sweeping", "plan.merging", "plan.basis", "plan.stage")
    imports = ", ".join(f"rlhf_lines.{module}" for module in modules)
    code = f"import sys, {imports}; print(*(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_table_adds_up(write_config):
    result = planned(write_config())
    table = plan_table(result)
    assert f"during {max(result.phases, key=lambda p: sum(p.parts.values())).name}" in table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_name_or_path": "outputs/none"}, ["the shape of model outputs/none is not known", "--base_model"]),
        ({"model_name_or_path": "nobody/nothing"}, ["the Hub does not have it or cannot be reached"]),
        ({"per_device_train_batch_size": 16}, ["train_dataset has 8 prompts, but one rollout takes 32"]),
        ({"save_strategy": "steps", "save_steps": 3}, ["save_steps", "3", "multiple"]),
        ({"generation_batch_size": 3}, ["3", "divisible"]),
        ({"lora_target_modules": ["c_attn"]}, ["c_attn", "do not fit a llama model", "q_proj"]),
        ({"rewards": ["./nowhere"]}, ["nowhere"]),
        ({"rewards": ["outputs/a/b"]}, ["reward model outputs/a/b does not exist"]),
        ({"rewards": ["no.such:function"]}, ["no.such"]),
        ({"output_dir": ".", "overwrite": True}, ["output_dir", "has no name of its own"]),
        ({"dataset_name": "./gone.jsonl"}, ["dataset file ./gone.jsonl does not exist"]),
        ({"use_peft": False}, ["use_peft"]),
        ({"resume_from_checkpoint": "gone"}, ["resume_from_checkpoint gone does not exist"]),
        ({"kl_coeff": 1}, ["kl_coeff"]),
    ],
    ids=lambda value: str(value)[:50] if isinstance(value, dict) else "",
)
def test_a_config_that_cannot_run_is_refused(folder, write_config, capsys, changes, words):
    sentence = refused(capsys, "--config", write_config(**changes), "--stage", "ppo")
    assert all(word in sentence for word in words), sentence


def test_a_plan_writes_nothing_so_it_needs_no_folder_and_says_that_one_exists(folder, write_config, capsys):
    assert cli.main(["plan", "ppo", "--config", write_config(output_dir="sft")]) == 0
    assert "will not start as it is: output_dir sft exists: choose another" in capsys.readouterr().out
    assert cli.main(["plan", "--config", write_config(output_dir=None), "--stage=ppo"]) == 0
    assert "output_dir" not in capsys.readouterr().out


def test_flags_alone_are_planned(folder, write_config, capsys, clock):
    """The same plan as that of a config with the same settings."""
    config = yaml.safe_load(Path(write_config()).read_text())
    expected = plan_table(planned(write_config(), timed=True))
    flags = [f"--{key}={value}" for key, value in config.items() if not isinstance(value, list)]
    lists = [
        word for key, value in config.items() if isinstance(value, list) for word in (f"--{key}", *map(str, value))
    ]
    for arguments in (["ppo", *flags, *lists], [*flags, *lists, "--stage", "ppo"]):
        assert cli.main(["plan", *arguments]) == 0
        assert capsys.readouterr().out.strip() == expected.strip()
    assert "nothing to plan: give --config FILE, or a stage" in refused(capsys)
    told = refused(capsys, "ppoo", "--rewards", "rule:length")
    assert "unknown stage 'ppoo'" in told and "ppo" in told and "fisher" not in told  # which has no plan


def test_the_numbers_of_a_run_are_said(write_config):
    assert ("numbers", "float32") in planned(write_config()).work
    assert ("numbers", "float32, bfloat16 in forward and backward passes") in planned(write_config(bf16=True)).work


def test_the_stage_is_asked_for_where_the_keys_fit_several(folder, write_config, capsys):
    common = {"rewards": None, "num_iterations": None, "max_completion_length": None}
    path = write_config("mine.yaml", **common)
    assert "fits the stages sft, reward: say which with --stage" in refused(capsys, "--config", path)
    assert planned(path, stage="sft").stage == "sft"
    assert "unknown stage 'sftt'" in refused(capsys, "--config", path, "--stage", "sftt")
    unknown = write_config("other.yaml", whatever=1)
    assert "fits no stage; the nearest is ppo (unknown there: whatever)" in refused(capsys, "--config", unknown)
    (folder / "fisher.yaml").write_text("{sft_model: sft, policy: p, output_dir: out, dataset_name: docstrings}")
    assert "stage fisher has no plan, only sft, reward, ppo," in refused(capsys, "--config", "fisher.yaml")
    assert "config file gone.yaml does not exist" in refused(capsys, "--config", "gone.yaml")


def test_a_plan_shows_the_first_row_as_everybody_will_read_it(folder, write_config):
    """And calls no function: this one would fail."""
    tokenizer = tiny.word_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }} <eos>{% endfor %}")
    (folder / "failing_in_a_plan.py").write_text("def f(completions, answer):\n    return [1 / 0]\n")
    tokenizer.save_pretrained(folder / "judge")
    tiny.llama_config(tokenizer, num_labels=3, architectures=["LlamaForSequenceClassification"]).save_pretrained(
        folder / "judge"
    )
    for split in ("train", "test", "validation"):
        rows = [{"prompt": f"a b {split[1]}", "answer": 4}, {"prompt": f"a {split[1]}", "answer": 5}]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = {"model": "./judge", "template": "chat", "name": "chat"}
    config = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    rewards = ["./judge", chat, "failing_in_a_plan:f"]
    table = plan_table(planned(write_config(rewards=rewards, **config)))
    assert "  policy        (its tokenizer is not here yet)" in table
    tiny.word_tokenizer().save_pretrained(folder / "sft")
    table = plan_table(planned(write_config(rewards=rewards, **config)))
    assert "the first row, as it is read; the first words of the prompt stand for a completion" in table
    assert "  policy        'a b <unk>'\n" in table
    assert "  reward judge  'a b <unk> a b'\n" in table and "  reward chat   'a b <unk> <eos> a b <eos>'\n" in table
    assert "  reward f      prompt 'a b r', completion ' a b'" in table
    assert table.count("is read by guess") == 2, "the output of one is guessed as well, the template of the other not"
    with pytest.raises(ValueError, match="'f' cannot be called: missing a required argument: 'answer'"):
        (folder / "data" / "train.jsonl").write_text('{"prompt": "a b"}\n{"prompt": "a"}\n')
        planned(write_config(rewards=rewards, **config))


def test_plans_of_sft_and_reward_show_their_first_row(folder, write_config):
    tiny.word_tokenizer().save_pretrained(folder / "sft")
    pair = {"completion": " b c", "chosen": " b", "rejected": " c d"}
    for prompt, split in zip("abc", ("train", "test", "validation"), strict=True):
        (folder / "data" / f"{split}.jsonl").write_text(json.dumps({"prompt": prompt, **pair}) + "\n")
    small = {"rewards": None, "num_iterations": None, "max_completion_length": None}
    sft = write_config("sft.yaml", **small)
    assert "  policy  'a b c <eos>'" in plan_table(planned(sft))
    table = plan_table(planned(write_config("reward.yaml", **small, template="{completion} j {prompt}")))
    assert "  reward chosen    'b j a <eos>'\n  reward rejected  'c d j a <eos>'" in table


# --- time ---


@pytest.fixture
def clock(monkeypatch):
    """A machine on which every token of a pass takes a second, a step of sampling 10 s and 1 s a row, Adam's 5 s."""

    def seconds(self, prepare):
        return 5.0 if prepare is updating else 10.0 + prepare.keywords["tokens"].rows

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(Trial, "seconds", seconds)
    monkeypatch.setattr(Trial, "seconds_of", lambda self, prepare, tokens, through_layers=True: float(tokens.count))


def test_the_time_of_ppo_by_hand(write_config, clock):
    """Prompts of 41 characters, 11 tokens; 3 rollouts of 4 completions of 5; 6 updates of 2 microbatches of 2."""
    rewards = ["string:capwords", {"model": "rule:length", "normalize": True}]
    result = planned(write_config(rewards=rewards, normalization_samples=8), timed=True)
    completions = 3 * 4 + 8
    assert result.seconds == {
        "sampling": completions * 11 + completions / 4 * (5 * 10 + 4 * 5),
        "scores": 0.0,
        "log-probabilities": 3 * 4 * (11 + 5) + 3 * 4 * 5,  # read, and judged
        "updates": 6 * 2 * 2 * (11 + 5) + 6 * 2 * 2 * 5 + 6 * 5,
    }
    named = ["starting and loading", "evaluations", "reward capwords", "reward length"]
    assert result.untimed == named
    table = plan_table(result)
    total = sum(result.seconds.values())
    assert f"time: about {total / 60:.0f} min on this machine (" in table
    assert f"  not counted: {', '.join(named)}" in table
    assert "time: as if no completion ended early" in table


def test_completions_count_as_long_as_those_of_the_data(folder, write_config, clock):
    """Prompts of 3 tokens, and completions of 2 and 3 with the end token, of which every batch has both."""
    tiny.word_tokenizer().save_pretrained(folder / "sft")
    for name in ("train", "validation", "test"):
        rows = [{"prompt": f"a {word} {name[1]}", "completion": " a b"[: 2 + 2 * (word in "df")]} for word in "cdef"]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = planned(write_config(), timed=True)
    assert result.seconds["sampling"] == 12 * 3 + 3 * (3 * 10 + 4 * 2.5)
    assert result.seconds["log-probabilities"] == 12 * (3 + 3) + 12 * 2.5
    assert "time: as if completions were those of the data, 2 tokens in the mean" in result.notes


def test_the_time_of_sft_and_reward_by_hand(folder, write_config, clock):
    common = {"rewards": None, "num_iterations": None, "max_completion_length": None}
    sft = planned(write_config("sft.yaml", **common), timed=True)
    tokens = 6 * 4 * 16  # updates of 4 sequences of 61 characters
    assert sft.seconds == {"updates": tokens + tokens + 6 * 5}
    pairs = [{"prompt": "p", "chosen": "c" * 8, "rejected": "r" * 4}] * 5
    (folder / "pairs").mkdir()
    for split in ("train", "validation", "test"):
        rows = "".join(json.dumps({**row, "prompt": split[1]}) + "\n" for row in pairs)
        (folder / "pairs" / f"{split}.jsonl").write_text(rows)
    reward = planned(write_config("reward.yaml", **common, dataset_name="pairs", use_peft=False), timed=True)
    assert reward.seconds == {"updates": 6 * 8 * 3 + 6 * 5}  # both texts of 4 pairs, 9 and 5 characters; no head


def test_no_time_is_told_where_it_is_not_known(write_config, clock, monkeypatch):
    def why(**changes):
        options = {"device": changes.pop("device", None)}
        result = planned(write_config(**changes), timed=True, **options)
        assert result.seconds == {} and f"time: not told, {result.untimed[0]}" in plan_table(result)
        return result.untimed

    assert why(device="cuda") == ["it is for a GPU, and none is here"]
    assert why(dtype="bfloat16", load_in_8bit=True) == ["weights in 8 bits are not tried"]
    assert why(dataset_name="tldr", max_steps=None) == ["the number of updates is not known"]
    monkeypatch.setattr("rlhf_lines.plan.trial.free_bytes", lambda device: 0)
    assert why()[0].startswith("too little memory is free for a trial")
    assert "time:" not in plan_table(planned(write_config()))  # nobody asked


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "bf16": True, "value_lora": True}])
def test_every_part_of_ppo_is_tried_on_this_machine(write_config, changes):
    seconds = planned(write_config(**changes), device="cpu", timed=True).seconds
    assert all(value > 0 for name, value in seconds.items() if name != "scores") and seconds["scores"] == 0

"""`rlhf-lines merge --plan`: what would be read, computed and written, and what stands in the way."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec
from rlhf_lines.plan import Options, plan
from rlhf_lines.plan.merging import passes_over_inputs
from tests import tiny


@pytest.fixture
def models(folder) -> Path:
    """The folder of a user with an SFT model and one policy of it, both of full weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    for seed, name in enumerate(("sft", "policy")):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained("sft")).save_pretrained(name)
    return folder


FLAGS = [
    *("--sft_model", "sft", "--policies", "policy", "--weights", "1", "--save", "dense", "--output_dir", "out"),
    *("--alpha", "0.5", "--beta", "1"),
]


def refusal(capsys, *flags: str) -> str:
    assert cli.main(["merge", *FLAGS, "--plan", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("rlhf-lines merge: ")
    return err


def test_a_dry_run_prints_the_plan_and_writes_nothing(models, capsys):
    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    assert cli.main(["merge", *FLAGS, "--plan", "--dtype", "bfloat16"]) == 0
    out, _ = capsys.readouterr()
    words = {line.split("  ")[1]: line.split()[-1] for line in out.splitlines() if line.startswith("  ")}
    count = sum(p.numel() for p in _model().parameters())
    assert words["rule"] == "linear" and words["passes over the inputs"] == "1"
    assert "layer 1: 0.5, layer 2: 1.5, outside the layers: 0.5" in out
    assert f"{count:,} (100.0%), " in out
    assert "to be read: " in out and "sft/model.safetensors" in out and "policy/model.safetensors" in out
    assert "warning: no SFT model is recorded of policy 'policy': make sure that it was " in out
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before


def test_bytes_are_those_that_are_read_and_written(models):
    result = plan([*FLAGS, "--dtype", "bfloat16"], Options("merge"))
    assert result.read == {
        f"{name}/model.safetensors": Path(name, "model.safetensors").stat().st_size for name in ("sft", "policy")
    }
    assert result.disk == {"model.safetensors": 2 * sum(p.numel() for p in _model().parameters())}


def test_the_plan_command_prints_the_same_table(models, capsys):
    config = dict(zip([flag[2:] for flag in FLAGS[::2]], FLAGS[1::2], strict=True))
    Path("merge.yaml").write_text(json.dumps({**config, "weights": [1.0], "alpha": 0.5, "beta": 1.0}))
    assert cli.main(["merge", *FLAGS, "--plan"]) == 0
    dry, _ = capsys.readouterr()
    assert cli.main(["plan", "--config", "merge.yaml"]) == 0
    planned, _ = capsys.readouterr()

    def without_free(text: str) -> list[str]:
        return [line for line in text.splitlines()[1:] if "free where" not in line]

    assert without_free(planned) == without_free(dry)


def test_a_record_can_be_planned(models, capsys):
    assert cli.main(["merge", *FLAGS]) == 0
    assert cli.main(["merge", "--config", "out/merge_spec.json", "--output_dir", "again", "--plan"]) == 0
    assert not Path("again").exists()
    save_file({"x": torch.zeros(1)}, "policy/model.safetensors")
    assert cli.main(["plan", "--config", "out/merge_spec.json", "--output_dir", "again"]) == 2


def test_problems_are_told_at_once_with_status_2(models, capsys):
    content = json.loads(Path("policy/config.json").read_text())
    Path("policy/config.json").write_text(json.dumps({**content, "vocab_size": 65}))
    Path("policy/rlhf_lines.json").write_text(json.dumps({"sft_sha256": "0" * 64}))
    error = refusal(capsys)
    assert "2 problems: (1) policy 'policy' is not of the SFT model's architecture" in error
    assert "trained on SFT weights 000000000000" in error
    assert not Path("out").exists()


def test_an_option_out_of_range_is_a_problem(models, capsys):
    assert "density is 2, expected" in refusal(capsys, "--rule", "ties", "--rule_options", '{"density": 2}')


def test_settings_without_effect_are_told_by_the_merge_and_its_plan(models, capsys):
    idle = "schedule sqrt has no effect: beta is 0, so every layer has the factor alpha"
    flags = [*FLAGS, "--beta", "0", "--schedule", "sqrt"]
    assert cli.main(["plan", "merge", *flags]) == 0
    assert idle in " ".join(capsys.readouterr().out.split())
    assert cli.main(["merge", *flags]) == 0
    assert f"{idle}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save", "lora"], "unknown save 'lora'"),
        (["--dtype", "bf16"], "unknown dtype 'bf16'"),
        (["--rank", "4"], "rank is 4, but a dense checkpoint has none"),
        (["--save", "adapter"], "policy 'policy' is a dense checkpoint, which no adapter holds exactly"),
        (["--save", "adapter", "--rule", "ties"], "give --rank, which truncates it"),
        (["--max_memory", "zz"], "'zz'"),
        (["--max_shard_size", "zz"], "'zz'"),
        (["--device", "mps"], "device is 'mps', expected cpu, cuda, or one of several GPUs"),
        (["--statistics", "policy"], "statistics are given, but rule 'linear' uses none"),
        (["--push_to_hub"], "push_to_hub needs the name of the model on the Hub"),
        (["--weights", "1", "2"], "2 weights for 1 policy"),
        (["--output_dir", "sft/config.json/out"], "because {cwd}/sft/config.json is not a folder"),
        (["--repeats", "record.json"], "has changed since record.json was written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_merge_refuses_its_plan_refuses_in_the_same_words(models, capsys, flags, words):
    """One of the settings each, where the plan had found nothing, or had ended with a traceback."""
    assert cli.main(["merge", *FLAGS, "--output_dir", "first"]) == 0
    record = json.loads(Path("first/merge_spec.json").read_text())
    Path("record.json").write_text(json.dumps({**record, "sft_sha256": "0" * 64}))
    capsys.readouterr()
    planned = refusal(capsys, *flags)
    assert words.format(cwd=Path.cwd()) in planned
    assert cli.main(["merge", *FLAGS, *flags]) == 2
    assert capsys.readouterr().err == planned
    assert not Path("out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is what is tested")
def test_a_gpu_that_is_not_here_is_refused_by_the_plan(models, capsys):
    assert "device is 'cuda', but torch sees no GPU here" in refusal(capsys, "--device", "cuda")


def test_settings_are_refused_before_their_inputs_exist(models, capsys):
    assert "unknown save 'lora'" in refusal(capsys, "--policies", "nowhere", "--save", "lora")


@pytest.fixture
def adapters(models) -> list[str]:
    """Flags that name two adapters of ``sft``, of ranks 2 and 3, as policies."""
    for name, rank, targets in (("a", 2, ["q_proj"]), ("b", 3, ["q_proj", "down_proj"])):
        tiny.save_adapter("sft", Path(name), seed=rank, r=rank, target_modules=targets)
    return ["--policies", "a", "b", "--weights", "0.5", "0.5", "--save", "adapter"]


@pytest.mark.parametrize(
    "flags",
    [[], ["--rank", "1"], ["--rank", "99"], ["--dtype", "float16"], ["--rule", "ties", "--rank", "4"]],
    ids=" ".join,
)
def test_the_bytes_of_an_adapter_are_those_of_its_rank(adapters, flags):
    result = plan([*FLAGS, *adapters, *flags], Options("merge"))
    assert cli.main(["merge", *FLAGS, *adapters, *flags]) == 0
    written = load_file("out/adapter_model.safetensors").values()
    assert result.disk == {"merged adapter": sum(tensor.nbytes for tensor in written)}
    record = json.loads(Path("out/merge_spec.json").read_text())
    assert ("rank of the adapter", str(record["rank"])) in result.work


def test_a_dense_merge_of_adapters_holds_every_b_once_more_with_its_scale(adapters):
    (phase,) = plan([*FLAGS, *adapters, "--save", "dense"], Options("merge")).phases
    folders = [Path(folder) for folder in adapters[adapters.index("--policies") + 1 :][:2]]
    files = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    a, b = (sum(t.numel() for file in files for name, t in file.items() if f".lora_{x}." in name) for x in "AB")
    assert a != b and phase.parts["adapters"] == 4 * (a + 2 * b)


def test_rules_of_factors_are_planned_as_a_full_checkpoint(adapters, capsys):
    flags = [*adapters, "--save", "dense", "--rule", "peft_linear"]
    assert "adds up factors of equal shapes" in refusal(
        capsys, *flags
    )  # their ranks differ, which the plan says as the merge does
    flags[2] = "a"
    assert cli.main(["merge", *FLAGS, "--plan", *flags]) == 0
    assert cli.main(["merge", *FLAGS, *flags]) == 0


def test_statistics_are_checked_and_counted(models, capsys):
    """A plan of such a rule was refused for want of statistics although they were given."""
    fisher = ["--rule", "fisher", "--statistics", "fisher_of_policy"]
    assert "'fisher_of_policy' has no fisher.safetensors" in refusal(capsys, *fisher)
    Path("fisher_of_policy").mkdir()
    save_file(load_file("policy/model.safetensors"), "fisher_of_policy/fisher.safetensors")
    assert cli.main(["merge", *FLAGS, "--plan", *fisher]) == 0
    assert "passes over the inputs" in capsys.readouterr().out
    result = plan([*FLAGS, *fisher], Options("merge"))
    path = Path("fisher_of_policy/fisher.safetensors")
    assert result.read[str(path)] == path.stat().st_size


def test_a_disk_that_is_too_small_is_a_problem(models, capsys, monkeypatch):
    import shutil

    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "are free there: choose another disk, a narrower --dtype, or --save adapter" in refusal(capsys)


def test_a_result_that_would_be_kept_is_planned_as_such(models, capsys):
    assert cli.main(["merge", *FLAGS]) == 0
    assert cli.main(["merge", *FLAGS, "--plan"]) == 0
    assert "output_dir out exists" in capsys.readouterr().out
    assert cli.main(["merge", *FLAGS, "--plan", "--resume"]) == 0
    assert "out holds this merge and is kept (--resume)" in capsys.readouterr().out
    for flags in (["--beta", "0.5"], ["--dtype", "bfloat16"]):
        planned = refusal(capsys, "--resume", *flags)
        assert "out was made with" in planned
        assert cli.main(["merge", *FLAGS, "--resume", *flags]) == 2
        assert capsys.readouterr().err == planned


def test_an_input_is_never_the_output(models, capsys):
    assert "which --overwrite would delete" in refusal(capsys, "--output_dir", "policy", "--overwrite")


def test_scripts_do_not_merge_when_asked_to_plan(models):
    from rlhf_lines.stages import run_stage

    with pytest.raises(ValueError, match="plan is for the command"):
        run_stage("merge", [*FLAGS, "--plan"])


@pytest.mark.parametrize(
    ("rule", "options", "passes"),
    [
        ("linear", {}, 1),
        # Two digits of the threshold, the majority of signs, the merge.
        ("ties", {}, 4),
        ("ties", {"zero_sign": "positive"}, 3),
        # Norms and zeros, two digits of the median, the merge.
        ("fisher", {}, 4),
        ("fisher", {"relative": False}, 2),
        ("regmean", {}, 1),
        ("opcm", {}, 2),
    ],
)
def test_passes_are_counted_on_the_rule_itself(rule, options, passes):
    assert passes_over_inputs(MergeSpec(rule, (0.5, 0.5), options=options)) == passes
    # alpha takes the norms of the sum and of what is merged.
    assert passes_over_inputs(MergeSpec(rule, (0.5, 0.5), "auto", options=options)) == passes + 2


def save_statistics(folder: str) -> None:
    Path(folder).mkdir()
    tensors = {name: torch.ones_like(parameter) for name, parameter in _model().named_parameters()}
    save_file(tensors, f"{folder}/fisher.safetensors")


def test_statistics_and_device_are_shown_and_statistics_checked(models, capsys):
    assert "needs the statistics of each policy, got 0 for 1" in refusal(capsys, "--rule", "fisher")
    assert "'seen' has no fisher.safetensors" in refusal(capsys, "--rule", "fisher", "--statistics", "seen")
    save_statistics("seen")
    assert "rule 'ties' uses none" in refusal(capsys, "--rule", "ties", "--statistics", "seen")
    assert cli.main(["merge", *FLAGS, "--plan", "--rule", "fisher", "--statistics", "seen"]) == 0
    out = capsys.readouterr().out
    assert "statistics for fisher           seen\n" in out and "seen/fisher.safetensors" in out
    assert "arithmetic on dense residuals   float32 or wider, on cpu\n" in out


def test_shards_of_a_size_are_planned_as_they_are_written(models):
    flags = [*FLAGS, "--max_shard_size", "5KB", "--dtype", "bfloat16"]
    planned = plan(flags, Options("merge")).disk
    assert cli.main(["merge", *flags]) == 0
    written = {path.name: load_file(path) for path in Path("out").glob("*.safetensors")}
    assert planned == {name: sum(tensor.nbytes for tensor in tensors.values()) for name, tensors in written.items()}
    assert len(planned) > 2


def test_a_rank_is_shown_and_sets_the_size(models, capsys):
    for name, rank in (("a", 2), ("b", 3)):
        tiny.save_adapter("sft", Path(name), seed=rank, r=rank, target_modules=["q_proj", "v_proj"])
    flags = ["--sft_model", "sft", "--policies", "a", "b", "--save", "adapter", "--output_dir", "merged"]
    width = 2 * ((16 + 16) + (16 + 8))  # two layers, in + out of both modules
    assert plan(flags, Options("merge")).disk == {"merged adapter": (2 + 3) * width * 4}
    result = plan([*flags, "--rank", "1", "--rule", "ties"], Options("merge"))
    assert result.disk == {"merged adapter": width * 4}
    assert dict(result.work)["truncated to rank"] == "1; what that loses is told"
    assert cli.main(["merge", *flags, "--plan", "--rule", "ties"]) == 2
    assert "rule 'ties' is not linear in the residuals, so no adapter holds it exactly; give --rank" in (
        capsys.readouterr().err
    )


def test_merged_factors_have_a_copy_where_they_are_cast(models):
    for seed, name in enumerate(("a", "b")):
        tiny.save_adapter("sft", Path(name), seed=seed, r=2, target_modules=["q_proj", "v_proj"])
    flags = ["--sft_model", "sft", "--policies", "a", "b", "--save", "adapter", "--output_dir", "merged"]
    count = (2 + 2) * 2 * ((16 + 16) + (16 + 8))  # rank, two layers, in + out of both modules
    held = {"Python and libraries": 470e6, "adapters": count * 4, "merged adapter": count * 4}
    assert merge_parts(flags) == merge_parts([*flags, "--dtype", "float32"]) == held
    assert merge_parts([*flags, "--dtype", "bfloat16"]) == held | {"merged adapter, cast": count * 2}


def test_auto_alpha_takes_a_pass_over_the_residuals_and_one_over_what_is_merged(models):
    for alpha, passes in (("1", "4"), ("auto", "6")):
        flags = [*FLAGS, "--rule", "ties", "--alpha", alpha]
        assert dict(plan(flags, Options("merge")).work)["passes over the inputs"] == passes


def test_memory_of_chunks_by_hand(models):
    """Two models in float32, two threads: 2^18 elements of each, and four more chunks."""
    parts = merge_parts(FLAGS)
    chunks = len(os.sched_getaffinity(0)) * 2**18 * 4 * (2 + 4)
    assert parts == {"Python and libraries": 250e6, "adapters": 0, "chunks": chunks}
    searching = merge_parts([*FLAGS, "--rule", "ties"])
    # One policy, whose entries are few enough to be held, and a copy of them; breadcrumbs look for two ranks.
    sizes = [parameter.numel() for parameter in _model().parameters()]
    search = "search for quantiles"
    assert searching[search] == 2 * 4 * sum(sizes)
    by_tensor = merge_parts([*FLAGS, "--rule", "ties", "--rule_options", '{"granularity": "tensor"}'])
    assert by_tensor[search] == 2 * 4 * max(sizes)
    two = merge_parts([*FLAGS, "--rule", "breadcrumbs", "--rule_options", '{"granularity": "global"}'])
    assert two[search] == 3 * 4 * sum(sizes)
    assert search not in merge_parts([*FLAGS, "--alpha", "auto"])
    # The head [64, 16]: two tensors in float32, five in float64.
    assert merge_parts([*FLAGS, "--rule", "opcm"])["one whole parameter"] == 64 * 16 * (2 * 4 + 5 * 8)


def merge_parts(flags: list[str]) -> dict[str, int]:
    (phase,) = plan(flags, Options("merge")).phases
    return phase.parts


def _model():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained("sft")


def test_an_adapter_that_is_cast_takes_less_disk_also_where_the_sft_model_is_not_here(models):
    tiny.save_adapter("sft", Path("a"), seed=0, r=2, target_modules=["q_proj"])
    for path in Path("sft").glob("model*.safetensors*"):
        path.unlink()
    flags = ["--sft_model", "sft", "--policies", "a", "--save", "adapter", "--output_dir", "merged"]
    count = 2 * 2 * (16 + 16)  # rank, two layers, in + out
    for dtype, size in (([], 4), (["--dtype", "bfloat16"], 2), (["--dtype", "float64"], 8)):
        assert plan([*flags, *dtype], Options("merge")).disk == {"merged adapter": count * size}

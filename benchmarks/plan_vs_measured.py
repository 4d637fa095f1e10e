"""What `rlhf-lines plan` estimates, beside what the stage took.

    python benchmarks/plan_vs_measured.py            all settings of this machine; on an idle CPU a few minutes
    python benchmarks/plan_vs_measured.py --few      the first two
    python benchmarks/plan_vs_measured.py --time LOG what it tells of time, beside the stages in a log of make demo-llm

Every setting is a stage of its own in a process of its own: a random Llama, a few updates, prompts and completions of a
fixed length. On a GPU the measured number is torch.cuda.max_memory_allocated. On a CPU it is the peak of the resident
set during the stage (VmHWM, which is reset first) minus the resident set after all imports, measured twice: with
MALLOC_MMAP_THRESHOLD_=65536, where glibc gives every freed block of 64 KiB or more back at once, so that the
resident set is what is alive; and as glibc does by default, where it keeps freed blocks for later.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


SMALL = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
ONE_B = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SEVEN_B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
MODELS = {"97M": (SMALL, 8000), "1B": (ONE_B, 128256), "7B": (SEVEN_B, 32000)}
PROMPT, COMPLETION = 96, 32
CPU = [
    {"stage": stage, "model": "97M", "batch": batch, "checkpointing": checkpointing}
    for stage, batch, checkpointing in (
        ("ppo", 2, False),
        ("ppo", 2, True),
        ("ppo", 8, False),
        ("ppo", 8, True),
        ("sft", 2, True),
        ("sft", 8, False),
    )
]
ALLOCATORS = {"alive": {"MALLOC_MMAP_THRESHOLD_": str(2**16)}, "by default": {}}
GPU = [
    {"stage": "ppo", "model": model, "batch": batch, "checkpointing": True, "bits": bits}
    for model in ("1B", "7B")
    for bits in (16, 8)
    for batch in (8,)
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--few", action="store_true", help="the first two settings")
    parser.add_argument("--time", metavar="LOG", type=Path, help="what make demo-llm printed")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one setting, as JSON, in a process of its own
    options = parser.parse_args()
    if options.run:
        print(json.dumps(_measure(json.loads(options.run))))
        return
    if options.time:
        _compare_times(options.time.read_text())
        return
    import torch

    settings = GPU if torch.cuda.is_available() else CPU
    print(f"{_machine()}\n")
    allocators = {"alive": {}} if torch.cuda.is_available() else ALLOCATORS
    print("| stage | model | batch | checkpointing | weights | planned | during | measured | ratio |", end="")
    print(" with glibc's default |" if len(allocators) > 1 else "")
    print("|---|---|---|---|---|---|---|---|---|" + "---|" * (len(allocators) - 1))
    for setting in settings[:2] if options.few else settings:
        rows = [_run(setting, environment) for environment in allocators.values()]
        planned, measured = rows[0]["planned"], [row["measured"] for row in rows]
        cells = [setting["stage"], setting["model"], setting["batch"], "on" if setting["checkpointing"] else "off"]
        cells += [f"{setting.get('bits', 32)} bit", _mib(planned), rows[0]["phase"], _mib(measured[0])]
        cells += [f"{planned / measured[0]:.2f}", *map(_mib, measured[1:])]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _compare_times(log: str) -> None:
    """Print the planned time of every stage that the log has, in the folder where it was run, beside the measured."""
    from rlhf_lines.plan import Options, plan

    print(f"{_machine()}\n\n| stage | planned | of it | measured | ratio |\n|---|---|---|---|---|")
    for name, seconds in re.findall(r"^\[\d/\d\] (\w+): (\d+) s$", log, re.MULTILINE):
        path = Path(__file__).parents[1] / "configs" / "smollm2" / "docstrings" / f"{name}.yaml"
        found = plan(["--config", str(path)], Options(timed=True)).seconds
        total = sum(found.values())
        parts = ", ".join(f"{part} {value:.0f} s" for part, value in found.items())
        print(f"| {name} | {total:.0f} s | {parts} | {seconds} s | {total / int(seconds):.2f} |", flush=True)


def _run(setting: dict, environment: dict) -> dict:
    command = [sys.executable, __file__, "--run", json.dumps(setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def score_length(prompts: list[str], completions: list[str]) -> list[float]:
    """The reward of the benchmark, which costs no memory."""
    return [float(len(completion)) for completion in completions]


def _measure(setting: dict) -> dict:
    import torch

    import rlhf_lines.train.ppo
    import rlhf_lines.train.sft  # noqa: F401
    from rlhf_lines.plan import Options, plan
    from rlhf_lines.plan.memory import peak
    from rlhf_lines.stages import run_stage

    gpu = torch.cuda.is_available()
    sys.path.insert(0, str(Path(__file__).parent))
    with tempfile.TemporaryDirectory() as root:
        os.environ["HF_DATASETS_CACHE"] = f"{root}/cache"
        _write_inputs(Path(root), *MODELS[setting["model"]], gpu)
        arguments = _arguments(Path(root), setting, gpu)
        # In another process: what the rehearsal leaves behind would count as imports.
        planned = _in_child(lambda: peak(plan(arguments, Options(stage=setting["stage"])).phases))
        _import_lazy(arguments)
        if not gpu:
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
        start = time.monotonic()
        with Path(os.devnull).open("w") as nowhere:
            stdout, sys.stdout = sys.stdout, nowhere
            try:
                run_stage(setting["stage"], arguments)
            finally:
                sys.stdout = stdout
        measured = torch.cuda.max_memory_allocated() if gpu else _status("VmHWM") - before
        return {
            "planned": planned["total"],
            "phase": planned["name"],
            "measured": measured,
            "seconds": time.monotonic() - start,
        }


def _in_child(estimate) -> dict:
    read, write = os.pipe()
    if os.fork() == 0:
        phase = estimate()
        os.write(write, json.dumps({"name": phase.name, "total": phase.total}).encode())
        os._exit(0)
    os.wait()
    return json.loads(os.read(read, 1 << 16))


def _import_lazy(arguments: list[str]) -> None:
    """Import what the stages import when they run, so that it counts as imports."""
    import bitsandbytes  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    import torch._dynamo  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import Trainer  # noqa: F401
    from trl import GRPOTrainer, SFTTrainer  # noqa: F401


def _write_inputs(root: Path, sizes: dict, vocab: int, gpu: bool) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{i}": i for i in range(3, vocab)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(root / "model")
    config = LlamaConfig(
        **sizes, vocab_size=vocab, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, bos_token_id=None
    )
    command = (
        "import sys, torch; from transformers import LlamaConfig, LlamaForCausalLM;"
        "torch.manual_seed(0); torch.set_default_dtype(getattr(torch, sys.argv[3]));"
        "torch.set_default_device(sys.argv[4]);"
        "LlamaForCausalLM(LlamaConfig.from_json_file(sys.argv[1])).save_pretrained(sys.argv[2])"
    )
    config.to_json_file(root / "shape.json")
    # In another process: what building the model leaves behind would count as imports.
    dtype, device = ("bfloat16", "cuda") if gpu else ("float32", "cpu")
    subprocess.run([sys.executable, "-c", command, root / "shape.json", root / "model", dtype, device], check=True)
    draw = torch.randint(3, vocab, (128, PROMPT + COMPLETION), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [
        {"prompt": " ".join(f"w{i}" for i in row[:PROMPT]), "completion": " " + " ".join(f"w{i}" for i in row[PROMPT:])}
        for row in draw
    ]
    (root / "data").mkdir()
    (root / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _arguments(root: Path, setting: dict, gpu: bool) -> list[str]:
    flags = {
        "model_name_or_path": root / "model",
        "output_dir": root / "out",
        "dataset_name": root / "data",
        "use_peft": "true",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": "all-linear",
        "per_device_train_batch_size": setting["batch"],
        "max_steps": 2,
        "learning_rate": 1e-4,
        "gradient_checkpointing": str(setting["checkpointing"]).lower(),
        "bf16": str(gpu).lower(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "dataloader_pin_memory": "false",
        **({"dtype": "bfloat16"} if gpu else {"use_cpu": "true"}),
        **({"load_in_8bit": "true"} if setting.get("bits") == 8 else {}),
    }
    if setting["stage"] == "ppo":
        flags |= {"rewards": "plan_vs_measured:score_length", "num_iterations": 2, "max_completion_length": COMPLETION}
        flags |= {"lora_dropout": 0.0}
    else:
        flags |= {"max_length": PROMPT + COMPLETION + 1, "lora_dropout": 0.0}
    return [str(word) for key, value in flags.items() for word in (f"--{key}", value)]


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def _machine() -> str:
    import torch

    from rlhf_lines.artifact import versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    named = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"{device}, {platform.platform()}; {named}"


if __name__ == "__main__":
    main()

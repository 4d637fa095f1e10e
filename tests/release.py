"""What a user does first, in an environment that has the wheel and no checkout: `make release-check` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import tiny  # beside this file, which Python runs as a script


def command(*arguments: str) -> str:
    """What the installed command prints."""
    program = Path(sys.executable).with_name("rlhf-lines")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Ask for help, copy the configs, merge two adapters."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers by a name that is to go
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        import rlhf_lines

        assert Path(sys.prefix) in Path(rlhf_lines.__file__).parents, "the package is not that of the environment"
        assert command("--version").strip() == rlhf_lines.__version__
        assert "merge" in command("--help")
        command("configs", "mine")
        assert len(list(Path("mine").rglob("*.yaml"))) > 20
        tiny.llama().save_pretrained("sft")
        for seed, name in enumerate(("brief", "kind")):
            tiny.save_adapter(Path("sft"), Path(name), seed=seed)
        inputs = ("--sft_model", "sft", "--policies", "brief", "kind", "--weights", "0.3", "0.7", "--beta", "1")
        command("merge", *inputs, "--save", "adapter", "--output_dir", "merged")
        assert Path("merged/adapter_model.safetensors").is_file()


if __name__ == "__main__":
    main()

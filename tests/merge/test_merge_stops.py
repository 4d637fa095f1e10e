"""A merge that is killed, or meets a full disk: nothing under the final name, nothing lost, and it can be run again."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines.merge import MergeSpec, merge_policies


SPEC = MergeSpec("ties", (0.5, 0.5), 0.5, 1.0)

KILLED = """
import os, signal, sys
from rlhf_lines import artifact
from rlhf_lines.merge.tensors import tensor_file
from rlhf_lines.merge import MergeSpec, merge_policies

moment, sft, output, *policies = sys.argv[1:]

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before its name":
    artifact._take_name = die
else:
    write, written = tensor_file.NewTensorFile.write, []
    def counted(self, name, start, values):
        write(self, name, start, values)
        written.append(name)
        if len(written) == int(moment):
            die()
    tensor_file.NewTensorFile.write = counted
merge_policies(sft, policies, MergeSpec("ties", (0.5, 0.5), 0.5, 1.0), save="dense", output_dir=output)
"""


def contents(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("moment", ["1", "20", "before its name"])
def test_killed_at_any_moment_and_run_again(sft, helpful, harmless, tmp_path, moment):
    inputs = [sft, helpful, harmless]
    before = [contents(folder) for folder in inputs]
    output = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, moment, str(sft), str(output), str(helpful), str(harmless)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not output.exists()
    assert [contents(folder) for folder in inputs] == before
    merge_policies(sft, [helpful, harmless], SPEC, save="dense", output_dir=output)
    whole = merge_policies(sft, [helpful, harmless], SPEC, save="dense", output_dir=tmp_path / "whole")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["out", "whole"]
    expected = load_file(whole / "model.safetensors")
    assert all(torch.equal(t, expected[name]) for name, t in load_file(output / "model.safetensors").items())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(sft, helpful, tmp_path):
    # The system refuses to let a file grow, as it does when a disk is full.
    size = (sft / "model.safetensors").stat().st_size
    command = [sys.executable, "-m", "rlhf_lines.cli", "merge", "--sft_model", str(sft), "--policies", str(helpful)]
    command += ["--weights", "1", "--save", "dense", "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2)),
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("rlhf-lines merge: no space left while writing")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []

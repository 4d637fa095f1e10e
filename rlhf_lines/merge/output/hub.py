"""Uploading a finished folder to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from rlhf_lines.artifact import RECORD
from rlhf_lines.errors import reason
from rlhf_lines.merge.inputs.provenance import MERGE_RECORD, called


_NAMING = (MERGE_RECORD, RECORD, "adapter_config.json")  # beside configs and cards, files that name other models


def check_hub(hub_model_id: str | None) -> None:
    """Stop before any work where an upload could not succeed: no name, no login, no connection.

    Raises:
        ValueError: what is missing, in one sentence.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not hub_model_id:
        raise ValueError("push_to_hub needs the name of the model on the Hub: give --hub_model_id NAME or ORG/NAME")
    try:
        validate_repo_id(hub_model_id)
    except HFValidationError as error:
        raise ValueError(f"hub_model_id {hub_model_id!r} is no name for the Hub ({reason(error)})") from error
    if constants.HF_HUB_OFFLINE:
        raise ValueError("push_to_hub needs the Hub, but HF_HUB_OFFLINE is set: unset it, or leave push_to_hub out")
    if get_token() is None:
        raise ValueError("push_to_hub needs a login: run hf auth login, or set HF_TOKEN to a token that may write")
    try:
        HfApi().whoami()
    except Exception as error:  # expired, revoked, unreachable: the library has an exception class for each
        raise ValueError(
            f"push_to_hub cannot log in to {constants.ENDPOINT} ({reason(error)}): run hf auth login, or check the "
            "connection"
        ) from error


def upload(folder: str | Path, hub_model_id: str, *, private: bool | None = None) -> str:
    """Create the model on the Hub unless it is there, upload the folder in one commit, and return the model's address.

    What is uploaded names models by their Hub ids or folders, as `called` does: no path of this machine.
    Checkpoints of a training run stay here.

    Raises:
        ValueError: the upload failed; the folder is as before, and the message says how to try again. That is no `hf
            upload`, which would upload what is left out here, and the paths.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(hub_model_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as public:
            _copy_public(Path(folder), Path(public))
            api.upload_folder(repo_id=address.repo_id, folder_path=public, commit_message=f"Upload {Path(folder).name}")
    except Exception as error:  # refused, unreachable, too large: the library has an exception class for each
        raise ValueError(
            f"{folder} is complete, but its upload to {hub_model_id} failed ({reason(error)}); try again with the same "
            "command and --resume, which uploads it without making it anew"
        ) from error
    return str(address)


def _copy_public(folder: Path, public: Path) -> None:
    """Fill a folder with links to the files of another, and with copies of texts without the paths that stand there."""
    named: dict[str, str] = {}
    texts = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if not path.is_file() or any(part.startswith((".", "checkpoint-")) for part in name.parts):
            continue
        (public / name).parent.mkdir(parents=True, exist_ok=True)
        if path.name in _NAMING or path.suffix in (".yaml", ".md"):
            texts[name] = path.read_text(encoding="utf-8")
            if path.suffix != ".md":
                _collect_paths(yaml.safe_load(texts[name]), named)  # JSON is YAML
        else:
            (public / name).symlink_to(path.resolve())
    for name, text in texts.items():
        for model in sorted(named, key=len, reverse=True):
            text = text.replace(model, named[model])
        (public / name).write_text(text, encoding="utf-8")


def _collect_paths(content: object, named: dict[str, str]) -> None:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for held in content:
            _collect_paths(held, named)
    elif isinstance(content, str) and "/" in content and "\n" not in content and Path(content).exists():
        # mergekit names an adapter BASE+ADAPTER, whose halves stand alone in the other files.
        named[content] = called(str(Path(content).absolute()))

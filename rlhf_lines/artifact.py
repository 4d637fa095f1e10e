"""Folders that appear complete or not at all, and the record of how they were made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from rlhf_lines.disk import KEPT_FOR_RESUME, NOTHING_KEPT, DiskFault, named_faults
from rlhf_lines.distributed import leads, wait
from rlhf_lines.errors import about
from rlhf_lines.lock import only_run
from rlhf_lines.redaction import redact, without_secrets


RECORD = "rlhf_lines.json"
CONFIG = "config.yaml"
BEGUN = "begun.json"  # what a resumed run must share with the one that was stopped, beside the config
MANIFEST = "manifest.json"  # of a checkpoint from which a run can go on
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors")


@contextlib.contextmanager
def new_folder(
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    keep_partial: bool = False,
    leave_partial: bool | Callable[[Path], bool] = False,
) -> Iterator[Path]:
    """Yield a hidden folder beside `output_dir`, which takes that name when the block ends without an error.

    A block that fails or is killed leaves nothing under the final name. Of several processes, every one gets the same
    hidden folder and the main one renames it, after all have left the block. Nobody else makes the folder meanwhile.

    Args:
        output_dir: the folder to make.
        overwrite: replace an existing folder, once the new one is complete.
        keep_partial: keep what an earlier, killed block left in the hidden folder, for a block that can go on from it.
        leave_partial: leave the hidden folder of a block that fails, so that a later one can go on from it; implied by
            `keep_partial`. A function says of the folder whether there is anything to go on from, and is asked in any
            case: the error that removes the folder says so (`kept`).

    Raises:
        FileExistsError: `output_dir` exists and `overwrite` is false, or another run makes it; raised before the block
            runs.
        ValueError: the folder above cannot be made or written.
        DiskFault: the disk is full or fails.
    """
    final = Path(output_dir)
    with only_run(final):
        try:
            with named_faults(final):
                yield from _new_folder(final, overwrite, keep_partial, leave_partial)
        except DiskFault as fault:
            if (keep_partial or leave_partial) and partial_folder(final).exists():  # the block may have removed it
                fault.kept = KEPT_FOR_RESUME
            raise


def _new_folder(
    final: Path, overwrite: bool, keep_partial: bool, leave_partial: bool | Callable[[Path], bool]
) -> Iterator[Path]:
    if leads():
        _bring_back(final)
    wait()
    refuse_existing(final, overwrite=overwrite)
    check_place(final)
    partial = partial_folder(final)
    if leads():
        if not keep_partial:
            shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # as /proc says it: there no folder can be made
            raise ValueError(f"output_dir {final} cannot be made in {final.parent}: choose another one") from error
    wait()
    try:
        yield partial
        wait()
        if leads():
            _take_name(partial, final, overwrite=overwrite)
        wait()
    except BaseException as error:
        if leads():
            is_left = leave_partial(partial) if callable(leave_partial) else keep_partial or leave_partial
            if not is_left:
                error.kept = NOTHING_KEPT
                shutil.rmtree(partial, ignore_errors=True)
        raise


def partial_folder(output_dir: str | Path) -> Path:
    """The hidden folder in which `output_dir` is made."""
    final = Path(output_dir)
    return final.with_name(f".{final.name}.partial")


def finish_folder(output_dir: str | Path, *, overwrite: bool) -> None:
    """Give a folder that is complete but for its name the name: its process was killed just before.

    Raises:
        FileExistsError: `output_dir` exists and `overwrite` is false.
    """
    final = Path(output_dir)
    refuse_existing(final, overwrite=overwrite)
    wait()  # until every process has seen the folder under its hidden name
    if leads():
        remove_working_files(partial_folder(final))
        _take_name(partial_folder(final), final, overwrite=overwrite)
    wait()


def refuse_existing(output_dir: str | Path, *, overwrite: bool | None) -> None:
    """Stop where `output_dir` exists and may not be replaced; `overwrite` is None where nothing ever is.

    Raises:
        FileExistsError: it does.
        ValueError: it is no name that a folder can have.
    """
    output = Path(output_dir)
    if not output.name:
        raise ValueError(f"output_dir {str(output_dir)!r} has no name of its own: give a folder that can be made")
    if output.parts[0].startswith("~"):
        raise ValueError(f"output_dir {output} begins with ~, which only a shell replaces: write the path out")
    if not (output.exists() or output.is_symlink()):
        return
    if not overwrite:
        way_out = "" if overwrite is None else ", or add --overwrite to replace it"
        raise FileExistsError(f"output_dir {output} exists: choose another folder{way_out}")
    if output.is_symlink() or not output.is_dir():
        raise FileExistsError(f"output_dir {output} is not a folder, so --overwrite does not replace it: move it away")
    home = Path.home().resolve()
    if output.resolve() in (Path.cwd(), *Path.cwd().parents, home, *home.parents):
        raise FileExistsError(f"output_dir {output} holds the current or the home folder: choose another folder")


def check_place(output_dir: str | Path) -> None:
    """Stop where the folder above cannot be made or written.

    Raises:
        ValueError: it cannot.
    """
    output = Path(output_dir)
    above = next(folder for folder in output.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise ValueError(f"output_dir {output} cannot be made, because {above} is not a folder: choose another one")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"output_dir {output} cannot be made, because {above} may not be written: choose another one")


def refuse_replacing(output_dir: str | Path, inputs: Iterable[str | Path]) -> None:
    """Stop with a FileExistsError where `--overwrite` of `output_dir` would delete a folder that the stage reads."""
    output = Path(output_dir)
    for needed in filter(os.path.exists, map(Path, inputs)):
        if output.exists() and output.resolve() in (needed.resolve(), *needed.resolve().parents):
            raise FileExistsError(
                f"output_dir {output} contains {needed}, which --overwrite would delete: choose another folder"
            )


def is_complete(output_dir: str | Path) -> bool:
    """Whether the folder is the finished result of a stage that writes a record."""
    return all((Path(output_dir) / file).is_file() for file in (RECORD, CONFIG))


def check_same_config(
    folder: str | Path, given: dict, *, name: str | Path | None = None, may_differ: Collection[str] = ()
) -> None:
    """Refuse to take a folder, finished or stopped, for the result of other settings.

    Args:
        folder: holds the `config.yaml` of the settings that made it.
        given: the settings now.
        name: what to call the folder; None is its own name.
        may_differ: keys that do not matter.

    Raises:
        ValueError: `config.yaml` in the folder differs from what is given now; names the first key. Or it is damaged.
    """
    import yaml

    path = Path(folder) / CONFIG
    if not path.is_file():
        return
    with about(f"{path} cannot be read, so nobody can tell of which settings {name or folder} is"):
        made_with = yaml.safe_load(path.read_text()) or {}
    if not isinstance(made_with, dict):
        raise ValueError(f"{path} holds no settings by name: restore it, or start again with --overwrite")
    made_with = without_secrets(made_with)
    # Through YAML and back, so that both sides hold the same types.
    given = yaml.safe_load(yaml.safe_dump(without_secrets(given)))
    free = {"overwrite", "resume", "output_dir", "resume_from_checkpoint", *may_differ}
    for key in sorted({*made_with, *given} - free):
        before, now = made_with.get(key), given.get(key)
        if before != now and [before] != now and before != [now]:
            made = f"without {key}" if before is None else f"with {key} {before!r}"
            is_now = "not given" if now is None else repr(now)
            raise ValueError(
                f"output_dir {name or folder} was made {made}, now it is {is_now}: choose another folder, or replace "
                "it with --overwrite in place of --resume"
            )


def write_config(folder: Path, config: dict) -> None:
    """Write `config.yaml`, what `--config` accepts again: the settings, not how the run was started, and no secrets."""
    import yaml

    settings = {key: value for key, value in config.items() if key not in ("overwrite", "resume")}
    write_whole(folder / CONFIG, yaml.safe_dump(without_secrets(settings), sort_keys=False))


def write_record(folder: Path, stage: str, config: dict, **facts) -> None:
    """Write `config.yaml` (what `--config` accepts again) and `rlhf_lines.json` (stage, versions, facts)."""
    write_config(folder, config)
    record = {"format": 1, "stage": stage, "versions": versions(), **facts}
    # The last file: with it the folder is complete.
    write_whole(folder / RECORD, redact(json.dumps(record, indent=2)) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all, in an existing folder."""
    with whole_file(path) as hidden:
        hidden.write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside `path`, whose file takes that name when the block ends without an error.

    The hidden name keeps the ending, by which some libraries choose a format. It is always the same, so that the next
    run replaces what a killed one left; two runs at once are kept apart by `only_writer`.
    """
    hidden = path.with_name(f".new.{path.name}")
    with named_faults(path, kept="the file is as it was before"):
        try:
            yield hidden
            hidden.replace(path)
        except BaseException:
            hidden.unlink(missing_ok=True)
            raise


def remove_working_files(folder: Path) -> None:
    """Remove what only a run that goes on needs: among it all pickles, of settings, optimizers and random states."""
    of_trainer = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth", "scaler.pt")
    of_fsdp, of_deepspeed = ("optimizer.bin", "pytorch_model_fsdp.bin"), ("*_states.pt",)
    for pattern in (*of_trainer, *of_fsdp, *of_deepspeed, BEGUN, MANIFEST):
        for path in folder.rglob(pattern):
            path.unlink()


def read_record(folder: str | Path) -> dict:
    """What `write_record` wrote, or an empty mapping for a folder that this package did not make."""
    path = Path(folder) / RECORD
    with about(f"record {path} cannot be read"):
        return json.loads(path.read_text()) if path.is_file() else {}


def versions() -> dict[str, str]:
    """The versions of Python, this package and the libraries that its numbers depend on."""
    from rlhf_lines import __version__

    found = {"python": platform.python_version(), "rlhf_lines": __version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _take_name(partial: Path, final: Path, *, overwrite: bool) -> None:
    # safetensors writes files that only their owner can read; a server often runs as somebody else.
    mode = partial.stat().st_mode & 0o666
    for path in partial.rglob("*"):
        if path.is_file():
            path.chmod(mode)
    replaced = _replaced_folder(final)
    if not final.exists():
        partial.rename(final)
        shutil.rmtree(replaced, ignore_errors=True)
        return
    if not overwrite:  # rename() would replace an empty folder that somebody made in the meantime
        raise FileExistsError(f"output_dir {final} appeared meanwhile: choose another folder")
    shutil.rmtree(replaced, ignore_errors=True)
    final.rename(replaced)
    try:
        partial.rename(final)
    except OSError:
        replaced.rename(final)
        raise
    shutil.rmtree(replaced)


def _replaced_folder(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _bring_back(final: Path) -> None:
    """Undo a replacement that was killed between its two renames, and remove what one left that was killed after."""
    if not final.name:  # refused next
        return
    replaced = _replaced_folder(final)
    if replaced.is_dir() and not final.exists() and not final.is_symlink():
        replaced.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)

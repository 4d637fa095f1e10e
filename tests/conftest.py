"""What all tests share: the number of threads, their order, and the look back at the reference vectors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest


# pytest runs two processes side by side. Two torch threads beside another process are up to 20 times slower than
# one, and add up in another order.
os.environ["OMP_NUM_THREADS"] = "1"
# As the command line does: threads that wait sleep, so that a busy machine does not slow the tests down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Hashes are kept apart from those of the user."""
    os.environ["RLHF_LINES_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory):
    """What a test wrote and imported is forgotten after it: the module of the next one may have the same name."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture
def set_threads():
    """The function that sets the number of torch's threads for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def reader(tmp_path, monkeypatch) -> Path:
    """The current folder of who reads the docs: a chat model, and two adapters that call it by its name on the Hub."""
    from tests import tiny

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    model = tiny.chat_model(Path(tiny.CHAT_MODEL))
    for seed, name in enumerate(("dpo-relevant", "grpo-brief"), start=1):
        config = tiny.save_adapter(model, Path(name), seed=seed) / "adapter_config.json"
        named = {"base_model_name_or_path": f"HuggingFaceTB/{tiny.CHAT_MODEL}"}
        config.write_text(json.dumps(json.loads(config.read_text()) | named))
    return tmp_path


@pytest.fixture
def without_pictures(monkeypatch):
    """From here on no sweep draws figures or writes its page: of a tiny one these take longer than all the rest."""
    from rlhf_lines.sweep import run
    from rlhf_lines.sweep.finished import front, score

    for name in ("plot_front", "plot_kl", "plot_validation", "plot_forgetting", "plot_benchmarks"):
        monkeypatch.setattr(front, name, lambda front, *paths: None)
    for module in (run, score):
        monkeypatch.setattr(module, "write_report", lambda folder: None)


def pytest_collection_modifyitems(items):
    """Begin with files that take long: a process that began one at the end would be waited for."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


# --- Every reference vector in the repository is compared with. Tests run in several processes, and each says at its
# end which vectors there are and which of them its tests have asked for.

FOUND = pytest.StashKey[dict[str, set[str]]]()


def pytest_configure(config):
    """Nothing is found yet."""
    config.stash[FOUND] = {"vectors": set(), "compared": set()}


def pytest_sessionfinish(session):
    """Let a run of all tests fail if a vector was not asked for."""
    reference = sys.modules.get("tests.merge.reference")
    here = {"vectors": list(reference.CASES), "compared": list(reference.COMPARED)} if reference else {}
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput.update(here)
        return
    add_found(session.config, here)
    if missed_vectors(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Take what one of the processes says."""
    add_found(node.config, getattr(node, "workeroutput", {}))


def pytest_terminal_summary(terminalreporter, config):
    """Name the vectors that were not asked for."""
    for name in missed_vectors(config):
        terminalreporter.write_line(f"FAILED tests: nothing was compared with the reference vector {name}")


def add_found(config: pytest.Config, found: dict[str, list[str]]) -> None:
    for key, names in config.stash[FOUND].items():
        names.update(found.get(key, ()))


def missed_vectors(config: pytest.Config) -> list[str]:
    """The vectors that no test has asked for; none where only some tests were chosen."""
    chosen = config.option.keyword or config.option.collectonly
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen
    found = config.stash[FOUND]
    return sorted(found["vectors"] - found["compared"]) if whole else []

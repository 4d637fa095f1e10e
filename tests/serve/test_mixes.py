"""Sixteen who ask at once, a mix that leaves while it is used, one that comes back: nothing is lost or made twice."""

from __future__ import annotations

import asyncio
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import dense_residual, load_adapter
from rlhf_lines.serve.folder import ADAPTERS, RECORD, MixFolder, check_free, opened
from rlhf_lines.serve.mixes import Busy, Mixes
from rlhf_lines.serve.names import mix_name
from rlhf_lines.serve.served import read_served
from rlhf_lines.sweep.engines.vllm_adapters import SpecAdapters
from tests.serve.loops import run_coroutine


def name(step: int) -> str:
    return mix_name([step / 1000, 1 - step / 1000], ["helpful", "harmless"])


class Counting(MixFolder):
    """Counts what is really written."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.made = []

    def path(self, spec: MergeSpec):
        if not (self._folder / spec.digest()).exists():
            self.made.append(spec.digest())
        return super().path(spec)


class Server:
    """What vLLM does: it keeps names that it was given, and forgets those that it is told to, when it may."""

    def __init__(self) -> None:
        self.known, self.may_forget = set(), asyncio.Event()
        self.may_forget.set()

    async def forget(self, name: str) -> None:
        self.known.discard(name)
        await self.may_forget.wait()


@pytest.fixture(scope="module")
def served(run):
    return read_served(run, "lines")


@pytest.fixture(scope="module")
def adapters(served):
    return served.swept.load()


@pytest.fixture
def folder(tmp_path, served, adapters):
    with opened(tmp_path / "mixes", {"format": 1}) as place:
        yield Counting(place, SpecAdapters(place, adapters, served.swept.sft, "float32"))


def digests(served, *steps: int) -> list[str]:
    return [served.spec(name(step)).digest() for step in steps]


async def settled(mixes: Mixes) -> None:
    while mixes._tasks:
        await asyncio.gather(*mixes._tasks)


def test_a_mix_is_the_merge_and_is_made_once_for_sixteen_who_ask_at_once(served, folder, models):
    async def ask():
        mixes = Mixes(served.spec, folder, Server().forget, most=4)
        spellings = ["mix/helpful=0.3,harmless=0.7", "mix/harmless=0.70,helpful=.3", name(300), name(600)]
        return await asyncio.gather(*(mixes.path(spellings[k % 4]) for k in range(16)))

    paths = run_coroutine(ask())
    assert len(folder.made) == 2
    assert len(set(paths)) == 2 and len(set(paths[0:3])) == 1
    adapter, policies = load_adapter(paths[0]), [load_adapter(models / one) for one in ("helpful", "harmless")]
    for module in adapter.modules:
        layer = int(module.split(".")[2])
        factor = 0.5 + (layer / 3) ** 0.5  # alpha 0.5, beta 1, schedule sqrt, of four layers
        expected = factor * sum(
            w * dense_residual(one, module).double() for w, one in zip((0.3, 0.7), policies, strict=True)
        )
        assert (dense_residual(adapter, module) - expected).abs().max() < 1e-6


def test_the_least_recently_used_one_leaves(served, folder):
    async def ask():
        mixes = Mixes(served.spec, folder, Server().forget, most=3)
        for step in (100, 200, 300):
            await mixes.path(name(step))
        mixes.touch(name(100))
        mixes.touch("mix/helpful=1")  # not known: no matter
        await mixes.path(name(400))  # in place of 200
        await settled(mixes)
        assert sorted(folder.digests()) == sorted(digests(served, 100, 300, 400))
        await mixes.path(name(200))  # in place of 300
        await settled(mixes)
        assert sorted(folder.digests()) == sorted(digests(served, 100, 200, 400))

    run_coroutine(ask())
    assert len(folder.made) == 5


def test_a_mix_stays_on_disk_while_it_may_be_in_use_and_the_disk_is_bounded(served, folder):
    async def ask():
        server = Server()
        server.may_forget.clear()
        mixes = Mixes(served.spec, folder, server.forget, most=2)
        for step in (100, 200, 300, 400):
            await mixes.path(name(step))
            await asyncio.sleep(0.01)
        assert sorted(folder.digests()) == sorted(digests(served, 100, 200, 300, 400))
        with pytest.raises(Busy, match="2 mixes are known, and as many"):
            await mixes.path(name(500))
        await mixes.path(name(400))  # those that are known are there
        assert len(folder.digests()) == 4
        server.may_forget.set()
        await settled(mixes)
        assert sorted(folder.digests()) == sorted(digests(served, 300, 400))
        await mixes.path(name(500))

    run_coroutine(ask())


def test_a_mix_that_is_asked_for_again_while_it_leaves_stays(served, folder):
    async def ask():
        server = Server()
        server.may_forget.clear()
        mixes = Mixes(served.spec, folder, server.forget, most=2)
        for step in (100, 200, 300, 100):  # 100 leaves for 300, and comes back in place of 200
            path = await mixes.path(name(step))
        server.may_forget.set()
        await settled(mixes)
        assert path.is_dir()
        assert sorted(folder.digests()) == sorted(digests(served, 300, 100))

    run_coroutine(ask())
    assert len(folder.made) == 3


def test_a_mix_that_leaves_twice_is_removed_after_the_second_time(served, folder):
    async def ask():
        waits = []

        async def forget(name: str) -> None:
            waits.append(asyncio.Event())
            await waits[-1].wait()

        mixes = Mixes(served.spec, folder, forget, most=2)
        for step in (100, 200, 300, 100):  # 100 leaves, 200 leaves, 100 is back
            await mixes.path(name(step))
            await asyncio.sleep(0)
        waits[1].set()
        await asyncio.sleep(0.05)
        for step in (300, 400):  # 300 is used again: 100 leaves a second time
            await mixes.path(name(step))
            await asyncio.sleep(0)
        waits[0].set()  # who asked for it the first time is done
        await asyncio.sleep(0.05)
        assert digests(served, 100)[0] in folder.digests()
        waits[2].set()
        await settled(mixes)
        assert sorted(folder.digests()) == sorted(digests(served, 300, 400))

    run_coroutine(ask())


def test_two_names_of_one_mix_hold_it_together(served, folder):
    async def ask():
        mixes = Mixes(served.spec, folder, Server().forget, most=2)
        for one in (name(500), "mix/helpful=.5,harmless=.5", name(700)):  # the first name leaves, the mix stays
            await mixes.path(one)
        await settled(mixes)
        assert sorted(folder.digests()) == sorted(digests(served, 500, 700))
        await mixes.path(name(800))
        await settled(mixes)
        assert sorted(folder.digests()) == sorted(digests(served, 700, 800))

    run_coroutine(ask())


def test_what_an_earlier_server_has_made_is_used_within_the_bound(served, folder):
    async def make():
        mixes = Mixes(served.spec, folder, Server().forget, most=4)
        for step in (100, 200, 300, 400):
            await mixes.path(name(step))

    async def ask():
        for most in (7, 5, 4):
            Mixes(served.spec, folder, Server().forget, most=most)
            assert folder.digests() == digests(served, 100, 200, 300, 400)
        mixes = Mixes(served.spec, folder, Server().forget, most=2)
        assert folder.digests() == digests(served, 300, 400)
        await mixes.path(name(300))
        await mixes.path(name(600))  # in place of 400, which nobody has asked for
        await settled(mixes)
        assert folder.digests() == digests(served, 300, 600)

    run_coroutine(make())
    for age, digest in enumerate(digests(served, 400, 300, 200, 100)):  # not by the clock of a fast disk
        os.utime(folder._folder / digest, (1e9 - age, 1e9 - age))
    run_coroutine(ask())
    assert len(folder.made) == 5


def test_a_mix_that_cannot_be_made_is_not_known(served, folder, monkeypatch):
    async def ask():
        mixes = Mixes(served.spec, folder, Server().forget, most=1)
        with monkeypatch.context() as patched:
            patched.setattr(SpecAdapters, "path", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
            with pytest.raises(OSError, match="No space"):
                await mixes.path(name(100))
        with pytest.raises(ValueError, match="sum to"):
            await mixes.path("mix/helpful=0.5")
        assert not mixes._known
        assert (await mixes.path(name(100))).is_dir()

    run_coroutine(ask())


# --- The folder.


def test_mixes_of_other_policies_are_removed_and_those_of_the_same_stay(tmp_path, served, adapters):
    place, spec = tmp_path / "mixes", served.spec(name(300))
    with opened(place, {"of": 1}) as folder:
        path = MixFolder(folder, SpecAdapters(folder, adapters, served.swept.sft, "float32")).path(spec)
    (place / ADAPTERS / ".0123456789ab.partial").mkdir()
    (place / ADAPTERS / ".0123456789ab.lock").touch()
    with opened(place, {"of": 1}):
        assert [each.name for each in (place / ADAPTERS).iterdir()] == [path.name]
        with ThreadPoolExecutor(1) as another, pytest.raises(FileExistsError, match="in use by another run"):
            another.submit(opened(place, {"of": 2}).__enter__).result()
    with opened(place, {"of": 2}):
        assert not list((place / ADAPTERS).iterdir())


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match=f"holds something else than the mixes .*{RECORD}"):
        check_free(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        check_free(tmp_path / "thesis.txt")
    with pytest.raises(ValueError, match="holds something else"), opened(tmp_path, {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_removal_that_was_killed_leaves_no_mix(tmp_path, served, adapters, monkeypatch):
    with opened(tmp_path / "mixes", {}) as folder:
        mixes = MixFolder(folder, SpecAdapters(folder, adapters, served.swept.sft, "float32"))
        path = mixes.path(served.spec(name(300)))
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", lambda *_, **__: None)
            mixes.remove(path.name)
        assert mixes.digests() == []
        mixes.remove(path.name)
        assert mixes.path(served.spec(name(300))) == path

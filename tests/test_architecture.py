"""Who may import whom: read from the source of every module, imports inside functions and by text included.

What stands under `if TYPE_CHECKING:` is left out, because it never runs.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest


# The house, from the roof to the ground. A room imports from the floors below it, and from no other room of its floor.
# A module is in the room of the longest name that it begins with; `__init__` is what a package shows to others.
FLOORS = """
scripts
__main__
cli
demo
shipped
summary           plan
stages            serve             evaluation
learn
learn.config
sweep
sweep.finished    sweep.engines
sweep.config      sweep.store    sweep.merges
sweep.policy_sets sweep.trackers   sweep.completion_config
sweep.choices
sweep.router
pareto.report     statistics     train
pareto.__init__
pareto.figures
pareto
merge.__init__    merge.stage
merge
merge.output
merge.job
merge.lora
merge.spec
merge.lines
merge.rules
merge.inputs
merge.tensors     merge.layers   merge.schedules
demo_models       example
scoring
data              task_rewards
arguments
artifact          config         models         sampling    completions    skeleton    sha256
config_file       disk           limits         lock           progress    redaction   known_hashes   native_dtypes
reading
__init__          distributed    noise         reward_models  lazily
key_cache
errors
"""
FREE_OF_TRL = ("merge", "pareto", "reward_models", "statistics")

PACKAGES = ("rlhf_lines", "reward_models", "scripts")
ROOT = Path(__file__).parents[1]
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS.strip().splitlines()) for room in rooms.split()}


class Import(NamedTuple):
    """Module `importer` takes `name` (None: the whole module) from module `imported`, in this line."""

    importer: str
    imported: str
    name: str | None
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.imported} {self.name or ''}".rstrip()


def our_modules() -> dict[str, ast.Module]:
    """Name (`sweep.run`; a package is `sweep.__init__`) to syntax tree; `rlhf_lines` is left out of names."""
    paths = [path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")]
    assert len(paths) > 100, "the source is here"
    return {
        short(".".join(path.relative_to(ROOT).with_suffix("").parts)): ast.parse(path.read_text()) for path in paths
    }


def short(dotted: str) -> str:
    return dotted.removeprefix("rlhf_lines.")


def running(node: ast.AST):
    """All nodes below this one but those under `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


def module_of(dotted: str) -> str | None:
    """The module of ours with this name, or None."""
    if dotted.split(".")[0] not in PACKAGES:
        return None
    return next((name for name in (short(dotted), short(f"{dotted}.__init__")) if name in MODULES), None)


def imports_of(importer: str, tree: ast.Module) -> list[Import]:
    """What a module imports of ours."""
    found = []
    aliases: dict[str, str] = {}  # local name of a module to its own
    nodes = list(running(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}, line {node.lineno}: an import with leading dots is not read here"
            for alias in node.names:
                if (whole := module_of(f"{node.module}.{alias.name}")) is not None:
                    found.append(Import(importer, whole, None, node.lineno))
                    aliases[alias.asname or alias.name] = whole
                elif (module := module_of(node.module)) is not None:
                    found.append(Import(importer, module, alias.name, node.lineno))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if (module := module_of(alias.name)) is not None:
                    found.append(Import(importer, module, None, node.lineno))
                    aliases[alias.asname or alias.name] = module
        elif (
            isinstance(node, ast.Constant)
            and (module := module_of(str(node.value))) is not None
            and not importer.startswith(module.removesuffix("__init__"))  # its own package, where its data files are
        ):
            found.append(Import(importer, module, None, node.lineno))  # a text, as in stages.MODULES
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            found.append(Import(importer, aliases[node.value.id], node.attr, node.lineno))
    return found


def room_of(module: str) -> str:
    """The room of a module.

    Raises:
        ValueError: it has none.
    """
    rooms = [room for room in HEIGHT if f"{module}.".startswith(f"{room}.")]
    if not rooms:
        raise ValueError(f"{module} has no room: say in FLOORS who may import it")
    return max(rooms, key=len)


MODULES = our_modules()
IMPORTS = [found for name, tree in MODULES.items() for found in imports_of(name, tree)]


def test_a_module_imports_from_lower_floors_or_its_own_room():
    upwards = [
        str(found)
        for found in IMPORTS
        if (own := room_of(found.importer)) != (other := room_of(found.imported)) and HEIGHT[own] <= HEIGHT[other]
    ]
    assert upwards == []


def test_no_imports_form_a_circle():
    graph = {name: {found.imported for found in IMPORTS if found.importer == name} for name in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_no_module_takes_a_private_name_of_another():
    private = [
        str(found)
        for found in IMPORTS
        if any(
            part.startswith("_") and not part.startswith("__")
            for part in (*found.imported.split("."), found.name or "")
        )
    ]
    assert private == []


@pytest.mark.parametrize("package", FREE_OF_TRL)
def test_a_front_and_a_merge_need_no_trainer(package):
    """Directly: of everything that such a module imports, `config` alone has a function that imports TRL."""
    found = [
        f"{name}, line {node.lineno}"
        for name, tree in MODULES.items()
        if f"{name}.".startswith(f"{package}.")
        for node in running(tree)
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "trl" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "trl")
    ]
    assert found == []


def test_imports_inside_functions_and_by_text_are_seen():
    """Else the tests above would pass a module that hides its imports."""
    seen = {(found.importer, found.imported) for found in IMPORTS}
    assert {("stages", "train.ppo"), ("stages", "sweep.run"), ("cli", "demo"), ("scripts.sweep", "cli")} <= seen

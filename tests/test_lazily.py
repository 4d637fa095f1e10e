"""Packages show what their modules hold, and import it when it is asked for."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from rlhf_lines.lazily import exports


PACKAGES = ["rlhf_lines.merge", "rlhf_lines.pareto", "rlhf_lines.statistics"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_shows_all_that_it_names(package):
    shown = importlib.import_module(package)
    assert all(hasattr(shown, name) for name in shown.__all__)
    assert len(set(shown.__all__)) == len(shown.__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_is_also_that_of_a_module(package):
    """Once imported, the module would stand in its place."""
    shown = importlib.import_module(package)
    assert not set(shown.__all__) & {module.name for module in pkgutil.iter_modules(shown.__path__)}


def test_another_name_is_no_attribute():
    find = exports("here", {"json": ["dumps"]})
    with pytest.raises(AttributeError, match="module 'here' has no attribute 'loads'"):
        find("loads")

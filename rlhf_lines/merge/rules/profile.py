"""Options of rules `layerwise` and `ties_layerwise` as a value: a factor for every policy and layer, and outside them.

Known without torch, so that configs are checked without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from rlhf_lines.errors import counted
from rlhf_lines.merge.tensors.largest import LARGEST


KEYS = ("factors", "outside")
EXPECTED = "expected a list of numbers per policy, one per layer"


@dataclass(frozen=True)
class Profile:
    """What multiplies the residual of every policy, by depth.

    >>> profile = Profile.of({"factors": [[0.5, 1], [1, 2]], "outside": [0, 1]})
    >>> profile.at(1), profile.at(None)
    ((1.0, 2.0), (0.0, 1.0))

    Attributes:
        factors: c[k][l] of policy k in layer l, K rows of L numbers.
        outside: K factors of what lies outside the layers.
    """

    factors: tuple[tuple[float, ...], ...]
    outside: tuple[float, ...]

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Profile:
        """The profile that options stand for.

        Raises:
            ValueError: one is missing, not of numbers that float32 holds, or they are not of one shape.
        """
        rows, outside = (options.get(key) for key in KEYS)
        if rows is None or outside is None:
            missing = " and ".join(key for key in KEYS if options.get(key) is None)
            raise ValueError(
                f"a rule with factors by layer has no {missing}: give factors, a list per policy with one number per "
                "layer, and outside, one number per policy, or a JSON file of both as factors"
            )
        if isinstance(rows, str):
            raise ValueError(f"factors is the text {rows!r}, {EXPECTED}; `read_profile` reads a file of them")
        if not _is_list(rows) or not rows or not all(_is_list(row) and row for row in rows):
            raise ValueError(f"factors is {rows!r}, {EXPECTED}")
        if not _is_list(outside):
            raise ValueError(f"outside is {outside!r}, expected a list of one number per policy")
        if len({len(row) for row in rows}) > 1:
            raise ValueError(f"factors has rows of {[len(row) for row in rows]} numbers, {EXPECTED}, in all of them")
        if len(rows) != len(outside):
            raise ValueError(
                f"factors are of {counted(len(rows), 'policy', 'policies')}, outside of {len(outside)}: give both "
                "one entry per policy"
            )
        named = [(f"factors[{k}][{i}]", value) for k, row in enumerate(rows) for i, value in enumerate(row)]
        for name, value in [*named, *((f"outside[{k}]", value) for k, value in enumerate(outside))]:
            if isinstance(value, bool) or not isinstance(value, Real) or not abs(value) <= LARGEST:
                raise ValueError(f"{name} is {value!r}, expected a finite number that float32 holds")
        return cls(tuple(map(_numbers, rows)), _numbers(outside))

    def to_options(self) -> dict[str, Any]:
        """The options that the profile was made of, as plain JSON values."""
        return {"factors": [list(row) for row in self.factors], "outside": list(self.outside)}

    def check(self, *, policies: int | None = None, num_layers: int | None = None) -> None:
        """Stop where it is of other numbers of policies or layers.

        Raises:
            ValueError: it is; both numbers are named.
        """
        if policies is not None and policies != len(self.factors):
            raise ValueError(
                f"the factors by layer are of {counted(len(self.factors), 'policy', 'policies')}, but {policies} are "
                "merged: give one list of factors per policy, in their order"
            )
        if num_layers is not None and num_layers != self.num_layers:
            raise ValueError(
                f"the factors by layer are of {self.num_layers} layers, but the policies change a model of "
                f"{num_layers}: give one factor per layer"
            )

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.factors[0])

    def at(self, layer: int | None) -> tuple[float, ...]:
        """The K factors in a layer, counted from 0; None is outside the layers."""
        return self.outside if layer is None else tuple(row[layer] for row in self.factors)

    def vector(self) -> list[float]:
        """The factors of every policy one after the other, each first outside the layers, then in each layer."""
        return [value for k, row in enumerate(self.factors) for value in (self.outside[k], *row)]

    def scaled(self, scales: Sequence[float]) -> Profile:
        """The profile with the factors of every policy multiplied by a number."""
        rows = [[scale * factor for factor in row] for scale, row in zip(scales, self.factors, strict=True)]
        outside = [scale * factor for scale, factor in zip(scales, self.outside, strict=True)]
        return Profile(tuple(map(_numbers, rows)), _numbers(outside))

    def of_policies(self, places: Sequence[int]) -> Profile:
        """The profile of some of the policies, in this order."""
        return Profile(tuple(self.factors[k] for k in places), tuple(self.outside[k] for k in places))


def options_text(options: Mapping[str, Any]) -> str:
    """The options of a rule on a line: as JSON, of a profile its shape, range and a hash of its numbers.

    >>> options_text({"density": 0.2}), options_text({"factors": [[0.5, 1], [1, 2]], "outside": [0, 1]})
    ('{"density": 0.2}', 'factors of 2 policies in 2 layers, 0.5 to 2 (a30b1095)')
    """
    if not set(KEYS) <= options.keys():
        return json.dumps(dict(options), sort_keys=True, ensure_ascii=False)
    profile = Profile.of(options)
    values = [factor for row in profile.factors for factor in row]
    sha256 = hashlib.sha256(json.dumps(profile.to_options()).encode()).hexdigest()
    policies = f"{len(profile.factors)} polic{'ies' if len(profile.factors) > 1 else 'y'}"
    text = f"factors of {policies} in {profile.num_layers} layers, {min(values):zg} to {max(values):zg} ({sha256[:8]})"
    return ", ".join([text, *(f"{name} {value}" for name, value in sorted(options.items()) if name not in KEYS)])


def read_profile(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with the content of the file that `factors` names; without one, the options as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON of `factors` and `outside`, and what else the rule takes, or an option of the file is
            given beside it.
    """
    path = options.get("factors")
    if not isinstance(path, str):
        return options
    if "outside" in options:
        raise ValueError(f"factors is the file {path}, which has {' and '.join(KEYS)}: leave out outside")
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"factors is {path!r}, and there is no such file; `rlhf-lines learn` writes one, or write "
            '{"factors": [[..] per policy, a number per layer], "outside": [a number per policy]}'
        )
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"the file of factors {path} is no JSON: {error}") from None
    if not isinstance(content, dict) or not set(KEYS) <= content.keys():
        has = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"the file of factors {path} holds {has}, expected the keys {' and '.join(KEYS)}")
    if twice := sorted((options.keys() - {"factors"}) & content.keys()):
        raise ValueError(f"factors is the file {path}, which has {' and '.join(twice)}, too: leave it out")
    return {**options, **content}


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _numbers(values: Sequence[Real]) -> tuple[float, ...]:
    """Floats, of which zero has one sign: equal profiles are written alike."""
    return tuple(float(value) + 0.0 for value in values)

"""Every shipped config fits its stage; files and flags end up where they belong, and nothing else does."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

import pytest
import yaml

from rlhf_lines.arguments import parse
from rlhf_lines.artifact import write_record
from rlhf_lines.config import RunConfig, parse_size, read_fields
from rlhf_lines.data.config import (
    DataConfig,
    DemonstrationDataConfig,
    PreferenceDataConfig,
    PromptDataConfig,
    TrainingDataConfig,
)
from rlhf_lines.learn.config import LearnConfig
from rlhf_lines.merge.config import MergeConfig
from rlhf_lines.stages import MODULES, configs_of
from rlhf_lines.statistics.config import FisherConfig, GramConfig, StatisticsConfig
from rlhf_lines.sweep.choices import GroupEntry, Scaling
from rlhf_lines.sweep.config import SweepConfig
from rlhf_lines.task_rewards import RewardEntry
from rlhf_lines.train.config import RewardsConfig


CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "accelerate")
VERB_OF = {"base": "sft", **{name: name for name in ("sft", "reward", "ppo", "sweep", "merge", "learn")}}


def verb_of(path: Path) -> str:
    return VERB_OF[path.stem.split("_")[0]]


def values_of(configs: tuple) -> dict:
    """The value of every key, and the function from what a file says of a key to its value, where there is one."""
    return {
        entry.name: (getattr(config, entry.name), entry.metadata.get("parse"))
        for config in configs
        for entry in fields(config)
    }


@dataclass
class ThingConfig:
    """A stage of its own, so that the tests do not depend on the fields of a real one."""

    output_dir: str = field(metadata={"help": "Where."})
    policies: list[str] = field(metadata={"help": "Several."})
    weights: list[float] = field(default_factory=lambda: [0.5, 0.5], metadata={"help": "Numbers."})
    steps: int = field(default=7, metadata={"help": "A count."})
    rate: float = field(default=1e-4, metadata={"help": "A number."})
    note: str | None = field(default=None, metadata={"help": "A text."})


TYPES = (RunConfig, ThingConfig)
REQUIRED = {"output_dir": "out", "policies": ["a", "b"]}


@pytest.fixture
def parse_thing(tmp_path):
    """A function from the content of a config file (text or mapping) and flags to what `parse` returns."""

    def run(content, *flags: str):
        path = tmp_path / "thing.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return parse(TYPES, ["--config", str(path), *flags], prog="rlhf-lines thing")

    return run


# --- the configs that come with the project ---


def test_the_shipped_configs_are_found():
    assert len(FILES) >= 6
    assert {"sft", "reward", "ppo", "sweep"} <= {verb_of(path) for path in FILES}
    assert (CONFIGS / "demo" / "sweep.yaml") in FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_shipped_config_fits_its_stage(path, tmp_path):
    verb, content = verb_of(path), yaml.safe_load(path.read_text())
    # transformers refuses bf16 where there is no accelerator; every other key and value is checked here.
    flags = ["--bf16", "false"] if content.get("bf16") else []
    configs, given = parse(configs_of(verb), ["--config", str(path), *flags], prog=f"rlhf-lines {verb}")
    assert given == {**content, **({"bf16": False} if flags else {})}
    values = values_of(configs)
    for key, value in given.items():
        got, read = values[key]
        # transformers reads report_to: none as an empty list, and holds enums whose value is what the file says.
        expected = [] if (key, value) == ("report_to", "none") else list(map(read, value)) if read else value
        assert getattr(got, "value", got) == expected, key
    # What is written beside the artifact says the same.
    write_record(tmp_path, verb, given)
    written = str(tmp_path / "config.yaml")
    again, given_again = parse(configs_of(verb), ["--config", written], prog=f"rlhf-lines {verb}")
    assert given_again == given
    # TRL's configs name a run after the time where no name is given.
    for one, other in zip(configs, again, strict=True):
        assert {**asdict(one), "logging_dir": None} == {**asdict(other), "logging_dir": None}


# --- what a field accepts ---


def halves(item: str | list) -> tuple[str, str]:
    """What an item of `pairs` below means: the parts of `a/b`, or of a list."""
    parts = tuple(item.split("/") if isinstance(item, str) else item)
    if len(parts) != 2:
        raise ValueError(f"pairs holds {item!r}, expected two parts")
    return parts


@dataclass
class PairsConfig:
    """Fields of other types than texts and numbers."""

    pairs: list[tuple[str, str]] = field(metadata={"help": "Several.", "parse": halves})
    room: int | None = field(default="2KB", metadata={"help": "One.", "parse": parse_size})
    given: dict = field(init=False)

    def __post_init__(self):
        self.given = read_fields(self)


def test_a_field_holds_what_its_annotation_says_wherever_its_value_is_from(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text("pairs: [a/b, [c, d]]\nroom: null\n")
    (config,), given = parse((PairsConfig,), ["--config", str(path)], prog="pairs")
    assert (config.pairs, config.room) == ([("a", "b"), ("c", "d")], None)
    assert given == config.given == {"pairs": ["a/b", ["c", "d"]], "room": None}
    (config,), given = parse((PairsConfig,), ["--pairs", "a/b", "c/d", "--room", "1KB"], prog="pairs")
    assert (config.pairs, config.room) == ([("a", "b"), ("c", "d")], 1000)
    assert given == {"pairs": ["a/b", "c/d"], "room": "1KB"}
    path.write_text("pairs: a/b\n")  # one is a list of one
    (config,), given = parse((PairsConfig,), ["--config", str(path)], prog="pairs")
    assert (config.pairs, config.room, given) == ([("a", "b")], 2000, {"pairs": "a/b"})
    assert PairsConfig([["a", "b"]]).pairs == [("a", "b")]


def test_all_fields_that_mean_nothing_are_told():
    with pytest.raises(ValueError, match=r"2 problems: \(1\) pairs holds 'a', expected two parts; \(2\) 'x' is no"):
        PairsConfig(["a"], "x")
    with pytest.raises(ValueError, match=r"^pairs is empty, expected a value$"):
        PairsConfig(None)


# --- configs made in Python ---

MADE = [
    RewardsConfig([RewardEntry("rule:length", weight=2.0), "m:f"]),
    MergeConfig(
        "sft", ["a", "b"], "dense", "out", rule="ties", rule_options='{"density": 0.5}', alpha="0.5",
        max_shard_size="2GB", max_memory="1GiB",
    ),
    SweepConfig(
        "sft", ["a", "b"], [RewardEntry("rule:length"), RewardEntry("m:f", options={"n": 3})], "out",
        sampler="list", weights=["0.3 0.7", (0.5, 0.5)], alphas=["auto", 1],
        scalings=["1 0.5 sqrt", Scaling("auto", 1.0)],
        groups=[GroupEntry("t", "ties", alpha="0.5"), {"name": "f", "rule": "fisher", "statistics": ["x", "y"]}],
    ),
    SweepConfig("sft", ["a", "b"], ["rule:length", "m:f"], "out", engine="vllm", vllm='{"tensor_parallel_size": 2}'),
    LearnConfig("sft", ["a", "b"], [RewardEntry("rule:length"), "m:f"], "out", preference=[0.3, 0.7]),
    *(kind("rows.jsonl", test_size="0.25") for kind in (TrainingDataConfig, PreferenceDataConfig)),
    *(
        kind("rows.jsonl", test_size=4, chat_template_kwargs='{"enable_thinking": false}')
        for kind in (PromptDataConfig, DemonstrationDataConfig)
    ),
    *(kind("sft", "policy", "out", max_memory="2GB") for kind in (StatisticsConfig, FisherConfig, GramConfig)),
]  # fmt: skip


def test_every_config_that_reads_its_fields_is_made():
    of_stages = {kind for verb in MODULES for kind in configs_of(verb)}
    reading = {kind for kind in of_stages if any("parse" in entry.metadata for entry in fields(kind))}
    assert reading <= {type(made) for made in MADE}


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_a_config_may_be_given_what_its_fields_hold(made):
    assert replace(made) == made
    for entry in fields(made):
        assert replace(made, **{entry.name: getattr(made, entry.name)}) == made, entry.name
    values = {entry.name: getattr(made, entry.name) for entry in fields(made)}
    assert type(made)(**values) == made
    json.dumps(getattr(type(made)(**values), "given", None))


def test_a_changed_copy_of_a_sweep_was_given_what_its_source_was():
    """The run store compares this letter by letter, so that the copy goes on with what the source began."""
    source = SweepConfig("sft", ["a", "b"], ["rule:length", {"model": "m:f"}], "out", scalings=["1 0.5", "auto 1"])
    copy = replace(source, seed=3)
    assert copy.given == {**source.given, "seed": 3} and copy.given["alphas"] == ["0.5", "1.0"]
    assert replace(copy, alphas=[0.25]).given == {**copy.given, "alphas": [0.25]}
    typed = replace(copy, rewards=[RewardEntry("rule:length"), RewardEntry("m:g", dtype="bfloat16")])
    assert typed.given["rewards"] == [{"model": "rule:length"}, {"model": "m:g", "dtype": "bfloat16"}]
    assert replace(copy, groups=[GroupEntry("t", "ties")]).given["groups"] == [{"name": "t", "rule": "ties"}]


# --- files and flags ---


def test_flags_win_over_the_file_and_the_file_over_defaults(parse_thing):
    content = {**REQUIRED, "steps": 3, "rate": 0.5, "weights": [0.1, 0.9]}
    (run_config, thing), given = parse_thing(
        content, "--steps", "4", "--weights", "0.2", "0.3", "0.5", "--overwrite", "--note", "hello"
    )
    assert thing == ThingConfig("out", ["a", "b"], [0.2, 0.3, 0.5], 4, 0.5, "hello")
    assert run_config == RunConfig(overwrite=True, resume=False)
    assert given == {**content, "steps": 4, "weights": [0.2, 0.3, 0.5], "overwrite": True, "note": "hello"}


def test_given_holds_no_defaults(parse_thing):
    _, given = parse_thing(REQUIRED)
    assert given == REQUIRED
    configs, given = parse(TYPES, ["--output_dir", "out", "--policies", "a"], prog="rlhf-lines thing")
    assert given == {"output_dir": "out", "policies": ["a"]}
    assert configs[1].weights == [0.5, 0.5]
    # A flag that repeats its default was given nonetheless.
    assert parse_thing(REQUIRED, "--steps", "7")[1] == {**REQUIRED, "steps": 7}


def test_the_config_flag_may_stand_anywhere(tmp_path):
    path = tmp_path / "thing.yaml"
    path.write_text(yaml.safe_dump(REQUIRED))
    for arguments in (["--steps", "2", "--config", str(path)], ["--config", str(path), "--steps", "2"]):
        (_, thing), given = parse(TYPES, arguments, prog="rlhf-lines thing")
        assert (thing.steps, given) == (2, {**REQUIRED, "steps": 2})


def test_the_written_config_parses_to_the_same(parse_thing, tmp_path):
    configs, given = parse_thing({**REQUIRED, "note": "a: 'b' # c"}, "--weights", "1", "0", "--rate", "1e-3")
    # How the run was started is no setting: made again from this file, it would resume or replace unasked.
    write_record(tmp_path, "thing", {**given, "resume": True, "overwrite": True})
    again, given_again = parse(TYPES, ["--config", str(tmp_path / "config.yaml")], prog="rlhf-lines thing")
    assert again == configs and given_again == given


def test_numbers_that_yaml_reads_as_text_are_numbers(parse_thing):
    (_, thing), _ = parse_thing("output_dir: out\npolicies: [a]\nrate: 1e-3\nweights: [1e-3, 1]\n")
    assert (thing.rate, thing.weights) == (1e-3, [1e-3, 1.0])


def test_one_value_is_a_list_of_one_as_on_the_command_line(parse_thing):
    """A folder that is given without brackets was taken for a list of its letters."""
    (_, thing), given = parse_thing({**REQUIRED, "policies": "outputs/a", "weights": 1})
    assert (thing.policies, thing.weights) == (["outputs/a"], [1.0])
    assert given["policies"] == "outputs/a"


def test_every_required_field_is_asked_for():
    required = [entry.name for entry in fields(ThingConfig) if entry.default is entry.default_factory is MISSING]
    assert required == ["output_dir", "policies"]
    with pytest.raises(ValueError, match=r"required: --output_dir.*, --policies; see rlhf-lines thing --help"):
        parse(TYPES, [], prog="rlhf-lines thing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**REQUIRED, "stepz": 3}, r"thing.yaml, line 5: unknown key 'stepz': did you mean 'steps'\?"),
        ({**REQUIRED, "qqq": 3}, "unknown key 'qqq': see rlhf-lines thing --help"),
        ({**REQUIRED, 12: 3}, "unknown key '12'"),
        ({**REQUIRED, "env": {"HOME": "/"}}, "unknown key 'env'"),
        ({**REQUIRED, "help": True}, "unknown key 'help'"),
        ({**REQUIRED, "steps": "abc"}, "thing.yaml, line 5: steps holds 'abc', expected a whole number"),
        ({**REQUIRED, "steps": 3.5}, "thing.yaml, line 5: steps holds 3.5, expected a whole number"),
        ({**REQUIRED, "steps": [3]}, r"thing.yaml, line 5: steps holds \[3\], expected one value"),
        ({**REQUIRED, "steps": {"a": 3}}, "thing.yaml, line 5: steps holds {'a': 3}, expected one value"),
        ({**REQUIRED, "steps": float("inf")}, "thing.yaml, line 5: steps holds inf, expected a whole number"),
        (
            {**REQUIRED, "policies": [["a", "b"]]},
            r"thing.yaml, line \d: policies holds \['a', 'b'\], expected one value",
        ),
        ({**REQUIRED, "policies": None}, "thing.yaml, line 2: policies is empty, expected a value"),
        ({**REQUIRED, "output_dir": None}, "thing.yaml, line 1: output_dir is empty, expected a value"),
        ({**REQUIRED, "weights": [0.5, "x"]}, "thing.yaml, line 5: weights holds 'x', expected a number"),
        ({**REQUIRED, "overwrite": "maybe"}, "overwrite.*'?maybe'?"),
        ("- a\n- b\n", "thing.yaml must be a mapping of keys to values .*, but holds a list"),
        ("", "thing.yaml must be a mapping of keys to values .*, but holds nothing"),
        ("a: [1\nb: 2", "thing.yaml is not valid YAML"),
        ("a: \0", "thing.yaml is not valid YAML"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_mistakes_in_the_file_are_named(parse_thing, content, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_thing(content)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_no_yaml(tmp_path):
    path = tmp_path / "weights.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"weights.yaml is not valid YAML"):
        parse(TYPES, ["--config", str(path)], prog="rlhf-lines thing")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stepz", "3"], r"^unknown flag '--stepz': did you mean '--steps'\? see rlhf-lines thing --help"),
        (["--step", "3"], "unknown flag '--step'"),  # no abbreviations: a new flag would change what they mean
        (["--steps", "abc"], "argument --steps: invalid int value: 'abc'"),
        (["--steps"], "argument --steps: expected one argument"),
        (["stray"], "'stray' belongs to no flag"),
        (["--config"], "--config needs the path of a YAML file after it"),
    ],
)
def test_mistakes_on_the_command_line_are_named(flags, message):
    with pytest.raises(ValueError, match=message):
        parse(TYPES, ["--output_dir", "out", "--policies=a", *flags], prog="rlhf-lines thing")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"config file {tmp_path / 'no.yaml'} does not exist"):
        parse(TYPES, ["--config", str(tmp_path / "no.yaml")], prog="rlhf-lines thing")


def test_a_merge_record_is_a_config_of_stage_merge_alone(tmp_path):
    path = tmp_path / "merge_spec.json"
    path.write_text('{"format": 1, "spec": {}, "policies": []}')
    with pytest.raises(ValueError, match=f"merge record {path} lacks sft_model"):
        parse(configs_of("merge"), ["--config", str(path)], prog="rlhf-lines merge")
    with pytest.raises(ValueError, match="line 1: unknown key 'format'"):
        parse(TYPES, ["--config", str(path)], prog="rlhf-lines thing")


def test_every_stage_names_its_data_alike_and_takes_no_setting_that_it_ignores():
    everywhere = {"dataset_name", "dataset_path", "prompt_template", "max_prompt_length", "test_size"}
    expected = {
        "sft": everywhere | {"max_samples", "chat_template_kwargs"},
        "ppo": everywhere | {"max_samples"},
        "reward": everywhere | {"max_samples", "preference"},
        "sweep": everywhere | {"chat_template_kwargs"},
    }
    for verb, names in expected.items():
        data = next(config for config in configs_of(verb) if issubclass(config, DataConfig))
        assert {entry.name for entry in fields(data)} == names
        assert RunConfig in configs_of(verb)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("512MiB", 2**29), ("1.5 KB", 1500), ("2TiB", 2**41), ("77", 77), (77, 77), ("8B", 8)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 gigabytes", "-1GB", "4G", "1e9", "4iB", None])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="is not a size: expected a number with a unit"):
        parse_size(text)

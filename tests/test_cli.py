"""The command: one sentence and exit status 2 for a user's mistake, a traceback for ours, and --help at once."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from rlhf_lines import __version__, cli, demo
from rlhf_lines.stages import MODULES, refuse_taken
from tests import tiny


VERBS = (
    "demo", "configs", "sft", "reward", "ppo", "fisher", "gram", "merge", "basis", "rebuild", "sweep", "learn",
    "router", "front", "pick", "report", "compare", "score", "evaluate", "export", "serve", "plan",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with ``sft``, two policies of it, and another model with a policy of its own."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": 24, "num_hidden_layers": 3, "max_position_embeddings": 32}
    adapter = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    for seed, (name, policies) in enumerate({"sft": ("brief", "kind"), "other": ("stranger",)}.items()):
        tiny.llama(seed=seed, **sizes).save_pretrained(root / name)
        for k, policy in enumerate(policies):
            tiny.save_adapter(root / name, root / policy, seed=10 * seed + k, **adapter)
    return root


@pytest.fixture
def folder(models, tmp_path, monkeypatch) -> Path:
    """The current folder of a user who has the models in it, without a network."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def merge_flags(**changes) -> list[str]:
    settings = {
        "sft_model": "./sft",
        "policies": ["./brief", "./kind"],
        "weights": [0.3, 0.7],
        "save": "adapter",
        "output_dir": "./out",
        **changes,
    }
    return [
        str(word)
        for key, value in settings.items()
        if value is not None
        for word in (f"--{key}", *(value if isinstance(value, list) else [value]))
    ]


def refused(capsys, folder: Path, arguments: list[str]) -> str:
    """Run the command in a folder, see that it refuses as it should, and return its sentence."""
    capsys.readouterr()
    before = everything(folder)
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err
    assert (
        err.splitlines()[-1].startswith(f"rlhf-lines {arguments[0]}: ")
        and err.count("rlhf-lines " + arguments[0] + ":") == 1
    )
    assert everything(folder) == before
    return err


# --- a user's mistakes ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft_model": "./nowhere"}, ["SFT model ./nowhere does not exist"]),
        ({"sft_model": "nowhere"}, ["SFT model nowhere is neither a local folder nor a Hub model"]),
        ({"policies": ["./brief", "./nowhere"]}, ["policy ./nowhere does not exist"]),
        ({"policies": ["./brief", "./stranger"]}, ["residuals add up only on one base", "stranger"]),
        ({"sft_model": "./other"}, ["residuals add up only on one base", "other"]),
        ({"weights": [0.3, 0.3, 0.4]}, ["3 weights for 2 policies; give one weight per policy"]),
        (
            {"sft_model": "./never", "policies": ["./brief", "./nowhere"]},
            ["2 problems: (1) SFT model ./never does not exist", "; (2) policy ./nowhere does not exist"],
        ),
        ({"device": "cpu:x"}, ["device is 'cpu:x', expected cpu, cuda, or one of several GPUs as in cuda:1"]),
        ({"device": "cuda:x"}, ["device is 'cuda:x', expected cpu"]),
        ({"device": "cuda:99"}, ["device is 'cuda:99', but torch sees"]),
        ({"output_dir": "sft/config.json/o"}, ["output_dir sft/config.json/o cannot be made", "is not a folder"]),
        ({"output_dir": "/proc/x/o"}, ["output_dir /proc/x/o cannot be made", "choose another one"]),
        ({"rank": 0}, ["rank is 0, expected a whole number of at least 1"]),
        ({"rank": 2, "save": "dense"}, ["rank is 2, but a dense checkpoint has none"]),
        ({"weights": ["nan", 0.7]}, ["weights[0] is nan, expected a finite number"]),
        ({"weights": [0.3, "-inf"]}, ["weights[1] is -inf, expected a finite number"]),
        ({"weights": [0.3, "inf"]}, ["weights[1] is inf, expected a finite number"]),
        ({"weights": [0.3, "x"]}, ["--weights: invalid float value: 'x'"]),
        ({"alpha": "nan"}, ["alpha is nan, expected a finite number"]),
        ({"beta": "inf"}, ["beta is inf, expected a finite number"]),
        ({"rule": "liner"}, ["unknown rule 'liner'", "did you mean 'linear'?"]),
        ({"schedule": "cubic"}, ["unknown schedule 'cubic'"]),
        ({"save": "dens"}, ["unknown save 'dens'", "did you mean 'dense'?"]),
        ({"dtype": "float31"}, ["unknown dtype 'float31'", "float32"]),
        ({"rule_options": "{density: 1}"}, ["rule_options '{density: 1}' is not JSON"]),
        ({"rule_options": "[1]"}, ["options is [1], expected a mapping"]),
        ({"rule_options": '{"density": 0.2}'}, ["density"]),
        ({"policy": "./brief"}, ["unknown flag '--policy': did you mean '--policies'? see rlhf-lines merge --help"]),
        ({"output_dir": "./sft"}, ["output_dir sft exists: choose another folder, or add --overwrite"]),
        ({"output_dir": "."}, ["has no name of its own"]),
        ({"output_dir": None}, ["required: --output_dir"]),
    ],
    ids=lambda value: "-".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_mistake_of_a_merge_is_one_sentence(folder, capsys, changes, words):
    sentence = refused(capsys, folder, ["merge", *merge_flags(**changes)])
    assert all(word in sentence for word in words)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_sentence(folder, capsys):
    (folder / "locked").mkdir(mode=0o555)
    sentence = refused(capsys, folder, ["merge", *merge_flags(output_dir="locked/out")])
    assert "output_dir locked/out cannot be made, because" in sentence and "may not be written" in sentence


@pytest.mark.parametrize(
    ("verb", "content", "words"),
    [
        ("merge", "weigths: [0.3, 0.7]\n", ["c.yaml, line 1: unknown key 'weigths': did you mean 'weights'?"]),
        ("sft", "max_stepz: 3\n", ["c.yaml, line 1: unknown key 'max_stepz': did you mean 'max_steps'?"]),
        ("sft", "max_steps: abc\n", ["c.yaml, line 1: max_steps holds 'abc', expected a whole number"]),
        ("ppo", "kl_coef: [0.1]\n", ["c.yaml, line 1: kl_coef holds [0.1], expected one value"]),
        ("sweep", "- sft_model\n", ["c.yaml must be a mapping of keys to values (key: value), but holds a list"]),
        ("sweep", "just text\n", ["c.yaml must be a mapping of keys to values (key: value), but holds one text"]),
        ("reward", "a: [1\nb: {\n", ["c.yaml is not valid YAML"]),
        ("reward", "", ["c.yaml must be a mapping"]),
        ("sweep", "num_weights: 1\n", ["c.yaml, line 1: num_weights is 1, expected at least 2"]),
        ("merge", "rule_options: [1]\n", ["options is [1], expected a mapping"]),
    ],
)
def test_a_mistake_in_a_config_is_one_sentence(folder, capsys, verb, content, words):
    (folder / "c.yaml").write_text(content)
    flags = {
        "merge": merge_flags(),
        "sweep": ["--sft_model=./sft", "--policies", "./brief", "./kind", "--rewards", "a.b:c", "d.e:f",
                  "--dataset_name=docstrings", "--output_dir=./out"],
        "ppo": ["--dataset_name=docstrings", "--output_dir=./out", "--rewards=a.b:c"],
    }  # fmt: skip
    default = ["--dataset_name=docstrings", "--output_dir=./out"]
    sentence = refused(capsys, folder, [verb, "--config", "c.yaml", *flags.get(verb, default)])
    assert all(word in sentence for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["swep"], ["unknown command 'swep'; known: basis, compare, configs, demo,", "did you mean 'sweep'?"]),
        (["--verbose"], ["unknown command"]),
        (["sft", "--dataset_name=docstrings", "--model_name_or_path=./here", "--bf16=false"],
         ["output_dir is missing"]),
        (["merge", "--config"], ["--config needs the path of a YAML file"]),
        (["merge", "--config", "no.yaml"], ["config file no.yaml does not exist"]),
        (["sft", "--dataset_name=docstrings", "--output_dir=./out", "--bf16=false"],
          ["no base model was given: set model_name_or_path"]),
        (["sft", "--model_name_or_path=./no", "--dataset_name=docstrings", "--output_dir=./out", "--bf16=false"], [
          "base model ./no does not exist"]),
        (["ppo", "--model_name_or_path=./no", "--dataset_name=docstrings", "--rewards", "a.b:c", "--use_peft",
          "--output_dir=./out", "--bf16=false"], ["SFT model ./no does not exist"]),
        (["demo", "--verbose"], ["unknown flag '--verbose'; see rlhf-lines demo --help"]),
        (["demo", "--config_dir=./no", "--output_dir=./out"], ["config_dir ./no has no base.yaml"]),
        (["demo", "--output_dir="], ["--output-dir: is empty, expected a path"]),
        (["demo", "--config_dir", ""], ["--config-dir: is empty, expected a path"]),
        (["configs", ""], ["argument DIR: is empty, expected a path"]),
        (["front", ""], ["argument RUN_DIR: is empty, expected a path"]),
        (["front", "a\0b"], [r"'a\x00b' holds the character NUL"]),
        (["sweep", "--output_dir", "a\0b"], [r"'a\x00b' holds the character NUL"]),
        (["merge", "--sft_model=./sft", "--policies=", "--save=dense", "--output_dir=./out"], ["policies is empty"]),
        (["sft", "--dataset_name=", "--model_name_or_path=./sft", "--output_dir=./out", "--bf16=false"],
         ["dataset_name is empty, expected a value"]),
        (["front"], ["required: RUN_DIR; see rlhf-lines front --help"]),
        (["front", "a", "b"], ["'b' belongs to no flag: flags are written --flag value; see rlhf-lines front --help"]),
        (["front", "--run"], ["RUN_DIR"]),
        (["front", "./sft"], ["sft has no run.sqlite: expected the output_dir of rlhf-lines sweep"]),
        (["front", "./no"], ["no has no run.sqlite"]),
        (["pick", "./no", "--preference", "1", "1"], ["no/front.json does not exist: expected the folder"]),
        (["pick", "--preference", "1", "1"], ["required: RUN_DIR"]),
        (["pick", "./no", "--preference", "x"], ["--preference: invalid float value: 'x'"]),
        (["pick", "./no", "--min", "r2", "--maximize", "r1"], ["--min has 'r2', expected NAME=SCORE, such as r2=0.4"]),
        (["pick", "./no", "--min", "=1", "--maximize", "r1"], ["--min has '=1', expected NAME=SCORE"]),
        (["pick", "./no", "--min", "r2=1", "--maximize", "r1", "--scale", "raw"], ["scale is raw, but it belongs to"]),
        (["pick", "./no", "--max", "r2", "--maximize", "r1"], ["--max has 'r2', expected NAME=SCORE, such as r2=0.4"]),
        (["pick", "./no", "--max", "r=1", "--max", "r=2"], ["--max has 'r' twice, 1 and 2: give every name once"]),
        (["pick", "./no", "--min", "r=1", "s=0", "r=0.5"], ["--min has 'r' twice, 1 and 0.5: give every name once"]),
        (["pick", "./no", "--min", "r=1", "--min", "r=2"], ["--min has 'r' twice, 1 and 2: give every name once"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_other_mistakes_are_one_sentence(folder, capsys, arguments, words):
    sentence = refused(capsys, folder, arguments)
    assert all(word in sentence for word in words)


def test_a_store_without_a_sweep_has_no_front(folder, capsys):
    from rlhf_lines.sweep.store import Store

    (folder / "run").mkdir()
    with Store(folder / "run"):
        pass
    assert "run.sqlite" in refused(capsys, folder, ["front", "./run"])
    (folder / "text").mkdir()
    (folder / "text" / "run.sqlite").write_text("this is not a database, however long it is made" * 10)
    assert "run.sqlite" in refused(capsys, folder, ["front", "./text"])


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "rlhf_lines.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", [["swep"], ["merge", *merge_flags(weights=["nan", 1])]], ids=["unknown verb", "weights"]
)
def test_the_process_exits_with_2_and_one_line(folder, arguments):
    before = everything(folder)
    done = run(folder, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"rlhf-lines {arguments[0]}: ")
    assert everything(folder) == before


def test_a_reader_who_has_seen_enough_ends_nothing():
    """As `rlhf-lines --help | head -1`, whose pipe is closed before all is written."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "rlhf_lines", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_letters_that_a_terminal_has_not_are_written_in_ascii(tmp_path):
    command = [sys.executable, "-m", "rlhf_lines", "configs", "Größe"]
    settings = {"cwd": tmp_path, "env": {**os.environ, "PYTHONIOENCODING": "ascii"}}
    done = subprocess.run(command, **settings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("Gr\\xf6\\xdfe/accelerate/fsdp.yaml\n")


def test_what_is_printed_hides_a_password(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["configs", "https:/me:hunter2-is-no-word@host"]) == 0
    assert capsys.readouterr().out.startswith("https:/***@host/accelerate/fsdp.yaml\n")


def test_flags_may_have_dashes_and_numbers_exponents(folder, capsys):
    words = ["pick", "./no", "--preference", "-1e-3", "1", "--max-kl", "x"]
    assert "--max-kl: invalid float value: 'x'" in refused(capsys, folder, words)
    for flag in ("--max-kl", "--max_kl"):
        assert "no/front.json does not exist" in refused(capsys, folder, [*words[:5], flag, "1e-1"])
    assert "'b' belongs to no flag" in refused(capsys, folder, ["export", "./no", "--output-dir", "a", "b"])


def test_every_number_flag_of_a_verb_is_checked(folder, capsys):
    for arguments in (
        ["score", "./no", "--rewards", "a.b:c", "--batch_size", "many"],
        ["plan", "--prompt_tokens", "1.5"],
    ):
        assert "invalid int value" in refused(capsys, folder, arguments)
    assert "file 'nope' does not exist" in refused(capsys, folder, ["merge", *merge_flags(repeats="nope")])


# --- our mistakes ---


def test_an_error_of_a_library_is_not_taken_for_a_mistake_of_the_user(folder, capsys, monkeypatch):
    # safetensors cannot read what it is given: raised below our packages, and nothing that a sentence of ours explains.
    monkeypatch.setattr("rlhf_lines.merge.output.adapter.save_file", lambda *_, **__: json.loads("{"))
    with pytest.raises(json.JSONDecodeError):
        cli.main(["merge", *merge_flags()])
    assert capsys.readouterr().err == ""
    assert not (folder / "out").exists()


@pytest.mark.parametrize("error", [TypeError, KeyError, RuntimeError, OSError])
def test_other_errors_show_their_traceback(folder, monkeypatch, error):
    def fail(*_, **__):
        raise error("a bug")

    monkeypatch.setattr("rlhf_lines.merge.stage.merge_policies", fail)
    with pytest.raises(error, match="a bug"):
        cli.main(["merge", *merge_flags()])


def test_an_interrupted_command_says_so(folder, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlhf_lines.merge.output.adapter.save_file", interrupt)
    before = everything(folder)
    assert cli.main(["merge", *merge_flags()]) == 130
    assert capsys.readouterr().err.startswith("rlhf-lines merge: interrupted")
    assert everything(folder) == before
    monkeypatch.setattr(cli, "guard", interrupt)  # before the verb has begun
    assert cli.main(["merge", *merge_flags()]) == 130
    assert capsys.readouterr().err.startswith("rlhf-lines merge: interrupted; nothing was left")
    assert cli.main(["sweep"]) == 130  # which keeps what it has
    assert "interrupted; what was done so far is kept for --resume" in capsys.readouterr().err


# --- help ---


def test_help_and_version_import_no_library():
    script = (
        "import sys; from rlhf_lines import cli; status = [cli.main(['--help']), cli.main(['--version'])]; "
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'{status} {heavy}' if status != [0, 0] or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    *usage, version = done.stdout.splitlines()
    assert version == __version__
    assert [line.split()[0] for line in usage if line.startswith("  ")] == list(VERBS)


def test_only_the_help_of_stages_imports_libraries():
    script = (
        "import contextlib, sys; from rlhf_lines import cli\n"
        "for verb in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit): cli.main([verb, '--help'])\n"
        "sys.exit(' '.join({'torch', 'transformers', 'trl', 'datasets', 'numpy'} & set(sys.modules)) or 0)"
    )
    verbs = [verb for verb in VERBS if verb not in MODULES]
    done = subprocess.run([sys.executable, "-c", script, *verbs], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("usage: rlhf-lines")] == verbs
    assert f"(default: {demo.ROOT})" in " ".join(done.stdout.split())


STAGES_WITHOUT_A_TRAINER = ("merge", "basis", "rebuild", "sweep", "learn", "router", "fisher", "gram")
# TRL's own package, which has the parser, imports none of these.
HEAVY = {"torch", "transformers", "trl.trainer", "peft", "datasets", "numpy", "scipy"}


def test_the_help_of_stages_that_train_nothing_imports_neither_torch_nor_a_trainer():
    script = (
        "import contextlib, sys; from rlhf_lines import cli\n"
        "for verb in sys.argv[1:]:\n"
        "    with contextlib.suppress(SystemExit): cli.main([verb, '--help'])\n"
        f"sys.exit(' '.join({HEAVY} & set(sys.modules)) or 0)"
    )
    command = [sys.executable, "-c", script, *STAGES_WITHOUT_A_TRAINER]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("usage: rlhf-lines")]
    assert tuple(shown) == STAGES_WITHOUT_A_TRAINER


MANY = """
import json, sys
from rlhf_lines import cli

for words in json.loads(sys.argv[1]):
    assert cli.main(words) == 2, words
    assert not (found := set(sys.argv[2:]) & set(sys.modules)), (words, found)
"""


def refused_without(modules: set[str], folder: Path, commands: list[list[str]]) -> list[str]:
    """See that one process refuses all commands and imports none of the modules; return its sentences."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, json.dumps(commands), *modules],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_a_mistake_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "key.yaml").write_text("sft_modl: sft\n")
    (tmp_path / "c.yaml").write_text("overwrite: false\n")
    cases = [
        (["--config", "key.yaml"], "unknown key 'sft_modl'"),
        (["--config", "c.yaml", "--sft_modl", "sft"], "unknown flag '--sft_modl'"),
        (
            ["--config", "c.yaml", "--seed", "x", "--power", "x"],
            "invalid int value|invalid float value|unknown flag",
        ),
        (["--config", "c.yaml", "--output_dir", "out"], "required"),
    ]
    commands = [[verb, *flags] for flags, _ in cases for verb in STAGES_WITHOUT_A_TRAINER]
    sentences = refused_without(HEAVY, tmp_path, commands)
    told = [words for _, words in cases for _ in STAGES_WITHOUT_A_TRAINER]
    for sentence, words in zip(sentences, told, strict=True):
        assert re.search(words, sentence)


def test_a_merge_that_cannot_be_is_told_before_torch_is_imported(tmp_path):
    wrong = {"rule": "tis", "schedule": "lines", "alpha": "inf", "beta": "1e39"}
    flags = ["--sft_model", "a", "--policies", "b", "--save", "dense", "--output_dir", "o"]
    commands = [["merge", *flags, f"--{key}", value] for key, value in wrong.items()]
    for sentence, key in zip(refused_without(HEAVY, tmp_path, commands), wrong, strict=True):
        assert sentence.startswith("rlhf-lines merge: ") and key in sentence


def test_a_folder_that_exists_is_refused_before_any_library_is_imported(tmp_path):
    """Of every stage, whatever else is given, and of compare."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out.yaml").write_text("output_dir: out\n")
    (tmp_path / "c.yaml").write_text("overwrite: false\n")
    ways = [
        ["--policies", "a", "b", "--output_dir=out"],
        ["--config", "out.yaml"],
        ["--output-dir", "out", "--config", "c.yaml"],
        ["--overwrite", "False", "--output_dir", "out"],
    ]
    commands = [[verb, *given] for given in ways for verb in MODULES]
    commands.append(["compare", "a", "b", "--output_dir", "out"])
    refusal = "output_dir out exists: choose another folder, or add --overwrite to replace it"
    expected = [f"rlhf-lines {verb}: {refusal}" for verb, *_ in commands]
    libraries = {"torch", "transformers", "trl", "datasets", "numpy"}
    assert refused_without(libraries, tmp_path, commands) == expected


NEEDED = {
    "compare": ["a", "b"],
    "score": ["a", "--rewards", "r"],
    "evaluate": ["a", "--tasks", "t"],
}  # where it is more than a run


def flags_of_verbs(parser, kind) -> set[tuple[str, str]]:
    """Verbs with the names of those of their flags whose action is of a kind."""
    verbs = next(action.choices for action in parser._actions if action.choices)
    actions = ((verb, action) for verb, of_verb in verbs.items() for action in of_verb._actions)
    return {(verb, action.option_strings[0]) for verb, action in actions if action.option_strings and kind(action)}


def test_a_switch_of_any_verb_takes_a_value_as_those_of_stages_do():
    """On by its name alone, or by a word that transformers takes for true; the last one counts."""
    parser = cli._parser()
    switches = flags_of_verbs(parser, lambda action: action.const is True)
    assert switches >= {("compare", "--overwrite"), ("export", "--overwrite"), ("front", "--all")}
    for verb, flag in switches:
        for words, expected in (
            ([], False),
            ([flag], True),
            ([flag, "true"], True),
            ([f"{flag}=Yes"], True),
            ([flag, "False"], False),
            ([flag, f"{flag}=0"], False),
            ([flag, "no", flag.replace("_", "-"), "true"], True),
            ([flag.replace("_", "-"), "true", flag, "false"], False),
        ):
            options, rest = parser.parse_known_args([verb, *NEEDED.get(verb, ["a"]), *words])
            assert (getattr(options, flag[2:]), rest) == (expected, []), (verb, words)
            options, rest = parser.parse_known_args([verb, *words, *NEEDED.get(verb, ["a"])])  # in front of the run
            assert (getattr(options, flag[2:]), rest) == (expected, []), (verb, words)


def test_the_lists_of_a_flag_given_twice_are_one():
    """What stood first was silently dropped, as the first minimum of a pick was."""
    parser = cli._parser()
    lists = flags_of_verbs(parser, lambda action: action.nargs == "+")
    assert lists >= {("pick", "--min"), ("front", "--objectives"), ("score", "--rewards"), ("evaluate", "--points")}
    for verb, flag in lists:
        start = [verb, *NEEDED.get(verb, ["a"])]
        once, _ = parser.parse_known_args([*start, flag, "1", "2", "3"])
        twice, _ = parser.parse_known_args([*start, flag, "1", "2", f"{flag.replace('_', '-')}=3"])
        assert twice == once and len(getattr(once, flag[2:])) >= 3
    assert parser.parse_known_args(["evaluate", "a", "--tasks", "t", "--points", "3"])[0].points == ["3"]


def test_a_run_whose_folder_is_called_1_or_y_is_no_value_of_a_switch():
    """The comparison of the folders 1, 2 and 3 was silently one of 2 and 3."""
    for folders in (["1", "2", "3"], ["y", "n"], ["0", "t"]):
        options, rest = cli._parser().parse_known_args(["compare", "--overwrite", *folders])
        assert (options.overwrite, options.run_dirs, rest) == (True, folders, [])


def test_a_value_that_no_switch_has_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "comparison").mkdir()
    assert cli.main(["compare", "a", "b", "--overwrite=maybe"]) == 2
    assert capsys.readouterr().err == "rlhf-lines compare: --overwrite is 'maybe', expected true or false\n"
    assert cli.main(["compare", "a", "b", "--overwrite", "false"]) == 2
    assert "comparison exists: choose another folder" in capsys.readouterr().err
    assert cli.main(["compare", "a", "b", "--overwrite", "true"]) == 2  # on to the next mistake
    assert "a has no" in capsys.readouterr().err


@pytest.mark.parametrize("switch", [["--overwrite"], ["--resume", "true"], ["--plan"], ["--help"]], ids=str)
def test_a_folder_that_may_exist_is_left_to_the_stage(tmp_path, monkeypatch, switch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    refuse_taken([*switch, "--output_dir", "out"])
    with pytest.raises(FileExistsError, match="output_dir out exists"):
        refuse_taken(["--output_dir", "out"])


def test_the_help_of_a_stage_has_our_options_first_then_those_of_the_libraries(capsys):
    with pytest.raises(SystemExit):
        cli.main(["ppo", "--help"])
    ours, of_trl, of_transformers = re.split("^options of (?:TRL|transformers):$", capsys.readouterr().out, flags=re.M)
    headings = [line for line in ours.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == [
        "options:",
        "What every stage understands:",
        "Where rows come from; docs/data.md has the sources and their columns:",
        "Which rows a training stage reads:",
        "What the policy is trained to please:",
        "The settings of PPO beside those of TRL's GRPOConfig; a field that TRL names keeps its name:",
        "Which layers are trained, and how fast:",
        "The SFT model, and the LoRA of a policy:",
    ]
    for part, flags in (
        (
            ours,
            ["resume", "dataset_name", "rewards", "kl_coef", "num_generations"],
        ),  # the last is also of TRL
        (of_trl, ["max_completion_length", "lora_r"]),
        (of_transformers, ["warmup_steps", "output_dir"]),
    ):
        for flag in flags:
            found = [text for text in (ours, of_trl, of_transformers) if re.search(rf"^  --{flag}\b", text, flags=re.M)]
            assert found == [part], flag


def test_the_verbs_are_those_of_the_stages(capsys):
    assert (
        set(cli.VERBS)
        == set(VERBS)
        == {
            *MODULES,
            *["demo", "configs", "front", "pick", "report", "compare", "score", "evaluate", "export", "serve", "plan"],
        }
    )
    assert cli.main([]) == 2
    assert cli.main(["-h"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(folder, capsys, verb):
    before = everything(folder)
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: rlhf-lines {verb}") and err == ""
    shown = {
        "front": "RUN_DIR",
        "configs": "DIR",
        "pick": "--preference",
        "report": "RUN_DIR",
        "score": "RUN_DIR",
        "evaluate": "RUN_DIR",
        "serve": "RUN_DIR",
        "plan": "--base_model",
    }
    assert shown.get(verb, "--output_dir") in out
    assert everything(folder) == before


# --- merge from end to end ---


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(10).reshape(2, 5)).logits


def test_merge_writes_an_adapter_and_a_dense_model_that_agree(folder, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = {
        "sft_model": "./sft",
        "policies": ["./brief", "./kind"],
        "weights": [0.5, 0.5],
        "save": "adapter",
        "output_dir": "./never",
        "alpha": 0.5,
    }
    (folder / "merge.yaml").write_text(yaml.safe_dump(config))
    flags = ["--config", "merge.yaml", "--weights", "0.3", "0.7", "--beta", "1.0"]
    for save in ("adapter", "dense"):
        assert cli.main(["merge", *flags, "--save", save, "--output_dir", f"./{save}"]) == 0
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines.pop(0) == f"wrote {save}" and "Traceback" not in err
        if save == "adapter":
            assert lines[:2] == [
                "adapter of rank 4",
                "serve: vllm serve sft --enable-lora --max-lora-rank 8 --lora-modules merged=adapter",
            ]
            del lines[:2]
        assert lines[0].startswith("written in float32; the cast changed the merged residual by 0.00% (relative L2)")
        assert lines[1:] == []  # adapters that name the SFT model need no warning
        spec = json.loads((folder / save / "merge_spec.json").read_text())["spec"]
        assert spec == {
            "rule": "linear", "weights": [0.3, 0.7], "alpha": 0.5, "beta": 1.0, "schedule": "linear", "options": {},
        }  # fmt: skip
    assert not (folder / "never").exists()
    sft = AutoModelForCausalLM.from_pretrained("./sft")
    # By hand: layer l of 3 has the factor 0.5 + l / 2, a LoRA of rank 2 and alpha 4 the scale 2.
    expected = AutoModelForCausalLM.from_pretrained("./sft")
    parameters = dict(expected.named_parameters())
    with torch.no_grad():
        for policy, weight in (("brief", 0.3), ("kind", 0.7)):
            peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("./sft"), policy)
            for name, module in peft.named_modules():
                if hasattr(module, "lora_A"):
                    name = name.removeprefix("base_model.model.")
                    factor = weight * (0.5 + int(name.split(".")[2]) / 2) * 2
                    parameters[f"{name}.weight"] += (
                        factor * module.lora_B["default"].weight @ module.lora_A["default"].weight
                    )
    assert (logits(expected) - logits(sft)).abs().max() > 0.05
    adapter = PeftModel.from_pretrained(sft, "./adapter")
    dense = AutoModelForCausalLM.from_pretrained("./dense")
    for model in (adapter, dense):
        torch.testing.assert_close(logits(model), logits(expected), rtol=1e-5, atol=1e-5)


def test_the_command_that_pick_prints_makes_the_picked_policy(folder, capsys):
    from rlhf_lines.pareto import build_front, write_front

    def point(i, group, scores, **spec):
        spec = {
            "rule": "linear",
            "weights": [0.3, 0.7],
            "alpha": 0.5,
            "beta": 1.0,
            "schedule": "sqrt",
            "options": {},
        } | spec
        return {"id": i, "group": group, "spec": spec, "scores": [scores] * 4}

    points = [
        point(0, "sft", [0.0, 0.0], weights=[0.0, 0.0]),
        point(1, "lines", [1.0, 2.0]),
        point(2, "ties", [3.0, 1.0], rule="ties", alpha=1.0, options={"density": 0.5}),
    ]
    about = {"rewards": ["r1", "r=2"], "split": "test", "seed": 0, "points": points, "resamples": 10}
    (folder / "my run").mkdir()
    write_front(folder / "my run", build_front(**about))
    question = ["pick", "./my run", "--preference", "0.1", "0.9"]
    assert "run it again with: rlhf-lines front ./my run" in refused(capsys, folder, question)
    write_front(folder / "my run", build_front(**about, sft_model="./sft", policies=["./brief", "./kind"]))
    for question, picked, file in (
        (["--preference", "0.4", "0.6", "--scale", "range"], points[1], "adapter_model.safetensors"),
        (["--min", "r=2=0.5", "--maximize", "r1"], points[2], "model.safetensors"),
        (["--point", "1"], points[1], None),
    ):
        assert cli.main(["pick", "./my run", *question]) == 0
        command = shlex.split(capsys.readouterr().out.splitlines()[-1])
        assert command[:2] == ["rlhf-lines", "merge"]
        if file is None:
            continue
        assert cli.main(command[1:]) == 0
        made = folder / "my run" / f"point_{picked['id']}"
        assert json.loads((made / "merge_spec.json").read_text())["spec"] == picked["spec"]
        assert (made / file).is_file()


def test_merge_truncates_to_a_rank_and_says_what_that_lost(folder, capsys):
    assert cli.main(["merge", *merge_flags(rank=1)]) == 0
    lines = capsys.readouterr().out.splitlines()
    truncation = json.loads((folder / "out" / "merge_spec.json").read_text())["truncation"]
    assert lines[:2] == ["wrote out", "adapter of rank 1"]
    assert lines[2] == (
        f"truncated to rank 1, which lost {truncation['lost']:.2%} of the merged residual (relative L2), at most "
        f"{truncation['worst_lost']:.2%} in {truncation['worst_module']}"
    )
    assert "--max-lora-rank 1 " in lines[3]
    assert cli.main(["merge", *merge_flags(rank=1), "--resume"]) == 0
    assert capsys.readouterr().out.splitlines() == ["kept out, which was complete", *lines[1:]]
    for rank in (None, 2):
        assert "was made with rank 1, now it is" in refused(
            capsys, folder, ["merge", *merge_flags(rank=rank), "--resume"]
        )


@pytest.mark.parametrize("changes", [{"rank": 1}, {"rank": None, "save": "dense"}])
def test_merge_removes_its_bar_before_it_says_what_it_wrote(folder, capsys, monkeypatch, changes):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["merge", *merge_flags(rule="ties", **changes)]) == 0
    err = capsys.readouterr().err
    assert "measure" in err and err.rstrip(" ").endswith("\r")


def test_an_error_begins_its_own_line_where_a_bar_was_open(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert cli.main(["merge", *merge_flags(weights=[1e38, 1e38], alpha=1e10, save="dense")]) == 2
    err = capsys.readouterr().err
    assert "merge: write" in err  # the bar was there
    assert err.splitlines()[-1].startswith("rlhf-lines merge: merged values of ")


def test_of_several_processes_one_speaks(capsys, monkeypatch):
    cli._show_log()
    for leads in (True, False):
        monkeypatch.setattr("rlhf_lines.distributed.leads", lambda leads=leads: leads)
        logging.getLogger("rlhf_lines.data").warning("2 rows are left out")
        assert capsys.readouterr().err == ("2 rows are left out\n" if leads else "")


def test_weights_are_equal_unless_given_or_taken_from_checkpoints(folder, capsys):
    def merged(**changes) -> list[float]:
        assert cli.main(["merge", *merge_flags(overwrite="true", **changes)]) == 0
        return json.loads((folder / "out" / "merge_spec.json").read_text())["spec"]["weights"]

    assert merged(weights=None) == [0.5, 0.5]
    checkpoints = []
    for step, loss in ((1, 2.0), (3, 0.5)):
        shutil.copytree(folder / "brief", folder / "run" / f"checkpoint-{step}")
        state = {"global_step": step, "log_history": [{"loss": loss, "step": step}]}
        (folder / "run" / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        checkpoints.append(f"./run/checkpoint-{step}")
    assert merged(weights=None, policies=checkpoints, weights_by="step") == pytest.approx([0.25, 0.75])
    assert merged(weights=None, policies=checkpoints, weights_by="loss") == pytest.approx([0.2, 0.8])
    assert merged(weights=None, policies=checkpoints, weights_by="loss", power=0) == pytest.approx([0.5, 0.5])
    shutil.rmtree(folder / "out")
    for changes, words in (
        ({"weights_by": "step"}, "weights and weights_by are both given; keep one of them"),
        ({"weights": None, "weights_by": "steps"}, "unknown weights_by 'steps'"),
        ({"weights": None, "weights_by": "step"}, "policy 'brief' has no trainer_state.json"),
        ({"power": 2}, "power is 2.0, but it belongs to weights_by"),
        ({"hub_model_id": "me/out"}, "hub_model_id is me/out, but nothing is uploaded; give --push_to_hub"),
        ({"hub_private_repo": "true"}, "hub_private_repo is True, but nothing is uploaded; give --push_to_hub"),
    ):
        assert words in refused(capsys, folder, ["merge", *merge_flags(**changes)])


def test_merge_refuses_keeps_or_replaces_what_exists(folder, capsys):
    for save in ("adapter", "dense"):
        flags = merge_flags(save=save)
        assert cli.main(["merge", *flags]) == 0
        first = everything(folder / "out")
        assert "exists" in refused(capsys, folder, ["merge", *flags])
        assert cli.main(["merge", *flags, "--resume"]) == 0
        assert everything(folder / "out") == first
        other = ["merge", *merge_flags(save=save, weights=[0.9, 0.1]), "--resume"]
        assert "was made with spec" in refused(capsys, folder, other)
        other = ["merge", *merge_flags(save=save, max_shard_size="1KB"), "--resume"]
        sentence = "was made with max_shard_size None, now it is 1000" if save == "dense" else "an adapter is one file"
        assert sentence in refused(capsys, folder, other)
        for size in ("0", "0GB"):
            other = ["merge", *merge_flags(save="dense", max_shard_size=size, output_dir="./zero")]
            assert f"max_shard_size is {size}, expected a size such as 5GB" in refused(capsys, folder, other)
        assert cli.main(["merge", *merge_flags(save=save, weights=[0.9, 0.1]), "--overwrite"]) == 0
        second = everything(folder / "out")
        assert second.keys() == first.keys() and second != first
        capsys.readouterr()
        shutil.rmtree(folder / "out")


def test_a_current_folder_that_was_deleted_is_one_sentence(tmp_path, capsys, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    status = cli.main(["merge", "--sft_model", "sft", "--policies", "a", "b", "--output_dir", "merged"])
    told = capsys.readouterr().err
    assert (status, told) == (
        2,
        "rlhf-lines merge: the current folder was deleted: change into one that exists (cd)\n",
    )

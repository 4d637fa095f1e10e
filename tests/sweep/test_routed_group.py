"""A group whose weights depend on the prompt: against models merged one by one, the soup that it can be, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf_lines import cli
from rlhf_lines.artifact import read_record
from rlhf_lines.merge import MergeSpec
from rlhf_lines.merge.inputs.adapter import WEIGHTS_FILE
from rlhf_lines.merge.inputs.checkpoint import checkpoint_sha256
from rlhf_lines.plan import Options, plan
from rlhf_lines.sampling import prompt_key
from rlhf_lines.sha256 import sha256_of
from rlhf_lines.stages import run_stage
from rlhf_lines.sweep.engines.protocol import Request
from rlhf_lines.sweep.finished.report import write_report
from rlhf_lines.sweep.router import Router, text_sha256
from rlhf_lines.sweep.store import Store
from tests.sweep.by_hand import complete_by_hand, cross_entropy, kl_by_hand
from tests.sweep.of_a_run import strict_json


pytestmark = pytest.mark.usefixtures("without_pictures")
POINTS = [[1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
WIDTH, EOS = 16, 1
SMALL = {"num_weights": 3, "test_prompts": 7, "max_new_tokens": 5, "scalings": ["0.5 1.0"], "validation_prompts": 2}


def group(router: Path, **changes) -> str:
    return json.dumps({"name": "twin", "rule": "twin", "router": str(router), **changes})


@pytest.fixture
def write(sft, policies, tmp_path):
    """A function from a router's numbers, and changes of its card, to its folder."""

    def make(bias=None, coefficients=None, **changes) -> Path:
        folder, shape = tmp_path / "router", (len(POINTS), 2)
        folder.mkdir(exist_ok=True)
        card = {
            **{"alpha": 0.5, "beta": 1.0, "schedule": "linear", "points": POINTS, "objectives": ["short", "early"]},
            "sft_sha256": checkpoint_sha256(sft),
            "policies_sha256": [sha256_of([policy / WEIGHTS_FILE]) for policy in policies[:2]],
            "prompts_sha256": [text_sha256("never asked")],
            **changes,
        }
        bias = np.zeros(shape) if bias is None else np.array(bias)
        Router(folder, card).write(bias, np.zeros((WIDTH, *shape)) if coefficients is None else coefficients)
        return folder

    return make


def completions(folder: Path, name: str) -> dict[tuple[tuple[float, ...], str], tuple]:
    """Token ids and KL by the weights of a group's points and the prompt."""
    with Store(folder, reading=True) as store:
        specs = {p.spec_id: p.spec.weights for p in store.points("test") if p.group == name}
        texts = {number: prompt.text for number, prompt in store.prompts("test").items()}
        rows = [row for row in store.rows("test", ()) if row.spec in specs]
    return {(specs[row.spec], texts[row.prompt]): (row.token_ids, row.kl) for row in rows}


def test_every_prompt_is_answered_by_the_merge_that_the_router_chooses(
    flags, write, sft, dense_model, tmp_path, capsys
):
    from transformers import AutoTokenizer

    numbers = np.random.default_rng(0)
    bias, coefficients = numbers.normal(size=(4, 2)) / 4, numbers.normal(size=(WIDTH, 4, 2))
    (tmp_path / "texts.txt").write_text("a b c\n\nd e\n\nsome more\n\nand again")
    arguments = flags(
        tmp_path / "out",
        groups=[group(write(bias, coefficients), options={"rank": 2})],
        temperature=0.0,
        control=tmp_path / "texts.txt",
        control_texts=4,
        **SMALL,
    )
    folder = run_stage("sweep", arguments)
    base, tokenizer = dense_model(MergeSpec("linear", (0.0, 0.0))), AutoTokenizer.from_pretrained(sft)

    def weights_of(ids, preference) -> tuple[float, ...]:
        with torch.no_grad():
            state = base(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].double()
        utilities = bias + np.einsum("d,dpj->pj", np.array(state), coefficients)
        return tuple(POINTS[(utilities @ preference).argmax()])

    def merged(ids, preference):
        return dense_model(MergeSpec("twin", weights_of(ids, preference), 0.5, 1.0, options={"rank": 2}))

    chosen, found = {}, completions(folder, "twin")
    assert len(found) == 3 * 7
    for (preference, text), (token_ids, kl) in found.items():
        ids = tuple(tokenizer(text)["input_ids"])
        chosen.setdefault(preference, []).append(weights_of(ids, preference))
        request = Request(MergeSpec("linear", (0.0,)), ids, prompt_key(ids))
        policy = merged(ids, preference)
        assert token_ids == complete_by_hand(policy, request, eos=EOS, max_new_tokens=5, temperature=0.0, seed=0)
        assert kl == pytest.approx(kl_by_hand(policy, base, request, token_ids, 1.0), abs=1e-4)
    assert all(len(set(of_preference)) > 1 for of_preference in chosen.values())

    (routed,) = read_record(folder)["routed"].values()
    assert {
        tuple(row["preference"]): {tuple(one["weights"]): one["prompts"] for one in row["chosen"]} for row in routed
    } == {preference: {weights: rows.count(weights) for weights in rows} for preference, rows in chosen.items()}
    with Store(folder, reading=True) as store:
        texts = [tuple(tokenizer(stored.text)["input_ids"]) for stored in store.forgetting_texts()]
        points = [point for point in store.points("test") if point.group == "twin"]
        for point in points:
            want = [cross_entropy(merged(ids, point.spec.weights), ids) for ids in texts]
            assert store.nll(point.spec_id).tolist() == pytest.approx(want, abs=1e-4)

    front = strict_json(folder / "front.json")
    entry = next(point for point in front["points"] if point["group"] == "twin")
    assert entry["merge_arguments"] is None and entry["spec"]["options"].keys() == {"rank", "router"}
    assert cli.main(["pick", str(folder), "--point", str(entry["id"])]) == 0
    assert "no one merge is this policy" in capsys.readouterr().out.splitlines()[-1]
    page = write_report(folder).read_text()
    assert page.count("Make this policy") == sum(point["merge_arguments"] is not None for point in front["points"])
    assert run_stage("sweep", [*arguments, "--resume"]) == folder
    write(bias, 2 * coefficients)
    with pytest.raises(ValueError, match=r"router of group twin \(router\) has changed since"):
        run_stage("sweep", [*arguments, "--resume"])


def test_the_plan_holds_the_parts_beside_the_policies_and_merges_nothing(flags, write, policies, tmp_path):
    def planned(**options):
        return plan(flags(tmp_path / "out", groups=[group(write(), options=options)], **SMALL), Options("sweep"))

    whole, two, all_of_it = planned(), planned(rank=2), planned(rank=40)
    widths = {}  # in + out of every module that a policy changes
    for policy in policies[:2]:
        for name, factor in load_file(policy / WEIGHTS_FILE).items():
            module, _, which = name.rpartition(".lora_")
            widths.setdefault(module, {})[which] = factor.shape[1 if which.startswith("A") else 0]
    per_rank = sum(sum(of_module.values()) for of_module in widths.values())
    held = [made.phases[0].parts["adapters"] for made in (whole, two, all_of_it)]
    assert [more - held[0] for more in held] == [0, 2 * 2 * per_rank * 4, 2 * (4 + 3) * per_rank * 4]
    assert all("points merged one by one" not in dict(made.work) for made in (whole, two))
    assert "merged weights of one spec" not in two.phases[0].parts


def test_with_one_choice_and_whole_parts_it_is_the_merge_at_those_weights(flags, write, tmp_path):
    """At temperature 1: specs share their noise. Rank 40 is that of an adapter which keeps all."""
    router = write(bias=[[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 0.0]])
    groups = [group(router), group(router, name="as adapters", options={"rank": 40, "shared": 0.3})]
    folder = run_stage("sweep", flags(tmp_path / "out", groups=groups, **SMALL))
    lines = {text: row for (weights, text), row in completions(folder, "lines").items() if weights == (0.5, 0.5)}
    for name in ("twin", "as adapters"):
        found = completions(folder, name)
        assert len(found) == 3 * 7 == 3 * len(lines)
        for (_, text), (token_ids, kl) in found.items():
            assert token_ids == lines[text][0]
            assert kl == pytest.approx(lines[text][1], abs=1e-4)


REFUSED = [
    ({"sft_sha256": "5f"}, {}, "was learned with another SFT model"),
    ({"policies_sha256": ["5f", "60"]}, {}, "was learned with other policies, or in another order"),
    (None, {}, "was learned on 7 of the 7 test prompts"),  # of all prompts that there are
    ({"points": [[1.0, 0.0, 0.0]]}, {}, "has a router for 3 policies, but 2 are merged"),
    ({}, {"alpha": 1.0, "betas": [1.0]}, "router and alpha and betas are given: leave alpha and betas out"),
    ({}, {"rule": "linear"}, "router is given, but rule is linear"),
    ({}, {"options": {"router": "5f"}}, "options hold a router: name its folder in the key router"),
    ({}, {"options": {"shared": 0.3}}, "shared is 0.3, but without a rank"),
    ({"format": 2}, {}, "is not of format 1"),
]


@pytest.mark.parametrize(("card", "changes", "message"), REFUSED)
def test_what_does_not_fit_is_refused_before_the_work(flags, write, dataset, tmp_path, card, changes, message):
    if card is None:
        prompts = [json.loads(line)["prompt"] for line in dataset.read_text().splitlines()]
        card = {"prompts_sha256": list(map(text_sha256, prompts))}
    arguments = flags(tmp_path / "out", groups=[group(write(**card), **changes)], **SMALL)
    with pytest.raises(ValueError, match=message):
        run_stage("sweep", arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["router"]


def test_numbers_that_are_not_those_of_the_card_and_a_missing_router_are_named(write, tmp_path):
    router = write()
    (router / "router.safetensors").write_bytes((router / "router.safetensors").read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"router.safetensors is not the file that router.json beside it tells of"):
        Router.read(router).predict(np.zeros((1, WIDTH)))
    for key, value in (("policies_sha256", None), ("points", []), ("points", [[1.0], [0.5, 0.5]]), ("alpha", "auto")):
        with pytest.raises(ValueError, match=rf"router.json has no {key}, or a wrong one: make it again"):
            Router.read(write(**{key: value}))
    with pytest.raises(FileNotFoundError, match=r"router .* has no router.json: make it with rlhf-lines router"):
        Router.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="reads states of 16 numbers, and the SFT model has 8"):
        Router.read(write()).predict(np.zeros((1, 8)))


def test_vllm_and_weights_that_are_no_preference_are_refused(flags, write, tmp_path):
    settings = {**SMALL, "sampler": "list", "weights": ["-0.5 1.5"], "engine": "vllm"}
    del settings["num_weights"]
    with pytest.raises(ValueError) as error:
        plan(flags(tmp_path / "out", groups=[group(write())], **settings), Options("sweep"))
    assert "vLLM would need an adapter per prompt: use engine local" in str(error.value)
    assert "takes weights as a preference: give weights of at least 0" in str(error.value)


def test_a_merge_with_a_router_is_refused(sft, policies, tmp_path, capsys):
    options = ["--rule", "twin", "--rule_options", '{"router": "5f"}', "--save", "dense"]
    models = ["--sft_model", str(sft), "--policies", *map(str, policies[:2])]
    assert cli.main(["merge", *models, *options, "--output_dir", str(tmp_path / "out")]) == 2
    assert "depend on the prompt, so no one model is this merge" in capsys.readouterr().err

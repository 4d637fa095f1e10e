"""Rule `layerwise`: its sums in float64, LiNeS and soups as special cases, its file, its records and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf_lines import cli
from rlhf_lines.merge import MergeSpec, apply_lines, lines_scales, merge_policies, merge_residuals
from rlhf_lines.merge.inputs.adapter import load_adapter
from rlhf_lines.merge.layers import layer_indices
from rlhf_lines.merge.lora.low_rank import coefficients, merge_adapters
from rlhf_lines.merge.rules import RULES
from rlhf_lines.merge.rules.profile import Profile, options_text, read_profile
from rlhf_lines.plan import Options, plan
from tests.merge.reference import NUM_LAYERS, WIDTHS, assert_case, reference_adapters, task_vectors


FACTORS = [[0.5, 0.0, 1.5, 1.0], [1.0, -0.5, 0.25, 2.0]]
OUTSIDE = [0.5, 1.5]
OPTIONS = {"factors": FACTORS, "outside": OUTSIDE}
WEIGHTS = (0.6180339, 0.3819661)


def of_lines(weights, alpha: float, beta: float, num_layers: int, schedule: str = "linear") -> dict:
    """The options that stand for a weighted sum with LiNeS: w_k lambda(l)."""
    scales = lines_scales(num_layers, alpha, beta, schedule).tolist()
    return {
        "factors": [[weight * scale for scale in scales] for weight in weights],
        "outside": [weight * alpha for weight in weights],
    }


def drawn(num_layers: int = 4, dtype=torch.float64) -> list[dict[str, torch.Tensor]]:
    """Two residuals on two parameters a layer and three beside them; the second lacks a layer."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{part}.weight" for i in range(num_layers) for part in ("a", "b")]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    taus = [{name: torch.randn(3, 5, generator=generator, dtype=dtype) for name in names} for _ in range(2)]
    del taus[1]["model.layers.2.a.weight"]
    return taus


def assert_equal(got, expected) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


# --- the sum ---


@pytest.mark.parametrize("weights", [None, WEIGHTS, (0.0, 1.0)])
def test_every_policy_has_a_factor_in_every_layer(weights):
    taus = drawn()
    shares = [1.0, 1.0] if weights is None else [2 * weight for weight in weights]  # K w_k
    got = merge_residuals(taus, "layerwise", weights=weights, **OPTIONS)
    for name, layer in layer_indices(got).items():
        zero = torch.zeros(3, 5, dtype=torch.float64)
        c = [OUTSIDE[k] if layer is None else FACTORS[k][layer] for k in (0, 1)]
        expected = sum(shares[k] * c[k] * taus[k].get(name, zero) for k in (0, 1))
        torch.testing.assert_close(got[name], expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_the_authors_lines_on_a_sum_is_a_profile(dtype):
    options = of_lines((1.0, 1.0, 1.0), 1 / 3, 0.4, NUM_LAYERS)
    assert_case("lines_merged_sum_n3_b0.4", merge_residuals(task_vectors(3, dtype), "layerwise", **options))


def test_the_authors_lines_on_adapters_is_a_profile(tmp_path):
    adapters = reference_adapters(tmp_path)
    spec = MergeSpec("layerwise", (0.5, 0.5), options=of_lines((0.7, 0.3), 0.5, 0.5, NUM_LAYERS))
    merged = merge_adapters(adapters, spec, num_layers=NUM_LAYERS)
    got = {f"{module}.weight": factors.B @ factors.A for module, factors in merged.items()}
    assert_case("lines_rewarded_soup_lora_n2_l0.3_a0.5_b0.5", got)


# --- special cases ---


def test_a_soup_is_the_same_factors_in_all_layers_bit_for_bit():
    taus = drawn(dtype=torch.float32)
    options = {"factors": [[weight] * 4 for weight in WEIGHTS], "outside": list(WEIGHTS)}
    assert_equal(merge_residuals(taus, "layerwise", **options), merge_residuals(taus, "linear", weights=WEIGHTS))


def test_factors_of_one_are_the_sum_bit_for_bit():
    taus, ones = drawn(dtype=torch.float32), {"factors": [[1] * 4] * 2, "outside": [1, 1]}
    for weights in (None, WEIGHTS):
        got = merge_residuals(taus, "layerwise", weights=weights, **ones)
        assert_equal(got, merge_residuals(taus, "sum", weights=weights))


@pytest.mark.parametrize("schedule", ["linear", "sqrt", "reversed_quadratic"])
def test_lines_is_a_profile_up_to_rounding(schedule):
    taus = drawn(dtype=torch.float32)
    got = merge_residuals(taus, "layerwise", **of_lines(WEIGHTS, 0.4, 1.2, 4, schedule))
    expected = apply_lines(merge_residuals(taus, "linear", weights=WEIGHTS), 0.4, 1.2, schedule=schedule)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [None, 0, 1, 3])
@pytest.mark.parametrize(
    ("same", "spec"),
    [
        (of_lines(WEIGHTS, 0.4, 1.2, 4, "sqrt"), MergeSpec("linear", WEIGHTS, 0.4, 1.2, "sqrt")),
        (of_lines(WEIGHTS, 1.0, 0.0, 4), MergeSpec("linear", WEIGHTS)),
        (of_lines((1.0, 1.0), 0.3, 0.0, 4), MergeSpec("sum", (0.5, 0.5), 0.3)),
    ],
)
def test_rows_of_a_mixed_batch_are_those_of_lines_and_soups_bit_for_bit(same, spec, layer):
    profile = MergeSpec("layerwise", (0.5, 0.5), options=same)
    rows = [coefficients(one, (4, 3), layer, 4, dtype=torch.float64) for one in (profile, spec)]
    assert torch.equal(*rows)


def test_lines_comes_after_the_rule():
    taus = drawn()
    spec = MergeSpec("layerwise", WEIGHTS, 0.5, 1.0, "quadratic", OPTIONS)
    merged = apply_lines(merge_residuals(taus, "layerwise", weights=WEIGHTS, **OPTIONS), 0.5, 1.0, schedule="quadratic")
    for name, layer in layer_indices(merged).items():
        row = coefficients(spec, (1, 1), layer, 4, dtype=torch.float64)
        expected = sum(row[k] * taus[k][name] for k in (0, 1) if name in taus[k])
        torch.testing.assert_close(merged[name], expected, rtol=1e-14, atol=1e-14)


# --- the spec and its file ---


def test_equal_profiles_are_one_spec():
    one = MergeSpec("layerwise", (1,), options={"factors": [[1, -0.0]], "outside": (0,)})
    other = MergeSpec("layerwise", (1.0,), options={"factors": ((1.0, 0.0),), "outside": [-0.0]})
    assert one == other and hash(one) == hash(other) and one.digest() == other.digest()
    assert MergeSpec.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert one != MergeSpec("layerwise", (1,), options={"factors": [[1, 0.5]], "outside": [0]})


def test_a_profile_of_some_policies_is_theirs():
    profile = Profile.of(OPTIONS).scaled((2.0, 0.5)).of_policies([1])
    assert profile.to_options() == {"factors": [[0.5, -0.25, 0.125, 1.0]], "outside": [0.75]}


def test_a_line_tells_profiles_apart():
    texts = {options_text({"factors": [[1, 2], [0.5, factor]], "outside": [1, 1]}) for factor in (1, 1.5)}
    assert len(texts) == 2 and all(text.startswith("factors of 2 policies in 2 layers, 0.5 to 2 (") for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no factors and outside: give factors, a list per policy"),
        ({"factors": FACTORS}, "has no outside: "),
        ({"factors": "c.json"}, "has no outside"),
        ({"factors": "c.json", "outside": [1]}, "factors is the text 'c.json', expected a list of numbers per policy"),
        ({"factors": [], "outside": []}, r"factors is \[\], expected a list of numbers per policy, one per layer"),
        ({"factors": [1, 2], "outside": [1, 2]}, r"factors is \[1, 2\], expected a list"),
        ({"factors": [[]], "outside": [1]}, r"factors is \[\[\]\], expected"),
        ({"factors": [[1, 2], [1]], "outside": [1, 1]}, r"factors has rows of \[2, 1\] numbers"),
        ({"factors": [[1, 2]], "outside": [1, 1]}, "factors are of 1 policy, outside of 2"),
        ({"factors": [[1, 2]], "outside": 1}, "outside is 1, expected a list of one number per policy"),
        ({"factors": [[1, "2"]], "outside": [1]}, r"factors\[0\]\[1\] is '2', expected a finite number"),
        ({"factors": [[1, True]], "outside": [1]}, r"factors\[0\]\[1\] is True"),
        ({"factors": [[1, 1]], "outside": [1e39]}, r"outside\[0\] is 1e\+39, expected a finite number that float32"),
        ({"factors": [[float("nan")]], "outside": [1]}, "must be plain JSON values|is nan"),
        ({"scale": 2, **OPTIONS}, "unknown option of rule 'layerwise' 'scale'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MergeSpec("layerwise", (0.5, 0.5), options=options)
    with pytest.raises(ValueError, match=message):
        merge_residuals(drawn(), "layerwise", **options)


def test_numbers_of_policies_and_layers_have_to_fit(helpful, harmless):
    with pytest.raises(ValueError, match="are of 2 policies, but 3 are merged"):
        merge_residuals([*drawn(), {}], "layerwise", **OPTIONS)
    with pytest.raises(ValueError, match=r"layer model.layers.4 is out of range for a model of 4 layers"):
        merge_residuals(drawn(num_layers=5), "layerwise", **OPTIONS)
    spec = MergeSpec("layerwise", (0.5, 0.5), options=OPTIONS)
    with pytest.raises(ValueError, match="are of 4 layers, but the policies change a model of 12"):
        merge_adapters([load_adapter(helpful), load_adapter(harmless)], spec, num_layers=12)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", {}, "the file of factors c.json is no JSON"),
        ("[1]", {}, "holds list, expected the keys factors and outside"),
        ('{"factors": [[1]]}', {}, r"holds \['factors'\], expected the keys factors and outside"),
        ('{"factors": [[1]], "outside": [1]}', {"outside": [1]}, "is the file c.json, which has factors and outside"),
    ],
)
def test_a_file_that_holds_no_profile_is_refused(content, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_profile({"factors": "c.json", **options})


def test_a_file_may_hold_what_else_the_rule_takes(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**OPTIONS, "density": 0.3}))
    assert read_profile({"factors": str(path)}) == {**OPTIONS, "density": 0.3}
    with pytest.raises(ValueError, match="which has density, too: leave it out"):
        read_profile({"factors": str(path), "density": 0.3})
    spec = MergeSpec("ties_layerwise", (0.5, 0.5), options={**OPTIONS, "density": 0.3})
    assert spec.options == {**OPTIONS, "density": 0.3} and options_text(spec.options).endswith("), density 0.3")
    with pytest.raises(ValueError, match="unknown option of rule 'layerwise' 'density'"):
        MergeSpec("layerwise", (0.5, 0.5), options={**OPTIONS, "density": 0.3})


# --- merges of files ---


@pytest.fixture
def command(sft, helpful, harmless, tmp_path, monkeypatch):
    """A function from further flags to the command that merges two adapters by the file c.json."""
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps(OPTIONS))
    given = ["--sft_model", str(sft), "--policies", str(helpful), str(harmless), "--rule", "layerwise"]
    return lambda *flags: ["merge", *given, "--rule_options", '{"factors": "c.json"}', *flags]


def test_the_record_holds_the_numbers_of_the_file(command, sft, helpful, harmless):
    assert cli.main(command("--save", "adapter", "--output_dir", "first")) == 0
    Path("c.json").unlink()
    record = json.loads(Path("first/merge_spec.json").read_text())
    assert record["spec"]["options"] == OPTIONS
    assert cli.main(["merge", "--config", "first/merge_spec.json", "--output_dir", "second"]) == 0
    for path in Path("first").iterdir():
        assert Path("second", path.name).read_bytes() == path.read_bytes(), path.name
    inline = ["--rule_options", json.dumps(OPTIONS), "--save", "adapter", "--output_dir", "third"]
    assert cli.main([*command()[:-2], *inline]) == 0
    assert Path("third/adapter_model.safetensors").read_bytes() == Path("first/adapter_model.safetensors").read_bytes()
    assert "by layer: 0.5, 0, 1.5, 1; outside the layers: 0.5" in Path("first/README.md").read_text().replace("\\", "")


def test_adapters_hold_a_layerwise_merge_exactly(sft, helpful, harmless, tmp_path, peft_logits, dense_logits):
    spec = MergeSpec("layerwise", WEIGHTS, 0.8, 0.5, options=OPTIONS)
    for save in ("adapter", "dense"):
        merge_policies(sft, [helpful, harmless], spec, save=save, output_dir=tmp_path / save)
    got, expected = peft_logits(sft, tmp_path / "adapter"), dense_logits(tmp_path / "dense")
    assert (expected - dense_logits(sft)).abs().max() > 0.05
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"factors": [row[:3] for row in FACTORS], "outside": OUTSIDE},
            "are of 3 layers, but the policies change a model",
        ),
        ({"factors": FACTORS[:1], "outside": [1.0]}, "are of 1 policy, but 2 are merged: give one list"),
    ],
)
@pytest.mark.parametrize("save", ["adapter", "dense"])
def test_wrong_numbers_are_one_sentence_before_the_work(command, capsys, options, message, save):
    Path("c.json").write_text(json.dumps(options))
    for plan_only in ([], ["--plan"]):
        assert cli.main(command("--save", save, "--output_dir", "out", *plan_only)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not list(Path().glob("*out*"))


def test_a_file_that_is_missing_is_named(command, capsys):
    Path("c.json").unlink()
    assert cli.main(command("--save", "adapter", "--output_dir", "out")) == 2
    error = capsys.readouterr().err
    assert "factors is 'c.json', and there is no such file" in error and error.count("\n") == 1


def test_the_plan_of_inputs_that_are_not_there_yet_knows_the_number_of_layers(command, sft, tmp_path):
    arguments = command("--save", "adapter", "--output_dir", "out")[1:]
    planned = plan(arguments, Options("merge"))
    assert dict(planned.work)["rule"] == f"layerwise, {options_text(OPTIONS)}"
    shallow = tmp_path / "only a config"
    shallow.mkdir()
    config = json.loads((sft / "config.json").read_text())
    (shallow / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    arguments[arguments.index(str(sft))] = str(shallow)
    with pytest.raises(ValueError, match="are of 4 layers, but the policies change a model of 3"):
        plan(arguments, Options("merge"))


def test_a_weighted_sum_by_layer_is_linear():
    assert RULES["layerwise"].is_linear and RULES["layerwise"].makes_adapter

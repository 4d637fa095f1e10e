"""From a folder, an adapter, a preset or a function to a reward model."""

from __future__ import annotations

import json

import pytest
import torch

from reward_models import PRESETS, Classifier, Format, FunctionReward, RewardModel, load, write_settings


def lengths(prompts, completions):
    return [len(completion) for completion in completions]


@pytest.fixture
def folder(make_model, make_tokenizer, tmp_path):
    """A reward model as a training stage leaves it."""
    path = tmp_path / "helpful"
    make_model("gpt2", num_labels=2).save_pretrained(path)
    make_tokenizer("bos").save_pretrained(path)
    write_settings(path, Format(template="Q{prompt}A{completion}", append_eos=True, label=1, sign=-1))
    return path


def test_a_folder_is_scored_as_its_settings_say(folder, make_model, make_tokenizer):
    model = load(folder, batch_size=3)
    assert isinstance(model, RewardModel) and isinstance(model, Classifier)
    assert (model.name, model.batch_size, model.model.training) == ("helpful", 3, False)
    ids = make_tokenizer("bos")("QhiAyou<eos>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = -float(make_model("gpt2", num_labels=2)(ids).logits[0, 1])
    assert load(str(folder), name="other").score(["hi"], ["you"]) == pytest.approx([expected], abs=1e-5)


def test_dtype_and_device_are_used(folder):
    model = load(folder, dtype="bfloat16", device="cpu").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in load(folder, device="cpu").model.parameters()} == {torch.float32}
    for dtype in ("bf16", "int8", "Tensor"):
        with pytest.raises(ValueError, match=f"is '{dtype}'; expected float32, bfloat16 or float16"):
            load(folder, dtype=dtype)


def test_a_checkpoint_without_a_head_is_an_error(make_model, make_tokenizer, tmp_path):
    make_model("gpt2").transformer.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no weights for \['score.weight'\], so its scores would be random"):
        load(tmp_path)


@pytest.fixture
def adapter(make_model, make_tokenizer, tmp_path):
    """An adapter with a trained head on a base without one, and the model it was trained as."""
    from peft import LoraConfig, get_peft_model

    model = make_model("llama", pad_token_id=None)
    model.model.save_pretrained(tmp_path / "base")
    make_tokenizer("bos").save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    config.task_type = "SEQ_CLS"
    trained = get_peft_model(model, config)
    for name, parameter in trained.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    trained.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    trained.save_pretrained(tmp_path / "adapter")
    make_tokenizer("bos", pad_token="<eos>").save_pretrained(tmp_path / "adapter")
    trained.config.pad_token_id = 0
    return tmp_path / "adapter", trained.eval()


def test_an_adapter_is_loaded_on_its_base_with_its_head(adapter):
    folder, trained = adapter
    model = load(folder)
    # The pad token of training is EOS: a trailing EOS is skipped by the head in training, and so it is here.
    for completion in (" you", " you<eos>"):
        with torch.no_grad():
            expected = float(trained(**model.tokenizer("hi" + completion, return_tensors="pt")).logits[0, 0])
        assert model.score(["hi"], [completion]) == pytest.approx([expected], abs=1e-4)
    assert not any("lora" in name for name, _ in model.model.named_parameters())


def test_an_adapter_that_does_not_fit_is_an_error(adapter):
    from safetensors.torch import load_file, save_file

    folder, _ = adapter
    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    save_file({name.replace("layers.1", "layers.7"): tensor for name, tensor in saved.items()}, file)
    with pytest.raises(ValueError, match=r"layers.7.* has no place in the base"):
        load(folder)
    save_file({name: tensor for name, tensor in saved.items() if "score" not in name}, file)
    with pytest.raises(ValueError, match=r"has no weights for \['score.weight'\]"):
        load(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model.safetensors does not exist"):
        load(folder)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/absent/base", "names the base /absent/base, which does not exist; restore that folder"),
        ("absent/base", "names the base absent/base, which can be read neither as a folder, from here, nor from the H"),
    ],
)
def test_an_adapter_without_its_base_is_an_error(adapter, monkeypatch, base, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
    with pytest.raises(FileNotFoundError, match=message):
        load(folder)


@pytest.mark.parametrize("path", ["./absent", "/absent", "outputs/reward_models/absent", "../absent", "absent/"])
def test_a_folder_that_does_not_exist_is_an_error(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist; make one with: rlhf-lines reward"):
        load(path)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither config.json nor adapter_config.json"):
        load(tmp_path)


def test_a_folder_of_pickles_is_an_error(make_model, make_tokenizer, tmp_path):
    model = make_model("gpt2")
    model.config.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"holds no weights as safetensors.*as docs/reward_models.md shows"):
        load(tmp_path)


def test_a_missing_folder_beside_existing_ones_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="outputs/absent does not exist"):
        load("outputs/absent")


def test_a_function_is_a_reward_model(tmp_path, monkeypatch):
    (tmp_path / "plain_rewards.py").write_text(
        "def short(prompts, completions):\n    return [-len(c) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for source in ("plain_rewards:short", "plain_rewards.short"):
        model = load(source)
        assert isinstance(model, RewardModel) and model.name == "short"
        assert model.score(["a", "b"], ["xy", ""]) == [-2.0, 0.0]
    assert load("plain_rewards:short", name="brevity").name == "brevity"
    with pytest.raises(ValueError, match="'long', which is no function of 'plain_rewards'; expected"):
        load("plain_rewards:long")
    with pytest.raises(ValueError, match=r"'shrot', which is no function of 'plain_rewards'; did you mean 'short'\?"):
        load("plain_rewards:shrot")
    monkeypatch.chdir(tmp_path)
    for typo in ("plain_reward:short", "plain_rewards.py:short"):
        with pytest.raises(ValueError, match=r"which cannot be found; did you mean 'plain_rewards'\?$"):
            load(typo)
    with pytest.raises(ValueError, match="the module 'no_such_module', which cannot be found"):
        load("no_such_module:short")


def test_options_of_a_function_are_keyword_arguments(tmp_path, monkeypatch):
    (tmp_path / "optional_rewards.py").write_text(
        "def near(prompts, completions, *, target, scale=1.0):\n"
        "    return [-abs(len(c) - target) / scale for c in completions]\n"
        "class Near:\n"
        "    def __call__(self, prompts, completions):\n"
        "        return [0.0 for c in completions]\n"
        "nearby = Near()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = {"target": 3, "scale": 2}
    model = load("optional_rewards:near", options=options)
    assert model.name == "near" and model.score(["a", "b"], ["xy", "xyz"]) == [-0.5, 0.0]
    assert options == {"target": 3, "scale": 2}
    assert load("optional_rewards:nearby").name == "nearby"
    with pytest.raises(ValueError, match=r"cannot be called with its options target, goal: .*'goal'"):
        load("optional_rewards:near", options={"target": 3, "goal": 3})
    with pytest.raises(ValueError, match=r"'near' cannot be called: missing a required .*'target'; it may ask"):
        load("optional_rewards:near", options={"scale": 3}).score(["a"], ["b"])  # a column may have that name


def test_a_classifier_has_no_options(folder, opened):
    for source in (folder, "humor", "somebody/something"):
        with pytest.raises(ValueError, match=r"takes no options, but got label, sign; .* reward_model\.json"):
            load(source, options={"label": 1, "sign": -1})
    assert opened == []
    assert isinstance(load(folder, options={}), Classifier)


def test_a_module_that_lacks_something_of_its_own_says_so(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("import a_package_that_is_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"which cannot be imported; .*a_package_that_is_not_installed"):
        load("broken_rewards:short")


def test_a_function_must_return_one_finite_number_per_pair():
    assert FunctionReward(lengths).score(["a", "b"], ["xy", ""]) == [2.0, 0.0]
    with pytest.raises(ValueError, match="'lengths' got 1 prompts and 2 completions"):
        FunctionReward(lengths).score(["a"], ["b", "c"])
    with pytest.raises(ValueError, match="got a single string"):
        FunctionReward(lengths).score("a", "b")
    with pytest.raises(
        ValueError, match=r"got the prompt \[\{'role': 'user'\}\] at index 1; expected a text; put mess"
    ):
        FunctionReward(lengths).score(["a", [{"role": "user"}]], ["b", "c"])
    with pytest.raises(ValueError, match="got the completion None at index 0; expected a text"):
        FunctionReward(lengths).score(["a"], [None])
    with pytest.raises(ValueError, match="'nothing' returned None; expected one number per prompt"):
        FunctionReward(lambda prompts, completions: None, name="nothing").score(["a"], ["b"])
    with pytest.raises(ValueError, match=r"'partly' returned \[1.0, None\]; expected one number per prompt"):
        FunctionReward(lambda prompts, completions: [1.0, None], name="partly").score(["a", "b"], ["c", "d"])
    for large, written in ((10**400, r"\[1000*\.\.\."), (10**5000, "list of more digits than can be written")):
        with pytest.raises(ValueError, match=rf"returned {written}; expected one number per prompt \(int too large to"):
            FunctionReward(lambda prompts, completions, large=large: [large], name="large").score(["a"], ["b"])
    with pytest.raises(ValueError, match="returned 1 scores for 2 prompts"):
        FunctionReward(lambda prompts, completions: [1.0], name="one").score(["a", "b"], ["c", "d"])
    with pytest.raises(ValueError, match="returned inf for the pair at index 1 with the prompt 'b'"):
        FunctionReward(lambda prompts, completions: [1.0, float("inf")], name="one").score(["a", "b"], ["c", "d"])
    with pytest.raises(
        ValueError, match=r"returned 1e\+39 for .* 'b'; expected a finite number of at most 1e\+18 in size"
    ):
        FunctionReward(lambda prompts, completions: [-1e18, 1e39], name="one").score(["a", "b"], ["c", "d"])


def test_an_unknown_name_lists_the_presets_with_the_closest():
    with pytest.raises(ValueError, match=r"'hh-helpfull' is not known; did you mean 'hh-helpful'\? .* humor") as error:
        load("hh-helpfull")
    assert all(name in str(error.value) for name in PRESETS)


@pytest.fixture
def opened(monkeypatch, make_model, make_tokenizer):
    """Replaces the Hub: records what was opened."""
    sources = []

    def open_checkpoint(source, **options):
        sources.append(source)
        if source == "nobody/nothing":
            raise OSError("no such repository.\nmore lines")
        return make_model("bert", num_labels=2), make_tokenizer("encoder")

    monkeypatch.setattr("reward_models.classifier.open_checkpoint", open_checkpoint)
    return sources


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_by_name_and_by_hub_id(name, opened):
    for source in (name, PRESETS[name].model):
        model = load(source)
        assert (model.name, model.format) == (name, PRESETS[name].format)
    assert opened == [PRESETS[name].model] * 2


def test_another_hub_id_is_a_classifier_of_prompt_and_completion(opened):
    model = load("somebody/something")
    assert (model.name, model.format, opened) == ("something", Format(), ["somebody/something"])
    message = r"'nobody/nothing' cannot be loaded .*\(no such repository\); .*docs/reward_models.md.*hh-harmless"
    with pytest.raises(ValueError, match=message):
        load("nobody/nothing")

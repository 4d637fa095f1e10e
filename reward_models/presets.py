"""Public reward models of the rewarded-soup and rewards-in-context papers, as data.

The formats are those of the models' cards and of the papers' code. That code also cuts the completion to its first
sentence (rewarded soups, summaries) or rounds scores to one decimal (rewards-in-context); neither is done here. Which
prompt a model expects is part of its format: pass that, not the prompt of the policy with its instruction around it.

Sources: rewarded soups, arXiv 2306.04488; rewards-in-context, arXiv 2402.10207; pages per preset.
"""

from __future__ import annotations

from dataclasses import dataclass

from reward_models.format import Format


RS_CODE = "https://github.com/alexrame/rewardedsoups/blob/1f4aef4e27cfe1e6d8beeeb5ba411980222df67c/llama"
RIC_CODE = "https://github.com/YangRui2015/RiC/blob/6fc6d69523caf66b666fd9d3a54814ef009314ce/ppo"


@dataclass(frozen=True)
class Preset:
    """A public classifier with the format it is used with.

    Attributes:
        model: its Hub id.
        format: text format and label.
        prompt: what to pass as the prompt.
        meaning: what a higher score means.
        sources: pages that state the format.
    """

    model: str
    format: Format
    prompt: str
    meaning: str
    sources: tuple[str, ...]


PRESETS: dict[str, Preset] = {
    "tldr-preference": Preset(
        model="Tristan/gpt2_reward_summarization",
        format=Format(template="{completion} {bos_token} {prompt}", cut="right"),
        prompt="the post that is summarised, without instruction",
        meaning="people would prefer the summary",
        sources=(f"{RS_CODE}/tasks/summary.py", f"{RIC_CODE}/multi_reward_models.py"),
    ),
    # Rewarded soups optimise faithful minus hallucinated ('1-0'); rewards-in-context reads the faithful output alone.
    "faithful-summary": Preset(
        model="CogComp/bart-faithful-summary-detector",
        format=Format(template=("{completion}", "{prompt}"), label=(1, 0), cut="right"),
        prompt="the article or post that is summarised, without instruction",
        meaning="the summary says nothing that the text does not say",
        sources=(
            "https://huggingface.co/CogComp/bart-faithful-summary-detector",
            f"{RS_CODE}/utils/args_utils.py",
            f"{RIC_CODE}/multi_reward_models.py",
        ),
    ),
    "assistant-deberta": Preset(
        model="OpenAssistant/reward-model-deberta-v3-large-v2",
        format=Format(template=("{prompt}", "{completion}")),
        prompt="the question",
        meaning="people would prefer the answer",
        sources=(
            "https://huggingface.co/OpenAssistant/reward-model-deberta-v3-large-v2",
            f"{RS_CODE}/tasks/assistant.py",
            f"{RIC_CODE}/multi_reward_models.py",
        ),
    ),
    # Rewards-in-context strips the reply and puts a space before the last '\n\nAssistant:'; in Anthropic/hh-rlhf the
    # space stands after it. Texts are scored as they are given.
    "hh-helpful": Preset(
        model="Ray2333/gpt2-large-helpful-reward_model",
        format=Format(template=("{prompt}", "{completion}")),
        prompt="the dialogue as '\\n\\nHuman: ... \\n\\nAssistant:', ending there",
        meaning="the reply is more helpful",
        sources=(
            "https://huggingface.co/Ray2333/gpt2-large-helpful-reward_model",
            f"{RIC_CODE}/multi_reward_models.py",
            f"{RIC_CODE}/utils.py",
        ),
    ),
    "hh-harmless": Preset(
        model="Ray2333/gpt2-large-harmless-reward_model",
        format=Format(template=("{prompt}", "{completion}")),
        prompt="the dialogue as '\\n\\nHuman: ... \\n\\nAssistant:', ending there",
        meaning="the reply is less harmful",
        sources=(
            "https://huggingface.co/Ray2333/gpt2-large-harmless-reward_model",
            f"{RIC_CODE}/multi_reward_models.py",
            f"{RIC_CODE}/utils.py",
        ),
    ),
    "humor": Preset(
        model="mohameddhiab/humor-no-humor",
        format=Format(template="{completion}", label=1),
        prompt="anything; it is not read",
        meaning="the completion is funnier",
        sources=(
            "https://huggingface.co/mohameddhiab/humor-no-humor/blob/main/config.json",
            f"{RIC_CODE}/multi_reward_models.py",
        ),
    ),
}


def preset_of(source: str) -> str | None:
    """The name of the preset that a source is, by that name or by its Hub id; None if it is none."""
    return next((name for name, preset in PRESETS.items() if source in (name, preset.model)), None)

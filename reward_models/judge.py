"""A chat model as a judge: it grades a completion by a rubric, or says which of two is better.

Any service will do that speaks OpenAI's `/chat/completions`: vLLM, llama.cpp, a hosted model. The prompts are in
`judge_prompts`. What a judge is known for, favouring the reply that it reads first, is met by asking in both orders.

Source: Zheng et al. 2023, Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, arXiv 2306.05685 (grades, pairs, a
win only where both orders agree, sections 3.1 and 3.4).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from reward_models.base import check_lengths, checked_scores, excerpt, is_number
from reward_models.conversation import Prompt, Turn, conversation_text
from reward_models.judge_prompts import AGAIN, COMPARE, GRADE, NUMBERS, REASONED
from reward_models.service import JUDGE, SETTINGS, Service, check_options, is_address


PATH = "/chat/completions"
OPTIONS = ("model", "rubric", "scale", "against", "sampling", *SETTINGS)
RIVAL = "rival"  # the column of what completions are compared with
TRIES = 3  # answers to one question until its verdict can be read
WIN, TIE, LOSS = 1.0, 0.5, 0.0
_BETWEEN = r"[\s*_`]*(?:[:=][\s*_`]*)?(?:\[\[[\s*_`]*)?"  # markdown, a colon, and the brackets of MT-Bench
_GRADE = re.compile(rf"grade{_BETWEEN}([+-]?\d+(?:[.,]\d+)*)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+|,\d\d?)?")  # 8,5 is 8.5; 1,000 may be two numbers, and is none
_VERDICT = re.compile(rf"verdict{_BETWEEN}(tie|[AB])\b(?=(.*))", re.IGNORECASE)  # and the rest of its line
# Behind an "a" that is an article: "a tie", "a close win for B".
_OF_ARTICLE = re.compile(r"[ \t]+[*_`]*(?:\w+[ \t]+)?(?:tie|draw|win[ \t]+for[ \t]+[*_`]*([AB]))\b", re.IGNORECASE)


class Judge:
    """What a grader and a comparer have in common.

    Attributes:
        name: what the score is called.
        service: what is asked.
        reads_turns: always; a prompt may be a text or its turns.
        unread: how many answers so far had no verdict that could be read. Each was asked for once more, twice at most.
    """

    reads_turns = True

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        model: str | None = None,
        rubric: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        """Take the settings; nothing is sent.

        Args:
            url: the address up to `/v1`, or all of it; a query stays behind it.
            name: what the score is called; None is `judge`.
            model: of the service.
            rubric: what makes a reply good.
            sampling: goes into the request as it is; None is a temperature of 0.
            **settings: of `Service`.

        Raises:
            ValueError: a setting is missing or wrong.
        """
        self.name = name or JUDGE.removesuffix(":")
        for option, value in (("model", model), ("rubric", rubric)):
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"the option {option} of {self.name} is {value!r}; expected a text")
        if sampling is not None and not isinstance(sampling, Mapping):
            raise ValueError(f"the option sampling of {self.name} is {sampling!r}; expected names with values")
        if taken := {"model", "messages", "stream", "n"} & set(sampling or ()):
            raise ValueError(f"the option sampling of {self.name} holds {taken.pop()!r}, which is not its to say")
        parts = urlsplit(url)
        path = parts.path.rstrip("/").removesuffix(PATH) + PATH
        self.service = Service(parts._replace(path=path).geturl(), name=self.name, **settings)
        self.rubric, self.unread, self._model = rubric.strip(), 0, model
        self._sampling = {"temperature": 0} if sampling is None else dict(sampling)

    def _verdicts(self, questions: Sequence[str], read: Callable[[str], Any]) -> list[Any]:
        """What `read` makes of the answer to each question, or else the last answer, as a `_Unread`."""
        talks: list[list[Turn]] = [[{"role": "user", "content": question}] for question in questions]
        found: list[Any] = [None] * len(questions)
        left = list(range(len(questions)))
        for _ in range(TRIES):
            answers = self.service.ask([self._body(talks[i]) for i in left])
            for i, answer in zip(left, answers, strict=True):
                said = self._said(answer)
                verdict = read(said)
                found[i] = _Unread(said) if verdict is None else verdict
                talks[i] += [{"role": "assistant", "content": said}, {"role": "user", "content": AGAIN}]
            left = [i for i in left if isinstance(found[i], _Unread)]
            self.unread += len(left)
            if not left:
                break
        return found

    def _body(self, turns: list[Turn]) -> dict[str, Any]:
        return {"model": self._model, "messages": turns, **self._sampling}

    def _said(self, answer: Any) -> str:
        try:
            content = answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):  # a list of parts, as some hosted models answer, has no one text either
            raise ValueError(
                f"the judge {self.name!r} ({self.service.url}) answered {excerpt(answer)}, which is not the form of "
                "OpenAI's chat completions, with one text; check the address and the model"
            )
        return content


class Grader(Judge):
    """Score completions by the grade that a chat model gives them by a rubric.

    Attributes:
        scale: the lowest and the highest grade.
    """

    def __init__(self, url: str, *, scale: Sequence[float] = (1, 10), **settings: Any) -> None:
        """Take the settings; see `Judge`.

        Raises:
            ValueError: one is missing or wrong.
        """
        super().__init__(url, **settings)
        if not isinstance(scale, Sequence) or len(scale) != 2 or not all(map(is_number, scale)) or scale[0] >= scale[1]:
            raise ValueError(
                f"the option scale of {self.name} is {scale!r}; expected the lowest and the highest grade, as [1, 10]"
            )
        self.scale = tuple(scale)

    def score(self, prompts: Sequence[Prompt], completions: list[str]) -> list[float]:
        """One grade per pair, in order.

        Raises:
            ValueError: the lists differ in length, the service fails, or a grade could not be read in three answers.
        """
        check_lengths(self.name, prompts, completions, turns=True)
        questions = [self.shown(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        grades = self._verdicts(questions, self._grade)
        for prompt, grade in zip(prompts, grades, strict=True):
            if isinstance(grade, _Unread):
                raise ValueError(
                    f"the judge {self.name!r} gave no grade from {self.scale[0]:g} to {self.scale[1]:g} in {TRIES} "
                    f"answers, for the prompt {excerpt(prompt)}; the last ends in {excerpt(grade.end)}; take another "
                    "model, or let it write more (sampling: max_tokens)"
                )
        return checked_scores(self.name, grades, prompts)

    def shown(self, prompt: Prompt, completion: str) -> str:
        """The question for one pair."""
        lowest, highest = (f"{value:g}" for value in self.scale)
        grades, form = NUMBERS
        ending = REASONED.format(grades=grades.format(lowest=lowest, highest=highest), form=form)
        talk, reply = conversation_text(prompt), completion.strip()
        return GRADE.format(rubric=self.rubric, conversation=talk, reply=reply, ending=ending)

    def _grade(self, said: str) -> float | None:
        grades = _GRADE.findall(said)
        if not grades or _NUMBER.fullmatch(grades[-1]) is None:
            return None
        grade = float(grades[-1].replace(",", "."))
        return grade if self.scale[0] <= grade <= self.scale[1] else None


class Comparer(Judge):
    """Score completions by whether a chat model finds them better than others for the same prompts.

        score = 1 where it is better in both orders, 0 where it is worse in both, else 1/2

    Equal texts are a tie, and nobody is asked. So is a pair whose verdict could not be read.

    Attributes:
        against: what completions are compared with: `sft`, the name of a group, whose point of the same weights it is,
            or the id of a point of the run.
        reads_columns: always; the other completions are the column `rival`.
        compared: how many pairs were asked for so far.
        changed: how many of these had another verdict in the other order.
        undecided: of how many a verdict could not be read.
    """

    reads_columns = True

    def __init__(self, url: str, *, against: str | int, **settings: Any) -> None:
        """Take the settings; see `Judge`.

        Raises:
            ValueError: one is missing or wrong.
        """
        super().__init__(url, **settings)
        if isinstance(against, bool) or not isinstance(against, int | str) or against == "":
            raise ValueError(
                f"the option against of {self.name} is {against!r}; expected sft, the name of a group, or the id of a "
                "point of the run"
            )
        self.against, self.compared, self.changed, self.undecided = against, 0, 0, 0

    def score(
        self, prompts: Sequence[Prompt], completions: list[str], columns: Mapping[str, Any] | None = None
    ) -> list[float]:
        """1, 1/2 or 0 per pair, in order.

        Args:
            prompts: texts or turns.
            completions: texts.
            columns: with the other completions under `rival`.

        Raises:
            ValueError: the lists differ in length, there are no other completions, or the service fails.
        """
        check_lengths(self.name, prompts, completions, turns=True)
        self.check_form(list(columns or {}))
        trios = list(zip(prompts, completions, columns[RIVAL], strict=True))
        asked = [trio for trio in trios if trio[1].strip() != trio[2].strip()]
        there = self._verdicts([self._question(*trio) for trio in asked], _first_wins)
        back = self._verdicts([self._question(prompt, rival, own) for prompt, own, rival in asked], _first_wins)
        outcomes = iter([self._outcome(*pair) for pair in zip(there, back, strict=True)])
        return [TIE if own.strip() == rival.strip() else next(outcomes) for _, own, rival in trios]

    def check_form(self, columns: Sequence[str]) -> None:
        """Stop where there is nothing to compare with.

        Raises:
            ValueError: there is none.
        """
        if RIVAL not in columns:
            raise ValueError(
                f"the judge {self.name!r} compares with other completions, which are there when a sweep has finished: "
                "give it to rlhf-lines score, or leave out the option against to let it grade"
            )

    def shown(self, prompt: Prompt, completion: str) -> str:
        """The question for one pair; dots stand for the other completion."""
        return self._question(prompt, completion, "...")

    def _question(self, prompt: Prompt, first: str, second: str) -> str:
        talk = conversation_text(prompt)
        return COMPARE.format(rubric=self.rubric, conversation=talk, first=first.strip(), second=second.strip())

    def _outcome(self, there: Any, back: Any) -> float:
        self.compared += 1
        if isinstance(there, _Unread) or isinstance(back, _Unread):
            self.undecided += 1
            return TIE
        if there != 1 - back:  # the completion stood first there, and second here
            self.changed += 1
            return TIE
        return there


class _Unread:
    """An answer without a verdict: its end."""

    def __init__(self, said: str) -> None:
        self.end = said[-60:]


def make_judge(text: str, *, name: str | None, options: Mapping[str, Any]) -> Judge:
    """The judge that `judge:ADDRESS` names: one that compares where there is an option `against`, else one that grades.

    Raises:
        ValueError: there is no address, or an option is unknown, missing, wrong or without effect.
    """
    url = text.removeprefix(JUDGE)
    if not is_address(url):
        raise ValueError(f"the judge {text!r} names no address; expected one as in {JUDGE}http://localhost:8000/v1")
    check_options(text, options, OPTIONS)
    if options.get("against") is None:
        return Grader(url, name=name, **{key: value for key, value in options.items() if key != "against"})
    if "scale" in options:
        raise ValueError(f"{text} has the options against and scale, but who compares gives no grade; leave one out")
    return Comparer(url, name=name, **options)


def _first_wins(said: str) -> float | None:
    verdicts = _VERDICT.findall(said)
    if not verdicts:
        return None
    word, rest = verdicts[-1]
    if word.lower() == "a" and (found := _OF_ARTICLE.match(rest)):
        word = found[1] or "tie"
    return {"a": WIN, "b": LOSS, "tie": TIE}[word.lower()]

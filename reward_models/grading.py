"""How a language model is asked for a grade: the question, the start of its answer, the tokens of the grades.

No weights are needed. What is asked is the text of `judge_prompts`, as of a judge behind an address.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reward_models.base import excerpt, is_number
from reward_models.conversation import CHAT, Prompt, Turn, conversation_text
from reward_models.cut import fitting, longest
from reward_models.encoder import longest_input
from reward_models.format import SPECIAL_TOKENS, Format
from reward_models.judge_prompts import AT_ONCE, GRADE, NUMBERS, REASONED, WORDS


OPTIONS = ("rubric", "question", "grades", "cue", "reasoning")
CUE = "Grade:"  # as the last line of REASONED and AT_ONCE has it
_MARKUP = r"^[\s*_#`>-]*"  # what may stand before the cue in a line


class Grading:
    """What is asked, and what its answers are worth.

    Attributes:
        name: what the score is called.
        rubric: what makes a reply good, or None where there is a question.
        question: what is asked in place of the text of `judge_prompts`, as a format; or None.
        grades: the texts of the grades and what they are worth.
        cue: the text before the grade.
        reasoning: most tokens that are written before the cue.
        system: the system prompt, or None.
    """

    def __init__(
        self,
        name: str,
        *,
        rubric: str | None = None,
        question: str | None = None,
        grades: Sequence[float] | Mapping[str, float] = (1, 2, 3, 4, 5),
        cue: str | None = None,
        reasoning: int = 0,
        system: str | None = None,
    ) -> None:
        """Take the settings.

        Args:
            name: what the score is called.
            rubric: what makes a reply good.
            question: in place of it, all that is asked, with `{prompt}` and `{completion}`.
            grades: numbers, or texts with the numbers that they are worth.
            cue: the text before the grade; None is `Grade:`. Another one goes with a question.
            reasoning: most tokens that are written before the cue.
            system: the system prompt.

        Raises:
            ValueError: a setting is missing, wrong or without effect.
        """
        self.name, self.system, self.reasoning = name, system, reasoning
        if (rubric is None) == (question is None):
            given = "both" if rubric is not None else "neither"
            raise ValueError(
                f"{name} has {given} of the options rubric and question; expected what makes a reply good as rubric, "
                "or all that is asked as question, with {prompt} and {completion}"
            )
        for option, value in (("rubric", rubric), ("question", question)):
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ValueError(f"the option {option} of {name} is {value!r}; expected a text")
        if cue is not None and not isinstance(cue, str):
            raise ValueError(f"the option cue of {name} is {cue!r}; expected a text")
        if question is None and cue not in (None, CUE):
            raise ValueError(
                f"the option cue of {name} is {cue!r}, but the question that goes with a rubric asks for {CUE!r}; "
                "leave it out, or write the question yourself as the option question"
            )
        if isinstance(reasoning, bool) or not isinstance(reasoning, int) or reasoning < 0:
            raise ValueError(f"the option reasoning of {name} is {reasoning!r}; expected a number of tokens, from 0")
        self.rubric = None if rubric is None else rubric.strip()
        self.question = None if question is None else _question(name, question)
        self.cue = CUE if cue is None else cue.strip()
        self.grades, self._in_words = _grades(name, grades)
        if reasoning and not self.cue:
            raise ValueError(f"{name} has reasoning and an empty cue, so nothing says where the grade begins; give one")

    def text(self, prompt: Prompt, completion: str, special_tokens: Mapping[str, str | None]) -> str:
        """What is asked of a pair. In a question of the user's a single turn of the user stands without its role.

        Args:
            prompt: a text or its turns.
            completion: a text.
            special_tokens: the tokenizer's, which a question may name.
        """
        talk, reply = conversation_text(prompt), completion.strip()
        if self.question is not None:
            if not isinstance(prompt, str) and [turn["role"] for turn in prompt] == ["user"]:
                talk = prompt[0]["content"].strip()
            return self.question.render(talk, reply, special_tokens)[0]
        grades, form = self._in_words
        ending = (REASONED if self.reasoning else AT_ONCE).format(grades=grades, form=form)
        return GRADE.format(rubric=self.rubric, conversation=talk, reply=reply, ending=ending)

    def answers(self, reasons: str) -> list[str]:
        """The answer with each of the grades, after these reasons."""
        start = f"{reasons}\n{self.cue}" if reasons else self.cue
        return [f"{start} {grade}".removeprefix(" ") for grade in self.grades]

    def before_cue(self, said: str) -> str:
        r"""What was said before a line that begins with the cue.

        >>> Grading("g", rubric="Short.").before_cue("It is short. \n**grade:** 4")
        'It is short.'
        >>> Grading("g", rubric="Short.").before_cue("It is short. \n**Grade**: 4")
        'It is short.'
        """
        words = self.cue.rstrip(":= ")
        cue = re.escape(words) + "[*_` ]*" + re.escape(self.cue.removeprefix(words).strip())
        found = re.search(_MARKUP + cue, said, re.IGNORECASE | re.MULTILINE)
        return (said if found is None else said[: found.start()]).strip()


class Graded(NamedTuple):
    """The tokens that a model has read when the grade comes next, and the token that each grade begins with."""

    token_ids: list[int]
    grades: list[int]


class GradeEncoder:
    """From a pair to the tokens that are read before the grade.

    Attributes:
        grading: what is asked.
        tokenizer: of the language model.
        name: what the score is called.
        max_length: longest question in tokens, what is written and the cue not counted, or None for no limit.
        truncated: how many pairs were cut so far.
        reads_turns: always; a prompt may be a text or its turns.
    """

    reads_turns = True

    def __init__(self, config: Any, tokenizer: Any, grading: Grading) -> None:
        """Make the encoder of a language model with this transformers config.

        Raises:
            ValueError: the tokenizer has no chat template for a system prompt, it does not know a grade, two grades
                begin with the same token, or so much reasoning leaves no room for the question.
        """
        self.grading, self.tokenizer, self.name, self.truncated = grading, tokenizer, grading.name, 0
        if grading.system is not None and tokenizer.chat_template is None:
            raise ValueError(
                f"reward model {self.name!r} has the system prompt {excerpt(grading.system)}, but its tokenizer has no "
                "chat template; leave it out, and say it in the rubric"
            )
        self.at_once = self._graded("")  # also where the model writes first: grades that cannot be told end the run now
        self._longest = longest_input(config, tokenizer)
        self.max_length = question_room(grading, self._longest, cue=len(self.at_once.token_ids))

    def encode(self, prompt: Prompt, completion: str) -> list[int]:
        """The tokens of the question for one pair, up to where the model answers, cut to `max_length` if need be.

        The prompt is cut as a classifier's is (see `cut.fitting`): what is asked and the completion stay whole.

        Raises:
            ValueError: what is asked alone exceeds `max_length`, or the chat template refuses it.
        """
        ids = self._question(prompt, completion)
        if self.max_length is None or len(ids) <= self.max_length:
            return ids
        self.truncated += 1
        kept = fitting(prompt, completion, lambda *pair: len(self._question(*pair)) <= self.max_length)
        if kept is None:
            raise ValueError(
                f"what reward model {self.name!r} is asked is longer than the {self.max_length} tokens that it reads, "
                "without any prompt; shorten the rubric or question, or the reasoning"
            )
        return self._question(*kept)

    def graded(self, question: Sequence[int], said: str) -> Graded:
        """What the model reads before the grade, where this was said before it.

        Args:
            question: the tokens of `encode`.
            said: the reasoning, empty where there is none.
        """
        reasons = self.grading.before_cue(said) if said else ""
        if not reasons:
            return Graded([*question, *self.at_once.token_ids], self.at_once.grades)
        found = self._graded(reasons)
        if self._longest is not None and len(question) + len(found.token_ids) > self._longest:
            # Text that is tokenized again may have a token more than what was written.
            room = self._longest - len(question)
            kept = longest(len(reasons), lambda size: len(self._graded(reasons[:size]).token_ids) <= room)
            found = self._graded(reasons[:kept])
        return Graded([*question, *found.token_ids], found.grades)

    def shown(self, prompt: Prompt, completion: str) -> str:
        """What the model reads of one pair up to the grade, as text; dots stand for its reasoning."""
        before = self.truncated
        ids = self.encode(prompt, completion)
        self.truncated = before  # looking is not scoring
        start = [*self._ids("...\n"), *self.at_once.token_ids] if self.grading.reasoning else self.at_once.token_ids
        return self.tokenizer.decode([*ids, *start])

    def _question(self, prompt: Prompt, completion: str) -> list[int]:
        special_tokens = {name: getattr(self.tokenizer, name) for name in SPECIAL_TOKENS}
        text = self.grading.text(prompt, completion, special_tokens)
        if self.tokenizer.chat_template is not None:
            return self._chat(text)
        text = text if self.grading.question is not None else f"{text}\n\n"
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])
        eos = self.tokenizer.eos_token_id
        return ids[:-1] if ids[-1:] == [eos] and not text.endswith(self.tokenizer.eos_token) else ids

    def _chat(self, text: str) -> list[int]:
        turns: list[Turn] = [{"role": "user", "content": text}]
        if self.grading.system is not None:
            turns.insert(0, {"role": "system", "content": self.grading.system})
        try:
            # Templates of models that may think by themselves have this switch; the others do not look at it.
            row = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
            )
        except Exception as error:  # a template is a program: what it raises may be anything
            raise ValueError(
                f"the chat template of reward model {self.name!r} refuses what it is asked "
                f"({' '.join(str(error).split())}); leave out the system prompt if it has one"
            ) from error
        return list(row["input_ids"])

    def _graded(self, reasons: str) -> Graded:
        """The tokens that all answers begin with, and the next one of each."""
        rows = [self._ids(answer) for answer in self.grading.answers(reasons)]
        shared = 0
        while all(len(row) > shared for row in rows) and len({row[shared] for row in rows}) == 1:
            shared += 1
        firsts = [row[shared] if len(row) > shared else None for row in rows]
        for i, (grade, first) in enumerate(zip(self.grading.grades, firsts, strict=True)):
            if first is not None and first == self.tokenizer.unk_token_id:
                raise ValueError(
                    f"the grade {grade!r} of {self.name} begins with what its tokenizer does not know "
                    f"({self.tokenizer.unk_token}); take grades such as 1 to 5, or words that it knows"
                )
            same = firsts.index(first)
            if same < i or first is None:
                other = list(self.grading.grades)[same if same < i else 1 - min(i, 1)]
                raise ValueError(
                    f"the grades {other!r} and {grade!r} of {self.name} begin with the same token of its tokenizer, so "
                    "one token does not tell them apart; take grades such as 1 to 5, or words with other beginnings"
                )
        return Graded(rows[0][:shared], firsts)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def question_room(grading: Grading, longest: int | None, *, cue: int = 0) -> int | None:
    """The most tokens that a question may have, or None for no limit.

    Args:
        grading: what is asked.
        longest: tokens that the model reads in all, reasoning and cue with them; None is no limit.
        cue: tokens of the cue.

    Raises:
        ValueError: so much reasoning leaves none.
    """
    if longest is None:
        return None
    room = longest - grading.reasoning - cue
    if room < 1:
        raise ValueError(
            f"the option reasoning of {grading.name} is {grading.reasoning}, but the model reads {longest} tokens with "
            "the question; take fewer"
        )
    return room


def _question(name: str, text: str) -> Format:
    """The format of a question of the user's."""
    if text == CHAT:
        raise ValueError(f"the option question of {name} is {text!r}; expected all that is asked, with {{completion}}")
    try:
        return Format(template=text)
    except ValueError as error:
        raise ValueError(f"the option question of {name}: {error}") from None


def _grades(name: str, given: Any) -> tuple[dict[str, float], tuple[str, str]]:
    """Grades as texts with what they are worth, and how they are named in a question."""
    texts = given if isinstance(given, Mapping) else {}
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if any(isinstance(grade, bool) for grade in (given if listed else texts)):
        raise ValueError(
            f"the option grades of {name} is {given!r}: YAML reads Yes and No as true and false; write them in quotes, "
            "as {'Yes': 1, 'No': 0}"
        )
    if listed and all(map(is_number, given)):
        texts = {f"{grade:g}": float(grade) for grade in given}
    elif not all(isinstance(grade, str) and grade.strip() and is_number(worth) for grade, worth in texts.items()):
        texts = {}
    grades = {grade.strip(): float(worth) for grade, worth in texts.items()}
    if len(grades) < max(2, len(given) if listed else len(texts)) or len(set(grades.values())) < 2:
        raise ValueError(
            f"the option grades of {name} is {given!r}; expected two numbers or more, as [1, 2, 3, 4, 5], or texts in "
            "quotes with the numbers that they are worth, as {'Yes': 1, 'No': 0}"
        )
    ordered = sorted(grades, key=grades.__getitem__)
    values = [grades[grade] for grade in ordered]
    if listed and values == [values[0] + i for i in range(len(values))] and values[0].is_integer():
        words, form = NUMBERS
        return grades, (words.format(lowest=ordered[0], highest=ordered[-1]), form)
    words, form = WORDS
    return grades, (words.format(words=", ".join(ordered)), form)

"""The page as a string: what is in it, how large it is, and that nothing in it ends where it should not."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from rlhf_lines.pareto.report import MAX_BYTES, Completions, evenly_spaced, report_html
from rlhf_lines.pareto.report.completions import columns, fitting
from rlhf_lines.pareto.report.facts import facts, swept
from rlhf_lines.pareto.report.groups import luminance, on_dark
from rlhf_lines.pareto.report.page import in_script
from rlhf_lines.pareto.report.words import number, visible
from rlhf_lines.pareto.schema import GROUPS, OTHER_LOOKS
from tests.pareto.report.report_runs import HOSTILE, MADE, MINUS, make_completions, make_front


class Page(HTMLParser):
    """Reads a page as a browser does, and keeps its tags, texts, script elements and policy."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.scripts, self.policy = [], [], [], None
        self.feed(html)
        self.data = json.loads(self.scripts[0][1])

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "script":
            self.scripts.append([attributes, ""])
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policy = attributes["content"]

    def handle_data(self, data):
        if self.cdata_elem == "script":  # inside such an element the parser looks for nothing but its end
            self.scripts[-1][1] += data
        else:
            self.texts.append(data)


@pytest.fixture(scope="module")
def hostile():
    front = make_front(rewards=(HOSTILE[0], HOSTILE[5]), rename=lambda group: HOSTILE[2] + group)
    return front, report_html(front, make_completions(front, hostile=True), MADE | {"config": "\n".join(HOSTILE)})


@pytest.mark.parametrize("value", [*HOSTILE, "\ud800 alone", {"</script>": ["<!--", 1.5, None]}])
def test_json_in_a_script_element_means_the_same_and_ends_nothing(value):
    text = in_script(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode()


def test_hostile_texts_add_no_element(hostile):
    _, html = hostile
    front = make_front(rewards=("first", "second"), rename=lambda group: "my " + group)
    harmless = report_html(front, make_completions(front), MADE)
    assert Page(html).tags == Page(harmless).tags
    assert [attributes for attributes, _ in Page(html).scripts] == [
        {"type": "application/json", "id": "data"},
        {},
        {},
    ]


def test_hostile_texts_are_on_the_page_as_they_were(hostile):
    """But for characters that nobody could see."""
    front, html = hostile
    page, data = Page(html), Page(html).data
    for text in (*front["rewards"], *front["fronts"]):
        assert visible(text) in page.texts
    assert "\n".join(map(visible, HOSTILE)) in page.texts
    completions = make_completions(front, hostile=True)
    assert data["completions"]["prompts"] == [visible(prompt) for prompt in completions.prompts]
    for point, spec in data["completions"]["spec_of"].items():
        written = data["completions"]["written"][spec]
        texts = [[visible(text) for text in row] for row in completions.texts[int(point)]]
        assert [[data["completions"]["texts"][i] for i in row] for row in written] == texts


@pytest.mark.parametrize(
    ("text", "shown"), [("a\tb\n", "a\tb\n"), ("\x00\r\x7f", "␀␍␡"), ("\ud800", "\ufffd"), (1, "1")]
)
def test_nothing_that_was_written_is_invisible(text, shown):
    assert visible(text) == shown


def test_only_the_two_scripts_of_the_page_may_run(report):
    page = Page(report)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in page.scripts[1:]]
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == " ".join(f"'sha256-{text}'" for text in hashes)
    assert "unsafe-eval" not in page.policy and "http" not in page.policy


def test_the_script_formats_shortens_colours_and_chooses_nothing(report):
    _, script = Page(report).scripts[-1]
    rules = (
        r"toFixed|toPrecision|slice\(0|…|#[0-9a-fA-F]{6}|rgba?\(|\.sort\(|Math\.(abs|round)|nondominated|alpha|policy"
    )
    assert re.findall(rules, script) == []


def test_the_page_names_no_other_file(report):
    page = report.split("<script", 1)[0]  # the scripts are watched in a browser
    assert not any(text in page for text in ("http:", "https:", "src=", "<link", "url(", "@import"))


def test_the_same_arguments_give_the_same_page():
    def page():
        front = make_front(groups=("lines",))
        return report_html(front, make_completions(front), MADE)

    assert page() == page()


def test_a_reward_that_was_added_later_has_no_predictions():
    front = make_front()
    for surrogate in front["surrogate"].values():
        for entry in surrogate["predicted"]:
            entry["predicted"].pop("faithful"), entry["measured"].pop("faithful")
    figure = Page(report_html(front, None, MADE)).data["figures"]["surrogate-figure"]
    traces = figure["choices"][0]["surrogate-reward"][1]["data"]
    assert {value for trace in traces for axis in "xy" for value in trace.get(axis, ())} == {None}


def test_a_run_of_45_points_and_400_prompts_fits_whole():
    front = make_front()
    assert len(front["points"]) == 45
    html = report_html(front, make_completions(front, prompts=400), MADE)
    assert len(html.encode()) <= MAX_BYTES == 8_000_000
    assert len(Page(html).data["completions"]["prompts"]) == 400


def test_prompts_that_do_not_fit_are_left_out_evenly():
    front = make_front(groups=("lines",))
    completions = make_completions(front, prompts=300, hostile=True)
    room = len(report_html(front, None, MADE).encode()) + 100_000
    html = report_html(front, completions, MADE, max_bytes=room)
    shown = Page(html).data["completions"]
    count = len(shown["prompts"])
    assert f"{count} of the 300 prompts" in html and 0 < count < 300
    one_more = report_html(front, completions.some(evenly_spaced(300, count + 1)), MADE)
    assert len(html.encode()) <= room < len(one_more.encode())
    assert shown["prompts"] == [completions.prompts[i] for i in evenly_spaced(300, count)]


def test_no_room_leaves_no_prompt():
    front = make_front(groups=("lines",))
    html = report_html(front, make_completions(front), MADE, max_bytes=0)
    assert Page(html).data["completions"] is None
    assert "None of the completions fits into this page." in html


@pytest.mark.parametrize("room", [0, 1, 6, 7, 99])
def test_as_many_prompts_as_fit(room):
    completions = Completions([str(i) for i in range(7)], 7, {}, {}, {}, {})
    assert len(fitting(completions, lambda some: len(some.prompts), room).prompts) == min(room, 7)


@pytest.mark.parametrize(("total", "count"), [(400, 399), (400, 7), (5, 5), (5, 1), (0, 3), (3, 0)])
def test_evenly_spaced_indices_are_distinct_and_apart_by_their_share(total, count):
    indices = evenly_spaced(total, count)
    assert len(set(indices)) == len(indices) == min(total, count)
    assert all(abs(b - a - total / count) <= 1 for a, b in itertools.pairwise(indices))
    assert all(0 <= i < total for i in indices)


def test_a_text_is_stored_once_and_points_share_their_spec():
    completions = Completions(
        prompts=["p", "q"],
        total=9,
        spec_of={4: 70, 5: 70, 6: 80},
        texts={70: [["a", "b"], ["a", None]], 80: [["b", "c"], ["a", "a"]], 90: [["never read"], [""]]},
        kl={70: [[0.123456, float("nan")], [0, None]], 80: [[1, 2], [3, 4]], 90: [[0], [0]]},
        scores={"r": {70: [[1, 2], [3, None]], 80: [[5, 6], [7, 123456.0]], 90: [[0], [0]]}},
    )
    assert columns(completions, {"not read": 1, "r": 0}, 3) == {
        "prompts": ["p", "q"],
        "spec_of": {"4": 0, "5": 0, "6": 1},
        "texts": ["a", "b", "c"],
        "written": [[[0, 1], [0, None]], [[1, 2], [0, 0]]],
        "measures": [
            {"texts": ["1", "2", "3", "5", "6", "7", "123500"], "ranks": [[[0, 1], [2, None]], [[3, 4], [5, 6]]]},
            {
                "texts": ["0.000", "0.123", "1.000", "2.000", "3.000", "4.000"],
                "ranks": [[[1, None], [0, None]], [[2, 3], [4, 5]]],
            },
        ],
    }


@pytest.mark.parametrize("colour", [*(group.colour for group in GROUPS.values()), *(look[0] for look in OTHER_LOOKS)])
def test_colours_can_be_told_from_a_dark_page(colour):
    page = luminance([0x14, 0x17, 0x1C])
    lighter = luminance([int(on_dark(colour)[i : i + 2], 16) for i in (1, 3, 5)])
    assert (lighter + 0.05) / (page + 0.05) >= 4.5  # WCAG 2.2, contrast ratio, level AA


def test_luminance_is_that_of_wcag():
    assert luminance([255, 255, 255]) == pytest.approx(1.0)
    assert luminance([0, 0, 0]) == 0.0
    # #767676 is known as the lightest grey of contrast 4.5 on white.
    assert 1.05 / (luminance([0x76] * 3) + 0.05) >= 4.5 > 1.05 / (luminance([0x77] * 3) + 0.05)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.004, 2, "0.00"), (-0.006, 2, f"{MINUS}0.01"), (1234.5678, 1, "1234.6"), (None, 2, "\u2013")],
)
def test_numbers_are_written_for_people(value, digits, text):
    assert number(value, digits) == text


class TestFacts:
    def compared(self, **intervals):
        front = make_front(groups=("lines", "rewarded_soup"))
        front["validation"] = None
        for point in front["points"]:
            point["perplexity"] = None
        front["comparisons"] = [
            {"a": "lines", "b": group}
            | {"hypervolume_difference": {"value": (low + high) / 2, "low": low, "high": high}}
            | {"expected_utility_difference": {"value": 0.1, "low": -0.2, "high": 0.4, "probability_positive": 0.7}}
            for group, (low, high) in intervals.items()
        ]
        for entry in front["comparisons"]:
            entry["hypervolume_difference"]["probability_positive"] = 0.25
        return facts(front)

    @pytest.mark.parametrize(
        ("interval", "verdict", "title"),
        [
            ((0.1, 0.3), "better", "LiNeS beats the rewarded soup"),
            ((-0.3, -0.1), "worse", "LiNeS does worse than the rewarded soup"),
            ((-0.1, 0.5), "unclear", "LiNeS and the rewarded soup cannot be told apart"),
        ],
    )
    def test_lines_against_the_soup(self, interval, verdict, title):
        [fact] = self.compared(rewarded_soup=interval)
        assert (fact["verdict"], fact["title"]) == (verdict, title)
        value = f"{sum(interval) / 2:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]".replace("-", MINUS)
        assert fact["text"] == (
            f"LiNeS {MINUS} rewarded soup: hypervolume {value}, above zero with probability 0.250 and "
            f"expected utility 0.100 [{MINUS}0.200, 0.400], above zero with probability 0.700."
        )

    @pytest.mark.parametrize("against_reversed", [(1, 2), (-2, -1), (-1, 1), None])
    @pytest.mark.parametrize(
        ("against_uniform", "verdict", "begins"),
        [
            ((1, 2), "better", "Depth matters, not only length"),
            ((-2, -1), "worse", "Depth does not help"),
            ((-1, 1), "unclear", "Depth is not seen to matter, only length"),
        ],
    )
    def test_depth_or_only_length(self, against_uniform, verdict, begins, against_reversed):
        intervals = {"uniform": against_uniform} | ({"reversed": against_reversed} if against_reversed else {})
        [fact] = self.compared(**intervals)
        assert fact["verdict"] == verdict
        assert fact["title"].startswith(begins)
        ends = {(1, 2): "reversed, it does worse", (-2, -1): "reversed, it does better"}
        if against_reversed in ends:
            assert fact["title"].endswith(ends[against_reversed])

    @pytest.mark.parametrize(("interval", "verdict"), [((1, 2), "better"), ((-2, -1), "worse"), ((-1, 1), "unclear")])
    def test_the_reversed_schedule_alone(self, interval, verdict):
        [fact] = self.compared(reversed=interval)
        assert fact["verdict"] == verdict

    def test_what_was_chosen(self):
        front = make_front(groups=("lines",))
        [chosen] = facts(front)
        assert chosen["title"] == "alpha 1, beta 1, schedule linear"
        assert "9 settings on 16 validation prompts" in chosen["text"]
        front["validation"]["chosen"]["beta"] = 0.0
        assert "LiNeS is plain scaling here" in facts(front)[0]["text"]

    @pytest.mark.parametrize(
        ("soup", "title"),
        [
            (5.0, "LiNeS undoes 75 % of what the rewarded soup forgets"),
            (4.2, "LiNeS forgets more than the rewarded soup: 25 % more"),
            (3.9, "The rewarded soup forgets nothing of the control texts, so that LiNeS has nothing to undo"),
        ],
    )
    def test_what_is_forgotten(self, soup, title):
        front = make_front(groups=("lines", "rewarded_soup"))
        front["comparisons"], front["validation"] = [], None
        for point in front["points"]:
            mean = {"sft": 4.0, "lines": 4.25, "rewarded_soup": soup}[point["group"]]
            score = {"sft": 1.0, "lines": 1.9, "rewarded_soup": 2.0}[point["group"]]
            point["perplexity"] = {"mean": mean, "low": mean, "high": mean}
            point["scores"] = {key: {"mean": score, "low": score, "high": score} for key in front["rewards"]}
        [forgotten] = facts(front)
        assert forgotten["title"] == title
        if soup == 5.0:
            assert forgotten["text"].endswith("LiNeS keeps 90 % of the gain in brief and 90 % of the gain in faithful.")

    def test_what_was_swept(self):
        front = make_front(groups=("lines",), rewards=("a", "b", "c"))
        assert swept(front) == (
            "12 merged policies: LiNeS (11 points) and SFT (1 point); each measured on 24 test prompts with "
            "1 completion per prompt, scored by a, b and c. Higher scores are better."
        )

"""The page as a string: what is in it, how large it is, and that nothing in it ends where it should not."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from rlhf_lines.pareto.benchmarks import benchmark_changes, result_entry
from rlhf_lines.pareto.report import MAX_BYTES, evenly_spaced, report_html
from rlhf_lines.pareto.report.content import Content
from rlhf_lines.pareto.report.figures import page_figures
from rlhf_lines.pareto.report.page import in_script
from rlhf_lines.pareto.report.words import MINUS, NOTHING, visible
from rlhf_lines.pareto.resampling import Resampling
from tests.pareto.asked import ANSWERS, BENCHMARKS, results_of
from tests.pareto.damaged import DEMO, front_of
from tests.pareto.report.parsed import Page
from tests.pareto.report.report_runs import HOSTILE, MADE, make_completions, make_front


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


def test_only_the_two_scripts_of_the_page_may_run(report):
    page = Page(report)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in page.scripts[1:]]
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == " ".join(f"'sha256-{text}'" for text in hashes)
    assert "unsafe-eval" not in page.policy and "http" not in page.policy


def test_the_script_formats_shortens_and_colours_nothing(report):
    _, script = Page(report).scripts[-1]
    rules = r"toFixed|toPrecision|slice\(0|…|#[0-9a-fA-F]{6}|rgba?\(|Math\.round|nondominated|alpha|policies"
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
    assert shown["prompts"] == [visible(completions.prompts[i]) for i in evenly_spaced(300, count)]


def test_no_room_leaves_no_prompt():
    front = make_front(groups=("lines",))
    html = report_html(front, make_completions(front), MADE, max_bytes=0)
    assert Page(html).data["completions"] is None
    assert "None of the completions fits into this page." in html


def test_damaged_completions_are_told_at_the_top_and_in_the_table_of_all_points():
    page = report_html(front_of(DEMO), None, MADE)
    told = page[page.index('id="look-at"') : page.index('<section id="choice">')]
    assert re.findall("<li[^>]*>(2[29] % of the completions of LiNeS [^;]*);", told) == [
        "22 % of the completions of LiNeS 1 / 0 are empty",
        "29 % of the completions of LiNeS 0 / 1 are cut at the longest length",
    ]
    assert all(f">{head}</bdi>, %<" in page for head in ("empty", "cut", "repetition", "distinct", "win rate"))
    assert re.search(r">22\.5<", page) and 'id="look-at"' not in report_html(front_of(), None, MADE)


def test_equal_kl_is_explained_where_something_is_compared_at_it():
    front = make_front(groups=("lines", "rewarded_soup"))
    assert any(entry["equal_kl_difference"] for entry in front["comparisons"])
    assert "Hypervolume at equal KL: what" in report_html(front, None, MADE)
    for entry in front["comparisons"]:
        entry |= dict.fromkeys(("equal_kl_difference", "kl_budgets", "equal_kl_hypervolumes"))
    assert "Hypervolume at equal KL: what" not in report_html(front, None, MADE)


@pytest.mark.parametrize("relative", [True, False])
def test_norms_by_layer_stand_beside_the_signatures_of_the_policies(relative):
    def policy(name, norms):
        shares = [norm / 8 for norm in norms] if relative else None
        return {"name": name, "norm": 2.0, "relative_norm": None, "norms": norms, "relative_norms": shares} | {
            "depth": 0.5, "spectrum": [0.5, 0.6, 0.7, 0.8], "unlike": None, "reason": None,
        }  # fmt: skip

    front = make_front(groups=("lines",))
    front["audit"] = {
        "layers": [0, 3, None],
        "directions": [1, 2, 4, 8],
        "cosine": [[1.0, 0.25], [0.25, 1.0]],
        "layer_cosines": [[[1.0, value], [value, 1.0]] for value in (0.125, -0.5, None)],
        "policies": [policy("brief", [1.0, 1.5, 0.25]), policy(HOSTILE[0], [2.0, 0.0, 0.5])],
        "of_two": "Of two policies " + HOSTILE[0],
    }
    html = report_html(front, None, MADE)
    body = html.partition('id="audit-layers-table"')[2].partition("<tbody")[2].partition("</table>")[0]
    table = re.sub(r"<[^>]+>", " ", body).split()
    rows = [table[table.index(first) : table.index(first) + 4 + 4 * relative] for first in ("0", "3", "outside")]
    if relative:
        assert [" ".join(row) for row in rows] == [
            "0 1.000 12 % 2.000 25 % 0.12",
            f"3 1.500 19 % 0.000 0 % {MINUS}0.50",
            f"outside 0.250 3.1 % 0.500 6.2 % {NOTHING}",
        ]
    else:
        assert rows[0] == ["0", "1.000", "2.000", "0.12"]
    assert front["audit"]["of_two"] in Page(html).texts


@pytest.mark.parametrize("has_kl", [True, False])
def test_what_the_ideal_point_is_stands_once_where_it_is_first_named(has_kl):
    front = make_front(groups=("lines", "rewarded_soup"))
    if not has_kl:
        front["points"] = [point | {"kl": None} for point in front["points"]]
        front["comparisons"] = []
    html = report_html(front, None, MADE)
    told = "(1: the best single policy&#39;s score in each objective; more is possible)"
    assert html.count(told) == 1 and html.index(told) < html.rindex("to the ideal point") + 30
    assert html.index("ideal point (1") == html.index(told) - len("ideal point ")


def test_a_narrow_range_of_kl_stands_with_the_comparison():
    front = make_front(groups=("lines", "rewarded_soup"))
    assert ", narrow<" not in report_html(front, None, MADE)
    front["comparisons"][0]["kl_budgets"] = [1.0, 1.001]
    html = report_html(front, None, MADE)
    assert "1.00 to 1.00, narrow<" in html and "from 1.00 to 1.00 nats, a narrow range<" in html


def test_benchmarks_have_a_section_a_figure_and_columns():
    front = make_front()
    assert "benchmarks-figure" not in page_figures(Content(front))
    front["benchmarks"] = BENCHMARKS
    for point, answered in zip(front["points"], ANSWERS, strict=False):
        results = results_of(answered)
        point["metrics"] |= {name: result_entry(result, Resampling()) for name, result in results.items()}
        point["benchmark_changes"] = benchmark_changes(results, results_of(0), Resampling())
    page = report_html(front, None, MADE)
    section = page.partition('<section id="benchmarks">')[2].partition("</section>")[0]
    assert "quiz" in section and "10 documents, of each task the first 10; lm-eval 0.4.13" in section
    assert section.count("data-point=") == len(ANSWERS)
    figure = page_figures(Content(front))["benchmarks-figure"]
    heights = {i: y for trace in figure["figure"]["data"] for i, y in zip(trace["customdata"], trace["y"], strict=True)}
    assert heights == {p["id"]: p["benchmark_changes"]["quiz/acc"]["value"] for p in front["points"][: len(ANSWERS)]}
    first, second = figure["choices"][0]["benchmarks-metric"]
    assert not any(first["data"]) and "perplexity" in second["layout"]["yaxis"]["title"]["text"]
    points = page.partition('<section id="points">')[2]
    assert points.count("text/perplexity") > 0

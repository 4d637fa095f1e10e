"""The page in a browser: what a reader does with a mouse, a finger or a keyboard, and what hostile texts do to it."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest

from rlhf_lines.pareto.picked import pick_point
from rlhf_lines.pareto.report import Completions, report_html
from rlhf_lines.pareto.report.words import visible
from rlhf_lines.pareto.wins import lost_most
from tests.pareto.damaged import DEMO, front_of
from tests.pareto.report.report_runs import HOSTILE, MADE, MINUS, make_completions, make_front


pytestmark = pytest.mark.usefixtures("quiet")
DRAWN = "document.getElementById('front-figure')"
SECTIONS = "[...document.querySelectorAll('main > section')].map(section => section.id)"


def find(front, group, weights):
    return next(p for p in front["points"] if p["group"] == group and p["spec"]["weights"] == list(weights))


def pixel(page, point, rewards):
    """Returns where the front's figure draws a point, in pixels of the window."""
    page.locator("#front-figure").scroll_into_view_if_needed()
    return page.evaluate(
        f"""([x, y]) => {{
            const {{ xaxis, yaxis }} = {DRAWN}._fullLayout, box = {DRAWN}.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y)];
        }}""",
        [point["scores"][reward]["mean"] for reward in rewards],
    )


def drawn_ids(page):
    return set(page.evaluate(f"{DRAWN}.data.flatMap(trace => trace.customdata ?? [])"))


def ringed(page, name="ring"):
    """Returns the places of the points that are marked."""
    return page.evaluate(
        f"""name => {{
            const {{ x, y }} = {DRAWN}.data.find(trace => trace.meta?.includes(name));
            return x.map((value, i) => [value, y[i]]);
        }}""",
        name,
    )


def tab_to(page, selector):
    page.locator("body").press("Tab")
    for _ in range(60):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never reaches {selector}")


def test_everything_is_on_the_page(page, front):
    assert page.title() == "demo: front"
    assert page.locator("h1").inner_text() == "demo"
    assert page.evaluate(SECTIONS) == [
        *(
            "decision",
            "choice",
            "weights",
            "selected",
            "compare",
            "volumes",
            "validation",
            "forgetting",
            "surrogate",
            "points",
        ),
        "made",
    ]
    assert page.locator("#points-table tbody tr").count() == len(front["points"]) == len(drawn_ids(page))
    assert page.locator("#volumes-table tbody tr").count() == 4
    assert page.locator("#validation-table tr.chosen td").all_text_contents()[1:] == (
        ["1", "1", "linear", "4.000", "chosen"]
    )
    assert page.locator("#surrogate-table tbody tr").count() == 12
    assert page.locator("#undone-table tbody tr").count() == 11
    assert "rlhf-lines sweep" in page.locator("#made").inner_text()
    assert page.locator(".js-plotly-plot").count() == 5


def test_hover_shows_the_settings_and_scores(page, front):
    point = find(front, "lines", (1.0, 0.0))
    page.mouse.move(*pixel(page, point, front["rewards"]))
    shown = page.locator("#front-figure .hovertext")
    shown.wait_for()
    text = shown.text_content()
    assert all(part in text for part in ("LiNeS", "weights 1 / 0", "alpha 1", "beta 1", "KL to SFT", "perplexity"))
    assert f"{point['scores']['brief']['mean']:.3f}".replace("-", MINUS) in text


def test_a_group_can_be_switched_off_and_on(page, front):
    soup = {point["id"] for point in front["points"] if point["group"] == "rewarded_soup"}
    box = page.get_by_role("checkbox", name="rewarded soup")
    assert soup < drawn_ids(page)
    box.uncheck()
    assert not soup & drawn_ids(page)
    box.check()
    assert soup < drawn_ids(page)


def test_intervals_can_be_switched_off(page):
    assert page.locator("#front-figure .errorbar").count() > 0
    page.get_by_label("intervals").uncheck()
    assert page.locator("#front-figure .errorbar").count() == 0
    page.get_by_label("intervals").check()


def test_hulls_can_be_switched_on(page, front):
    lines = f"{DRAWN}.data.filter(trace => trace.mode === 'lines' && trace.line.shape !== 'vh')"
    assert page.evaluate(f"{lines}.length") == 0
    page.get_by_label("convex hull").check()
    hulls = page.evaluate(f"{lines}.map(trace => [trace.x, trace.y])")
    by_id = {point["id"]: [point["scores"][r]["mean"] for r in front["rewards"]] for point in front["points"]}
    expected = [[list(x) for x in zip(*map(by_id.get, f["hull"]), strict=True)] for f in front["fronts"].values()]
    assert sorted(hulls) == sorted(expected)
    page.get_by_label("convex hull").uncheck()


def test_the_staircase_joins_nondominated_points_only(page, front):
    lines = page.evaluate(f"{DRAWN}.data.filter(trace => trace.line?.shape === 'vh').map(trace => [trace.x, trace.y])")
    by_id = {point["id"]: [point["scores"][r]["mean"] for r in front["rewards"]] for point in front["points"]}
    expected = []
    for entry in front["fronts"].values():
        corners = sorted(by_id[i] for i in entry["nondominated"])
        rx, ry = front["reference_point"]
        assert all(x > rx and y > ry for x, y in corners)
        expected.append([[rx, *(x for x, _ in corners), corners[-1][0]], [corners[0][1], *(y for _, y in corners), ry]])
    assert sorted(lines) == sorted(expected)


def test_the_slider_shows_every_group_at_its_weights(page, front):
    slider = page.locator("#weight")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#weight-text").inner_text() == "0 ppo-first · 1 ppo-second"
    page.keyboard.press("ArrowRight")
    assert page.locator("#weight-text").inner_text() == "0.1 ppo-first · 0.9 ppo-second"
    assert slider.get_attribute("aria-valuetext") == "0.1 ppo-first · 0.9 ppo-second"
    rows = [row.split("\t") for row in page.locator("#weight-table tbody tr").all_inner_texts()]
    assert [row[0].split(maxsplit=1)[1] for row in rows] == (
        ["LiNeS", "rewarded soup", "even scaling", "reversed LiNeS", "SFT"]
    )
    chosen = [find(front, group, (0.1, 0.9)) for group in ("lines", "rewarded_soup", "scaled", "reversed")]
    means = [[point["scores"][reward]["mean"] for reward in front["rewards"]] for point in chosen]
    assert [row[1].split()[0] for row in rows[:4]] == [f"{x:.3f}".replace("-", MINUS) for x, _ in means]
    assert sorted(ringed(page)) == sorted(means)


def test_completions_of_any_two_points_side_by_side(page, front):
    left, right = find(front, "scaled", (0.3, 0.7)), find(front, "lines", (0.8, 0.2))
    page.get_by_role("combobox", name="Left").select_option(str(left["id"]))
    page.get_by_role("combobox", name="Right").select_option(str(right["id"]))
    page.get_by_label("Order").select_option("run")
    page.get_by_role("button", name="Next").click()
    assert page.locator("#comparison .prompt").inner_text().startswith("prompt 1: ")
    texts = [text.split()[0] for text in page.locator("#comparison .text").all_inner_texts()]
    assert texts == [f"{left['id']}.1.0", f"{left['id']}.1.1", f"{right['id']}.1.0", f"{right['id']}.1.1"]
    scores = make_completions(front, samples=2).scores["brief"]
    shown = page.locator("#comparison dl div:first-child dd").all_inner_texts()
    pairs = [(scores[left["id"]][1][s], scores[right["id"]][1][s]) for s in (0, 1)]
    expected = [(a, a > b) for a, b in pairs] + [(b, b > a) for a, b in pairs]
    assert shown == [f"{value:.3f}".replace("-", MINUS) + " ↑" * higher for value, higher in expected]


def test_prompts_are_reached_by_number_and_by_text(page):
    page.get_by_label("Order").select_option("run")
    number = page.get_by_label("Prompt", exact=True)
    number.fill("1")
    number.press("Enter")
    assert page.get_by_role("button", name="Previous").is_disabled()
    number.fill("24")
    number.press("Enter")
    assert page.locator("#comparison .prompt").inner_text().startswith("prompt 23: ")
    assert page.get_by_role("button", name="Next").is_disabled()
    page.get_by_label("Find text").fill("PROMPT 7:")
    page.get_by_label("Find text").press("Enter")
    assert page.locator("#comparison .prompt").inner_text().startswith("prompt 7: ")
    page.get_by_label("Find text").fill("nowhere to be read")
    page.get_by_label("Find text").press("Enter")
    assert page.locator("#found").inner_text() == "not found"


def test_a_click_on_a_point_opens_its_completions(page, front):
    point = find(front, "lines", (1.0, 0.0))
    page.mouse.click(*pixel(page, point, front["rewards"]))
    assert page.locator("#right").input_value() == str(point["id"])
    assert page.locator("#comparison .side").last.locator(".text").first.inner_text().startswith(f"{point['id']}.")
    page.wait_for_function("() => Math.abs(document.getElementById('selected').getBoundingClientRect().top) < 40")
    assert [point["scores"][reward]["mean"] for reward in front["rewards"]] in ringed(page, "selected")


def selected(page):
    """Returns the id of the point whose faults are listed, by the command that picks or makes it, and its name."""
    return page.evaluate("selected"), page.locator("#selected-policy h3").inner_text().split(maxsplit=1)[1]


def test_a_row_of_a_table_selects_its_point(open_page, report, front):
    page = open_page(report)
    point = find(front, "scaled", (0.3, 0.7))
    row = page.locator(f"#points-table tr[data-point='{point['id']}']")
    row.locator("td").nth(1).click()
    assert selected(page) == (point["id"], "even scaling, 0.3 / 0.7")
    assert page.locator("#right").input_value() == str(point["id"])
    assert row.get_attribute("aria-current") == "true"
    assert ringed(page, "selected") == [[point["scores"][reward]["mean"] for reward in front["rewards"]]]
    # By keys: one row is reached by Tab, the next by an arrow, and Enter selects it.
    link = row.locator("a")
    assert page.locator("#points-table a").evaluate_all("links => links.filter(a => a.tabIndex === 0).length") == 1
    link.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert selected(page) == (find(front, "scaled", (0.4, 0.6))["id"], "even scaling, 0.4 / 0.6")
    page.locator("#weight-table tbody tr", has_text="SFT").locator("td").first.click()
    assert selected(page) == (0, "SFT")
    assert page.locator("#pick-command").inner_text() == "rlhf-lines pick outputs/demo/sweep --point 0"


def test_the_sliders_follow_the_selected_point_or_say_that_they_do_not(open_page, report, front):
    page = open_page(report)
    picked = pick_point(front, preference=[0.7, 0.3], scale="range")
    slider = page.locator("#preference")
    slider.focus()
    page.keyboard.press("End")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")  # from 100 : 0 to 70 : 30
    assert page.locator("#preference-text").inner_text().startswith("70 % brief · 30 % faithful: LiNeS, ")
    assert selected(page)[0] == picked["id"] and page.locator("#preference-off").is_hidden()
    command = "rlhf-lines pick outputs/demo/sweep --preference 0.7 0.3 --scale range"
    assert page.locator("#pick-command").inner_text() == command
    assert page.locator("#choice-table tr[aria-current] th").inner_text() == "70 : 30"
    weights = page.locator("#weight-text").inner_text().split(" · ")
    assert [float(part.split()[0]) for part in weights] == picked["spec"]["weights"]
    # A control is best for no preference, and has the slider's weights.
    control = find(front, "reversed", (0.2, 0.8))
    page.mouse.click(*pixel(page, control, front["rewards"]))
    assert page.locator("#preference-off").is_visible() and page.locator("#preference-text").inner_text() == ""
    assert page.locator("#choice-table tr[aria-current]").count() == 0
    assert page.locator("#pick-command").inner_text() == f"rlhf-lines pick outputs/demo/sweep --point {control['id']}"
    assert page.locator("#weight-text").inner_text() == "0.2 ppo-first · 0.8 ppo-second"
    assert page.locator("#weight-off").is_hidden()
    # The SFT model has no weights, either.
    page.get_by_role("combobox", name="Right").select_option("0")
    assert page.locator("#weight-off").is_visible()
    # A row of preferences decides again.
    page.locator("#choice-table tbody tr").nth(3).locator("th").click()
    assert selected(page)[0] == picked["id"] and page.locator("#pick-command").inner_text() == command


def test_all_that_a_policy_does_badly_stands_in_one_place(open_page):
    front = front_of(DEMO)
    completions = make_completions(front)
    page = open_page(report_html(front, completions, MADE))
    point = next(p for p in front["points"] if p["metrics"]["share_empty"]["mean"] > 0.2)
    page.evaluate(f"location.hash = '#b={point['id']}'")
    page.wait_for_function(f"selected === {point['id']}")
    rows = {row.split("\t")[0]: row.split("\t")[1:] for row in page.locator("#badly-table tbody tr").all_inner_texts()}
    assert rows["empty completions"][0].startswith(f"{100 * point['metrics']['share_empty']['mean']:.1f} %")
    assert rows["empty completions"][1:] == ["1.0 %", "↓ worse"]
    assert "empty completions (worse)" in page.locator("#told").inner_text()
    names = ("completions cut at the longest length", "4-grams repeated within a completion", "tokens")
    assert {*names, "completions worse in all objectives"} < rows.keys()
    lost = page.locator("#lost li a")
    own, sft = (
        np.stack([np.array(completions.scores[name][i]) for name in front["rewards"]], axis=-1)
        for i in (point["id"], 0)
    )
    worst = [entry.prompt for entry in lost_most(own, sft, front["rewards"], 3)]
    assert lost.all_inner_texts() == [completions.prompts[number] for number in worst]
    lost.nth(1).click()
    page.wait_for_function(f"() => document.getElementById('prompt-number').value === '{worst[1] + 1}'")
    assert [page.locator(f"#{side}").input_value() for side in ("left", "right")] == ["0", str(point["id"])]


def test_the_selected_policy_needs_no_completions(open_page, front):
    page = open_page(report_html(front, None, MADE))
    point = find(front, "lines", (1.0, 0.0))
    page.mouse.click(*pixel(page, point, front["rewards"]))
    assert selected(page) == (point["id"], "LiNeS, 1 / 0")
    page.locator("#weight").focus()
    page.keyboard.press("Home")
    assert selected(page)[0] == find(front, "lines", (0.0, 1.0))["id"]


def test_every_sign_means_one_thing(page):
    """Marks of groups stand for groups alone, wherever a text has one, and the legend names the other signs."""
    marks = set(page.locator("#groups .symbol").all_inner_texts())
    assert {"★", "▲", "▼"} - marks == set() and len(marks) == 5
    outside = """() => {
        const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
        while (walker.nextNode()) {
            const element = walker.currentNode.parentElement;
            if (!element.closest(".symbol, script, style, .figure")) found.push(walker.currentNode.data);
        }
        return found.join("");
    }"""
    assert not marks & set(page.evaluate(outside))
    legend = page.locator("#legend").inner_text()
    assert all(text in legend for text in ("✓ in a table", "↑ better", "↓ worse", "≈ cannot be told apart"))


def test_a_negative_kl_of_a_completion_is_explained(open_page):
    front, completions = two_texts("one", "two")
    for kl, is_told in ((0.5, False), (-0.5, True)):
        page = open_page(report_html(front, replace(completions, kl={**completions.kl, 6: [[kl]]}), {}))
        page.get_by_role("combobox", name="Right").select_option("6")
        assert page.locator("#negative-kl").is_visible() == is_told


def test_a_front_and_its_cost_stand_beside_each_other(open_page, report, front):
    page = open_page(report)
    page.locator("#kl-reward").select_option(label="faithful")
    drawn = page.evaluate(
        "document.getElementById('kl-figure').data.flatMap(t => (t.customdata ?? []).map((id, i) => [id, t.y[i]]))"
    )
    assert dict(drawn) == {point["id"]: point["scores"]["faithful"]["mean"] for point in front["points"]}
    front, cost = (page.locator(f"#{name}-figure").bounding_box() for name in ("front", "kl"))
    assert front["y"] == cost["y"] and front["x"] + front["width"] <= cost["x"]
    page.set_viewport_size({"width": 360, "height": 740})
    front, cost = (page.locator(f"#{name}-figure").bounding_box() for name in ("front", "kl"))
    assert front["y"] + front["height"] <= cost["y"] and front["x"] == cost["x"]


def test_reward_against_kl_follows_the_preference(open_page, report, front):
    """Its heights are the utilities of the table of preferences: by hand, at 70 : 30 and at none."""
    page = open_page(report)
    low, high = np.array(front["reference_point"]), np.array(front["ideal_point"])
    scores = {p["id"]: np.array([p["scores"][name]["mean"] for name in front["rewards"]]) for p in front["points"]}

    def assert_utilities_at(name, preference):
        figure = "document.getElementById('kl-figure')"
        drawn = page.evaluate(f"{figure}.data.flatMap(t => (t.customdata ?? []).map((id, i) => [id, t.y[i]]))")
        assert dict(drawn) == pytest.approx({i: (s - low) / (high - low) @ preference for i, s in scores.items()})
        assert page.locator("#kl-reward option:checked").inner_text() == name
        assert page.locator("#kl-figure .ytitle").text_content().strip("\u2068\u2069").startswith(name)

    assert_utilities_at("utility at 50 : 50", [0.5, 0.5])
    page.locator("#choice-table tbody tr").nth(3).locator("th").click()
    assert_utilities_at("utility at 70 : 30", [0.7, 0.3])
    # A reward stays what it is, wherever the slider goes, and the utility comes back where the slider stands.
    page.locator("#kl-reward").select_option(label="faithful")
    page.locator("#choice-table tbody tr").nth(1).locator("th").click()
    page.locator("#kl-reward").select_option(label="utility at 90 : 10")
    assert_utilities_at("utility at 90 : 10", [0.9, 0.1])
    page.evaluate(f"location.hash = '#b={find(front, 'reversed', (0.2, 0.8))['id']}'")  # best for no preference
    page.wait_for_function("choice === -1")
    assert_utilities_at("utility, all objectives alike", [0.5, 0.5])


def test_what_a_figure_says_for_a_moment_covers_no_heading(open_page, report):
    page = open_page(report)
    box = page.locator("#front-figure").bounding_box()
    page.mouse.move(box["x"] + 200, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 400, box["y"] + 250, steps=4)
    page.mouse.up()
    note = page.locator(".plotly-notifier")
    note.wait_for()
    assert note.bounding_box()["y"] > 450  # in the lower half of the window


def test_a_wide_table_says_so_and_rows_are_told_apart_on_a_phone(open_page, report, front):
    page = open_page(report, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    box, hint = page.locator("#points-table .scroll"), page.locator("#points-table .more")
    box.scroll_into_view_if_needed()
    assert hint.is_visible()
    box.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    page.wait_for_function(
        "() => getComputedStyle(document.querySelector('#points-table .more')).visibility === 'hidden'"
    )
    names = page.locator("#points-table tbody tr[data-point] .point")
    assert len(set(names.all_inner_texts())) == len(front["points"])
    whole = "parts => parts.every(part => part.scrollWidth <= part.clientWidth + 1)"
    assert page.locator("#points-table .point bdi, #points-table .place").evaluate_all(whole)


def test_a_table_that_hides_rows_has_a_button_that_shows_all(open_page, report, front):
    page = open_page(report)
    box, button = page.locator("#points-table .scroll"), page.locator("#points-table .rows")
    hides = "box => box.scrollHeight > box.clientHeight + 1"
    assert box.evaluate(hides) and button.inner_text() == f"Show all {len(front['points'])} rows"
    button.click()
    assert not box.evaluate(hides) and button.get_attribute("aria-expanded") == "true"
    page.get_by_role("button", name="Show fewer rows").click()
    assert box.evaluate(hides)
    assert page.locator("#volumes-table .rows").is_hidden()  # all of its rows are there


def test_a_keyboard_is_enough(open_page, report, front):
    page = open_page(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(page, "#groups input")
    page.keyboard.press("Space")
    assert not {point["id"] for point in front["points"] if point["group"] == "lines"} & drawn_ids(page)
    tab_to(page, "#weight")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("End")
    assert page.locator("#weight-text").inner_text() == "1 ppo-first · 0 ppo-second"
    tab_to(page, "#choice-table a")
    page.keyboard.press("ArrowDown")  # from the row of the preference to the next, and along it
    page.keyboard.press("ArrowRight")
    beside = "[...document.querySelector('#choice-table tr[aria-current] + tr').querySelectorAll('a')]"
    assert page.evaluate(f"{beside}.indexOf(document.activeElement)") == 1
    tab_to(page, "#left")
    page.keyboard.type("reversed")
    assert (
        page.locator("#comparison .side")
        .first.locator("h3")
        .inner_text()
        .endswith("reversed LiNeS, ppo-second alone, 0 / 1")
    )
    tab_to(page, "#next")
    page.keyboard.press("Enter")
    assert page.locator("#place").inner_text() == "place 2 of 24"


def test_every_control_and_figure_has_a_name(page):
    unnamed = """[...document.querySelectorAll('select, input')].filter(c => !c.labels.length).map(c => c.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.locator(".figure:not([role=img][aria-label])").count() == 0
    assert page.evaluate("document.documentElement.lang") == "en"


def test_a_phone_scrolls_down_only(open_page, report):
    page = open_page(report, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    for width in (360, 700):
        page.set_viewport_size({"width": width, "height": 740})
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        left, right = (page.locator("#comparison .side").nth(i).bounding_box() for i in (0, 1))
        assert right["y"] >= left["y"] + left["height"]
        table = page.locator("#points-table .scroll")
        assert table.evaluate("box => box.scrollWidth > box.clientWidth && box.clientWidth <= innerWidth")
        page.wait_for_function(f"{DRAWN}.querySelector('.main-svg').getBoundingClientRect().right <= innerWidth")


def test_dark_mode_changes_page_and_figures(page):
    page.emulate_media(color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    colours = f"[{DRAWN}.layout.font.color, {DRAWN}.data.at(-4).marker.color].join()"

    def are_drawn_in(ink, lines):
        """Figures are drawn anew when the browser tells the page, which is not at once."""
        page.wait_for_function(f"expected => {colours} === expected", arg=f"{ink},{lines}")

    assert page.evaluate(background) == "rgb(20, 23, 28)"
    are_drawn_in("#e7eaee", "#59A3CD")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    are_drawn_in("#1d2127", "#0072B2")
    page.emulate_media(color_scheme="dark", media="print")  # paper is white
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    are_drawn_in("#1d2127", "#0072B2")
    assert page.locator("nav").is_hidden()
    assert page.locator("#weight").is_hidden() and page.locator("#groups label").first.is_visible()  # the legend
    page.emulate_media(color_scheme="light", media="screen")


def test_more_than_two_rewards_are_chosen_for_the_axes(open_page):
    front = make_front(rewards=("one", "two", "three"), groups=("lines",))
    page = open_page(report_html(front, None, {}))
    page.locator("#axis-y").select_option(label="three")
    point = find(front, "lines", (0.5, 0.5))
    page.mouse.move(*pixel(page, point, ("one", "three")))
    page.locator("#front-figure .hovertext").wait_for()
    assert "weights 0.5 / 0.5" in page.locator("#front-figure .hovertext").text_content()
    assert "three" in page.locator("#front-figure .ytitle").text_content()


def test_the_slider_goes_up_in_the_weight_of_the_first_policy_and_leaves_morlhf_out(open_page):
    front = make_front(groups=("lines", "morlhf"))
    front["policies"] = ["one", "two", "first run", "second run"]
    points = [point for point in front["points"] if point["group"] == "lines"]
    for point, weights in zip(points, [(1.0, 0.0), (0.2, 0.8), (0.0, 1.0), (0.7, 0.3)], strict=False):
        point["spec"]["weights"] = point["preference"] = list(weights)
    runs = [point for point in front["points"] if point["group"] == "morlhf"]
    for k, point in enumerate(runs):
        point |= {"spec": {**point["spec"], "weights": [0.0, 0.0, 1.0 - k % 2, float(k % 2)]}, "preference": None}
        point |= {"single_policy": 2 + k % 2, "label": front["policies"][2 + k % 2]}
    front["points"] = [front["points"][0], *points[:4], *runs[:2]]
    front["fronts"] = {
        group: front["fronts"][group] | {"nondominated": [p["id"] for p in some], "hull": []}
        for group, some in (("lines", points[:4]), ("morlhf", runs[:2]))
    }
    front["surrogate"] = None
    page = open_page(report_html(front, make_completions(front), {}))
    page.locator("#weight").focus()
    page.keyboard.press("Home")
    texts = [page.locator("#weight-text").inner_text()]
    for _ in range(4):
        page.keyboard.press("ArrowRight")
        texts.append(page.locator("#weight-text").inner_text())
    assert texts == ["0 one · 1 two", "0.2 one · 0.8 two", "0.7 one · 0.3 two", *["1 one · 0 two"] * 2]
    assert "MORLHF, first run alone" in page.locator("#left").inner_text()


def test_what_is_not_known_is_left_out(open_page):
    front = make_front(groups=())
    front |= {"validation": None, "surrogate": None, "forgetting": None, "policies": [], "sft_model": None}
    for point in front["points"]:
        point["kl"] = point["perplexity"] = None
    page = open_page(report_html(front, None, {}))
    assert page.evaluate(SECTIONS) == ["decision", "compare", "points"]
    assert page.locator("#compare").inner_text().endswith("There are no completions here.")
    page.emulate_media(color_scheme="dark")
    assert page.locator("#points-table tbody tr").count() == 1


class TestHostileTexts:
    """Completions, prompts, names of rewards, groups and policies, settings and the folder's name are all hostile."""

    REWARDS = tuple(f"{text} {i}" for i, text in enumerate((HOSTILE[4], HOSTILE[1])))

    @pytest.fixture(scope="class")
    def hostile(self, open_page):
        front = make_front(rewards=self.REWARDS, rename=lambda group: {"scaled": HOSTILE[4]}.get(group, group))
        front["policies"] = [HOSTILE[1], HOSTILE[0]]
        front["forgetting"]["source"] = HOSTILE[1]
        for point in front["points"]:
            point["spec"]["options"] = {"note": HOSTILE[4]}
        for entry in front["validation"]["grid"]:
            entry["schedule"] = HOSTILE[1]
        made = {"title": HOSTILE[0], "facts": [[HOSTILE[1], HOSTILE[4]]], "versions": {HOSTILE[1]: HOSTILE[0]}}
        made |= {"commands": [[HOSTILE[4], HOSTILE[1]]], "config": "\n".join(HOSTILE)}
        return front, open_page(report_html(front, make_completions(front, hostile=True), made))

    def test_run_nothing_and_are_shown_as_written(self, hostile):
        front, page = hostile
        point = find(front, HOSTILE[4], (0.0, 1.0))
        page.get_by_role("combobox", name="Left").select_option(str(point["id"]))
        page.get_by_label("Order").select_option("run")
        for prompt, text in enumerate(HOSTILE):
            assert page.locator("#comparison .prompt").text_content().endswith(visible(text))
            assert page.locator("#comparison .text").first.text_content().endswith(visible(text))
            if prompt < len(HOSTILE) - 1:
                page.get_by_role("button", name="Next").click()
        page.mouse.move(*pixel(page, point, self.REWARDS))
        page.locator("#front-figure .hovertext").wait_for()
        assert page.locator("h1").text_content() == HOSTILE[0]
        assert page.locator("#made pre").last.text_content() == visible("\n".join(HOSTILE))
        assert page.evaluate("window.hacked") is None
        added = "main script, main img, main iframe, main a:not([href^='#']), svg a, main b, main [onerror]"
        assert page.locator(added).count() == 0

    def test_are_shown_as_written_in_figures_too(self, hostile):
        front, page = hostile
        point = find(front, HOSTILE[4], (0.0, 1.0))
        page.mouse.move(*pixel(page, point, self.REWARDS))
        shown = page.locator("#front-figure .hovertext")
        shown.wait_for()
        assert "<b>bold</b> <a href='javasc" in shown.text_content()
        assert '"note": "<b>bold</b>' in shown.text_content()
        assert "<b>bold</b> <a href=" in page.locator("#front-figure .xtitle").text_content()
        assert "<img src=x onerror=" in page.locator("#front-figure .ytitle").text_content()

    def test_the_policy_of_the_page_would_stop_what_got_through(self, open_page, report):
        page = open_page(report, watched=False)
        page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "window.hacked = 1";
                document.body.append(script);
                document.body.insertAdjacentHTML("beforeend", '<p onclick="window.hacked = 2">x</p>');
                document.body.lastElementChild.click();
            }"""
        )
        assert page.evaluate("window.hacked") is None


def test_some_of_the_prompts_say_how_many(open_page):
    front = make_front(groups=("lines",))
    completions = make_completions(front, prompts=400)
    bare = len(report_html(front, None, MADE).encode())
    page = open_page(report_html(front, completions, MADE, max_bytes=bare + 60_000))
    shown, total = map(
        int, re.search(r"for (\d+) of the (\d+) prompts", page.locator("#compare").inner_text()).groups()
    )
    assert total == 400 and 10 < shown < 400
    assert page.locator("#prompt-count").inner_text() == f"of {shown}"


# --- completions: order, words, addresses, folds ---


def place(page):
    return int(page.locator("#prompt-number").input_value()) - 1


def test_completions_open_where_the_two_differ_most(open_page, report, front):
    page = open_page(report)
    scores = make_completions(front, samples=2).scores
    left, right = (int(page.locator(f"#{side}").input_value()) for side in ("left", "right"))
    spread = {name: np.std(np.mean(by_id[0], axis=1)) for name, by_id in scores.items()}

    def shown(values):
        return np.round(np.array([[float(f"{v:.4g}") for v in row] for row in values]), 3).mean(axis=1)

    apart = sum(abs(shown(by_id[right]) - shown(by_id[left])) / spread[name] for name, by_id in scores.items())
    expected = np.argsort(-apart, kind="stable").tolist()
    found = [place(page)]
    for _ in range(len(expected) - 1):
        page.get_by_role("button", name="Next").click()
        found.append(place(page))
    assert found == expected
    assert page.get_by_role("button", name="Next").is_disabled()


def test_prompts_are_sorted_by_what_the_right_one_lost(open_page, report, front):
    page = open_page(report)
    right = find(front, "lines", (0.8, 0.2))["id"]
    page.get_by_role("combobox", name="Right").select_option(str(right))
    page.get_by_label("Order").select_option("loss")
    scores = make_completions(front, samples=2).scores
    own, sft = (np.stack([np.array(scores[name][i]) for name in front["rewards"]], axis=-1) for i in (right, 0))
    worst = [lost.prompt for lost in lost_most(own, sft, front["rewards"])]
    found = [place(page)]
    for _ in worst[1:]:
        page.get_by_role("button", name="Next").click()
        found.append(place(page))
    assert found == worst


def two_texts(left, right):
    """Returns a front with two points that wrote these texts."""
    front = make_front(groups=("lines",))
    front["points"] = front["points"][:3]
    front["fronts"]["lines"] |= {"nondominated": [3, 6], "hull": [3, 6]}
    front["surrogate"] = None
    ids, one = [0, 3, 6], {i: [[0.0]] for i in (0, 3, 6)}
    texts = dict(zip(ids, [[[""]], [[left]], [[right]]], strict=True))
    return front, Completions(["prompt"], 1, {i: i for i in ids}, texts, one, dict.fromkeys(front["rewards"], one))


def test_words_that_differ_are_marked(open_page):
    left, right = "the cat sat on the mat", "the dog sat on a mat, <b>late</b>"
    page = open_page(report_html(*two_texts(left, right), {}))
    page.get_by_role("combobox", name="Left").select_option("3")
    page.get_by_role("combobox", name="Right").select_option("6")
    marked = [side.locator("mark").all_inner_texts() for side in page.locator("#comparison .side").all()]
    assert marked == [["cat", "the"], ["dog", "a", ", <b>late</b>"]]
    assert page.locator("#comparison .text").all_inner_texts() == [left, right]
    page.get_by_label("mark words").uncheck()
    assert page.locator("mark").count() == 0


def test_an_address_brings_the_view_back(open_page, report, front):
    page = open_page(report)
    left, right = find(front, "scaled", (0.3, 0.7))["id"], find(front, "lines", (0.8, 0.2))["id"]
    page.evaluate(f"location.hash = '#p=12&a={left}&b={right}'")
    page.wait_for_function("() => document.getElementById('prompt-number').value === '12'")
    assert [page.locator(f"#{side}").input_value() for side in ("left", "right")] == [str(left), str(right)]
    assert page.locator("#comparison .prompt").inner_text().startswith("prompt 11: ")
    page.get_by_role("button", name="Next").click()
    address = page.get_by_role("link", name="Address of this view").get_attribute("href")
    assert page.evaluate("location.hash") == address and re.fullmatch(
        rf"#p=\d+&a={left}&b={right}(&w=\d+-\d+)?", address
    )
    number, text = page.locator("#prompt-number").input_value(), page.locator("#comparison .prompt").inner_text()
    page.reload()
    assert page.locator("#prompt-number").input_value() == number
    assert page.locator("#comparison .prompt").inner_text() == text
    page.evaluate("location.hash = '#p=1e9&a=<b>&b=nothing'")
    assert page.locator("#prompt-number").input_value() == number
    open_page.requests.clear()  # the page itself, read again


def test_an_address_has_the_preference_and_follows_the_sliders(open_page, report, front):
    """The point is best for several preferences, of which the address tells the one that was chosen."""
    page = open_page(report)
    best = [pick_point(front, preference=[k / 10, 1 - k / 10], scale="range")["id"] for k in range(11)]
    place = next(k for k in range(10) if best[k] == best[k + 1] != best[5])  # neither the first nor where a page begins
    slider = page.locator("#preference")
    slider.focus()
    page.keyboard.press("Home")
    for k in range(place + 1):
        assert page.evaluate("location.hash").endswith(f"&b={best[k]}&w={10 * k}-{100 - 10 * k}")
        if k < place:
            page.keyboard.press("ArrowRight")
    page.goto(page.url.partition("#")[0] + page.evaluate("location.hash"))
    page.reload()
    assert slider.input_value() == str(place)
    page.locator("#weight").focus()
    page.keyboard.press("Home")
    assert f"&b={page.evaluate('selected')}" in page.evaluate("location.hash")
    control = find(front, "reversed", (0.2, 0.8))["id"]
    page.locator(f"#points-table tr[data-point='{control}'] td").first.click()
    assert page.evaluate("location.hash").endswith(f"&b={control}")  # best for no preference
    open_page.requests.clear()  # the page itself, read again


def test_a_policy_is_compared_with_the_sft_model_until_the_reader_chooses(open_page, report, front):
    page = open_page(report)
    one, other, control = (find(front, g, (0.8, 0.2))["id"] for g in ("lines", "rewarded_soup", "scaled"))

    def compared():
        return [int(page.locator(f"#{side}").input_value()) for side in ("left", "right")]

    def click(point):
        page.locator(f"#points-table tr[data-point='{point}'] td").first.click()

    assert compared()[0] == 0
    click(one)
    assert compared() == [0, one]
    click(0)  # which is not compared with itself
    assert compared() == [one, 0]
    click(other)
    assert compared() == [0, other]
    page.get_by_role("combobox", name="Left").select_option(str(control))
    click(one)
    assert compared() == [control, one]
    click(control)
    assert compared() == [one, control]
    click(other)
    assert compared() == [control, other]
    page.evaluate(f"location.hash = '#p=1&a={one}&b={control}'")
    page.wait_for_function(f"selected === {control}")
    click(other)
    assert compared() == [one, other]


def test_the_slider_moves_the_comparison(open_page, report, front):
    page = open_page(report)
    page.get_by_role("combobox", name="Left").select_option(str(find(front, "rewarded_soup", (0.5, 0.5))["id"]))
    page.locator("#weight").focus()
    page.keyboard.press("Home")
    chosen = [find(front, group, (0.0, 1.0))["id"] for group in ("rewarded_soup", "lines")]
    assert [int(page.locator(f"#{side}").input_value()) for side in ("left", "right")] == chosen
    assert page.locator("#comparison .text").first.inner_text().startswith(f"{chosen[0]}.")


def test_a_long_completion_is_folded(open_page):
    text = "word " * 2000
    page = open_page(report_html(*two_texts(text, "short"), {}))
    page.get_by_role("combobox", name="Left").select_option("3")
    long, short = page.locator("#comparison .side").all()
    button = long.get_by_role("button", name="Show all")
    assert long.bounding_box()["height"] < 500 and not short.get_by_role("button").count()
    button.click()
    assert long.locator(".text").bounding_box()["height"] > 500
    assert long.get_by_role("button", name="Show less").get_attribute("aria-expanded") == "true"


def test_prompts_begin_with_what_tells_them_apart_and_are_there_in_full(open_page, front):
    completions = make_completions(front)
    prompts = [f"<|im_start|>system\nYou are kind.<|im_end|>\n{text}" for text in completions.prompts]
    asked = [f"…{text}" for text in completions.prompts]
    page = open_page(report_html(front, replace(completions, prompts=prompts, asked=asked), MADE))
    assert set(page.locator("#lost li a").all_inner_texts()) < set(asked)
    box = page.locator("#comparison .prompt-fold")
    number = place(page)
    assert box.locator("p").inner_text() == asked[number]
    box.get_by_role("button", name="Show all").click()
    assert box.locator("p").inner_text() == prompts[number]
    box.get_by_role("button", name="Show less").click()
    assert box.locator("p").inner_text() == asked[number]


def test_the_best_point_for_a_preference_is_that_of_pick_and_opens(open_page, report, front):
    page = open_page(report)
    row = page.locator("#choice-table tbody tr").nth(3)
    assert row.locator("th").inner_text() == "70 : 30"
    picked = pick_point(front, preference=[0.7, 0.3], scale="range")
    star = row.locator(".chosen")
    assert star.inner_text().endswith(" picked")
    assert star.inner_text().startswith(" / ".join(f"{w:g}" for w in picked["spec"]["weights"]))
    star.locator("a").click()
    page.wait_for_function(f"() => document.getElementById('right').value === '{picked['id']}'")


# --- numbers of objectives ---


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_objectives(open_page, count):
    names = tuple("abcd"[:count])
    front = make_front(rewards=names)
    page = open_page(report_html(front, make_completions(front), MADE))
    ids = {point["id"] for point in front["points"]}
    assert drawn_ids(page) == ids
    point = find(front, "lines", (1.0, 0.0))
    ys = page.evaluate(
        f"""id => {DRAWN}.data.flatMap(({{ customdata = [], x, y }}) =>
            customdata.flatMap((other, i) => (other === id && x[i] !== null ? [[x[i], y[i]]] : [])))""",
        point["id"],
    )
    means = [point["scores"][name]["mean"] for name in names]
    if count == 1:
        [(x, _)] = ys
        assert x == means[0]
    elif count < 4:
        assert ys == [means[:2]]
    else:
        low, high = np.array(front["reference_point"]), np.array(front["ideal_point"])
        assert [x for x, _ in ys] == [0, 1, 2, 3]
        assert [y for _, y in ys] == pytest.approx(list((np.array(means) - low) / (high - low)))


def three_policies():
    weights = [(a / 4, b / 4, (4 - a - b) / 4) for a in range(5) for b in range(5 - a)]
    front = make_front(rewards=("one", "two", "three"), groups=("lines", "rewarded_soup"))
    front["policies"] = ["p", "q", "r"]
    for group in ("lines", "rewarded_soup"):
        points = [point for point in front["points"] if point["group"] == group]
        for point, row in zip(points, weights, strict=False):
            point["spec"]["weights"] = point["preference"] = list(row)
    return front, weights[:11]


def test_three_policies_have_a_slider_each_and_a_triangle(open_page):
    front, weights = three_policies()
    page = open_page(report_html(front, make_completions(front), MADE))
    drawn = "document.getElementById('ternary-figure').data[0]"
    points = [point for point in front["points"] if point["group"] == "lines"]
    found = zip(*page.evaluate(f"(({{ a, b, c, customdata }}) => [customdata, a, b, c])({drawn})"), strict=True)
    assert sorted(map(list, found)) == sorted([point["id"], *row] for point, row in zip(points, weights, strict=True))
    page.locator("#ternary-measure").select_option(label="two")
    colours = dict(zip(*page.evaluate(f"[{drawn}.customdata, {drawn}.marker.color]"), strict=True))
    assert colours == {point["id"]: point["scores"]["two"]["mean"] for point in points}
    page.locator("#ternary-groups input").nth(1).check()
    assert set(page.evaluate(f"{drawn}.customdata")).isdisjoint(colours)
    sliders = page.locator(".part")
    assert sliders.count() == 3
    sliders.nth(1).focus()
    page.keyboard.press("End")
    assert page.locator("#weight-text").inner_text() == "0 p · 1 q · 0 r"
    assert [slider.input_value() for slider in sliders.all()] == ["0", "4", "0"]
    assert page.evaluate("data.steps[step].points").count(page.evaluate("selected")) == 1


# --- what every reader needs ---

CONTRAST = """() => {
    const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
        .getContext("2d", { willReadFrequently: true });
    const rgba = (colour) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => (c * a + below[i] * (255 - a)) / 255);
    const behind = (element) => {
        if (!element) return [255, 255, 255];
        const colour = rgba(getComputedStyle(element).backgroundColor);
        return colour[3] === 255 ? colour.slice(0, 3) : over(colour, behind(element.parentElement));
    };
    const light = (colour) => colour.map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + [0.2126, 0.7152, 0.0722][i] * c, 0);
    const low = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const left_out = ".figure, script, option, optgroup, :disabled, [aria-hidden=true]";
        if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(left_out)) continue;
        const style = getComputedStyle(element), back = behind(element);
        const [a, b] = [light(over(rgba(style.color), back)), light(back)].sort((x, y) => y - x);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < (large ? 3 : 4.5)) low.push([element.outerHTML.slice(0, 80), ratio]);
    }
    return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_from_its_background(open_page, report, scheme):
    page = open_page(report, color_scheme=scheme)
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true; }")
    assert page.evaluate(CONTRAST) == []  # WCAG 2.2, 1.4.3, level AA


def test_everything_that_is_used_has_a_name(page):
    tree = page.locator("body").aria_snapshot()
    roles = "button|link|checkbox|combobox|textbox|searchbox|spinbutton|slider|radio|region|navigation"
    unnamed = [line for line in tree.splitlines() if re.match(rf"\s*- ({roles})(?! \")(:|$| \[)", line)]
    assert unnamed == []


def test_headings_leave_out_no_level(page):
    shown = "[...document.querySelectorAll('h1, h2, h3, h4')].filter(heading => heading.checkVisibility())"
    levels = page.evaluate(f"{shown}.map(heading => Number(heading.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_tab_reaches_every_control_from_top_to_bottom(open_page, report):
    page = open_page(report)
    focusable = "a[href], button, input, select, summary, [tabindex='0']"
    wanted = page.evaluate(
        f"""() => [...document.querySelectorAll("{focusable}")].filter(e => e.checkVisibility() && !e.disabled)
            .filter(e => e.tabIndex >= 0).filter(e => e.type !== "radio" || e.checked)
            .map((e, i) => {{ e.dataset.tab = i; return i; }})"""
    )
    reached = []
    for _ in range(len(wanted) + 5):
        page.keyboard.press("Tab")
        index = page.evaluate("document.activeElement.dataset.tab")
        if index is None or int(index) in reached:
            break
        reached.append(int(index))
    assert reached == wanted  # in the order in which they stand


def test_a_table_keeps_its_first_column_and_begins_with_scores(open_page, report, front):
    page = open_page(report, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    box = page.locator("#points-table .scroll")
    box.evaluate("box => { box.scrollLeft = 400; }")
    first = page.locator("#points-table tbody tr").nth(1).locator("th").bounding_box()
    assert first["x"] == pytest.approx(box.bounding_box()["x"], abs=1)
    heads = page.locator("#points-table thead th").all_inner_texts()
    assert heads[:3] == ["policy", *front["rewards"]] and heads.index("alpha") > heads.index("perplexity")


def test_paper_has_few_pages(page):
    pages = len(re.findall(rb"/Type\s*/Page[^s]", page.pdf(format="A4")))
    assert pages <= 8

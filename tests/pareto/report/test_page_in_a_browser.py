"""The page in a browser: what a reader does with a mouse, a finger or a keyboard, and what hostile texts do to it."""

from __future__ import annotations

import re

import pytest

from rlhf_lines.pareto.report import report_html
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


def ringed(page):
    return page.evaluate(f"(() => {{ const {{ x, y }} = {DRAWN}.data.at(-1); return x.map((v, i) => [v, y[i]]); }})()")


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
    assert page.evaluate(SECTIONS) == (
        ["facts", "front", "weights", "compare", "volumes", "validation", "forgetting", "surrogate", "points", "made"]
    )
    assert page.locator("#points-table tbody tr").count() == len(front["points"]) == len(drawn_ids(page))
    assert page.locator("#volumes-table tbody tr").count() == 4
    assert page.locator("#validation-table tr.chosen").inner_text().split("\t")[:3] == ["1", "1", "linear"]
    assert page.locator("#surrogate-table tbody tr").count() == 12
    assert page.locator("#undone-table tbody tr").count() == 11
    assert "rlhf-lines pick" in page.locator("#made").inner_text()
    assert page.locator(".js-plotly-plot").count() == 4


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


def test_hulls_and_bands_can_be_switched_on(page, front):
    lines = f"{DRAWN}.data.filter(trace => trace.mode === 'lines' && trace.line.shape !== 'vh')"
    assert page.evaluate(f"{lines}.length") == 0
    page.get_by_label("convex hull").check()
    hulls = page.evaluate(f"{lines}.map(trace => [trace.x, trace.y])")
    by_id = {point["id"]: [point["scores"][r]["mean"] for r in front["rewards"]] for point in front["points"]}
    expected = [[list(x) for x in zip(*map(by_id.get, f["hull"]), strict=True)] for f in front["fronts"].values()]
    assert sorted(hulls) == sorted(expected)
    page.get_by_label("convex hull").uncheck()
    page.get_by_label("where resampled fronts lie").check()
    bands = page.evaluate(f"{lines}.map(trace => trace.x.map((x, i) => [x, trace.y[i]]))")
    assert len(bands) == len(front["fronts"])
    corners = [{tuple(corner) for level in ("0.025", "0.975") for corner in f["attainment"][level]}
               for f in front["fronts"].values()]  # fmt: skip
    assert all(any(wanted <= set(map(tuple, band)) for band in bands) for wanted in corners)
    page.get_by_label("where resampled fronts lie").uncheck()


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
        ["LiNeS", "rewarded soup", "scaled evenly", "reversed LiNeS", "SFT"]
    )
    chosen = [find(front, group, (0.1, 0.9)) for group in ("lines", "rewarded_soup", "scaled", "reversed")]
    means = [[point["scores"][reward]["mean"] for reward in front["rewards"]] for point in chosen]
    assert [row[3].split()[0] for row in rows[:4]] == [f"{x:.3f}".replace("-", MINUS) for x, _ in means]
    assert sorted(ringed(page)) == sorted(means)


def test_completions_of_any_two_points_side_by_side(page, front):
    left, right = find(front, "scaled", (0.3, 0.7)), find(front, "lines", (0.8, 0.2))
    page.get_by_role("combobox", name="Left").select_option(str(left["id"]))
    page.get_by_role("combobox", name="Right").select_option(str(right["id"]))
    page.locator("#prompt-number").fill("1")
    page.locator("#prompt-number").press("Enter")
    page.get_by_role("button", name="Next").click()
    assert page.locator("#comparison .prompt").inner_text().startswith("prompt 1: ")
    texts = [text.split()[0] for text in page.locator("#comparison .text").all_inner_texts()]
    assert texts == [f"{left['id']}.1.0", f"{left['id']}.1.1", f"{right['id']}.1.0", f"{right['id']}.1.1"]
    scores = make_completions(front, samples=2).scores["brief"]
    shown = page.locator("#comparison dl div:first-child dd").all_inner_texts()
    pairs = [(scores[left["id"]][1][s], scores[right["id"]][1][s]) for s in (0, 1)]
    expected = [(a, a > b) for a, b in pairs] + [(b, b > a) for a, b in pairs]
    assert shown == [f"{value:.3f}".replace("-", MINUS) + " ▲" * higher for value, higher in expected]


def test_prompts_are_reached_by_number_and_by_text(page):
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
    tab_to(page, "#left")
    page.keyboard.type("SFT")
    assert page.locator("#left").input_value() == "0"
    assert page.locator("#comparison .side").first.locator("h3").inner_text().endswith("SFT")
    tab_to(page, "#next")
    page.keyboard.press("Enter")
    assert page.locator("#prompt-number").input_value() == "2"


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
    colours = f"[{DRAWN}.layout.font.color, {DRAWN}.data.at(-2).marker.color].join()"

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
    page.get_by_role("combobox", name="Up").select_option(label="three")
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
        point["spec"]["weights"] = weights
    runs = [point for point in front["points"] if point["group"] == "morlhf"]
    for k, point in enumerate(runs):
        point["spec"]["weights"] = [0.0, 0.0, 1.0 - k % 2, float(k % 2)]
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
    assert page.evaluate(SECTIONS) == ["facts", "front", "compare", "points"]
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
        for prompt, text in enumerate(HOSTILE):
            assert page.locator("#comparison .prompt").text_content().endswith(text.replace("\x00", "␀"))
            assert page.locator("#comparison .text").first.text_content().endswith(text.replace("\x00", "␀"))
            if prompt < len(HOSTILE) - 1:
                page.get_by_role("button", name="Next").click()
        page.mouse.move(*pixel(page, point, self.REWARDS))
        page.locator("#front-figure .hovertext").wait_for()
        assert page.locator("h1").text_content() == HOSTILE[0]
        assert page.locator("#made pre").last.text_content() == "\n".join(HOSTILE).replace("\x00", "␀")
        assert page.evaluate("window.hacked") is None
        added = "main script, main img, main iframe, main a[href], svg a, main b, main [onerror]"
        assert page.locator(added).count() == 0

    def test_are_shown_as_written_in_figures_too(self, hostile):
        front, page = hostile
        point = find(front, HOSTILE[4], (0.0, 1.0))
        page.mouse.move(*pixel(page, point, self.REWARDS))
        shown = page.locator("#front-figure .hovertext")
        shown.wait_for()
        assert "<b>bold</b> <a href='javasc" in shown.text_content()
        assert '"note":"<b>bold</b>' in shown.text_content()
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

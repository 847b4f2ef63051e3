"""The console in a real Chromium, in front of a real gateway with traffic that was explored and labelled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

from calibrators import artifact as artifacts
from gateway.monitor.registry import Registry
from tests.console.conftest import EVIL, PATIENCE_MS, REQUESTS, Running, sign_in, visit
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, UNSURE, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.test_feedback import SECRETS, bearer, planned


def test_it_asks_no_foreign_host_and_complains_of_nothing(context: BrowserContext, served: Running) -> None:
    seen = visit(context)
    sign_in(seen.page, served.url)
    seen.page.wait_for_timeout(300)
    assert {url.split("/admin")[0] for url in seen.asked} == {served.admin}
    assert not any("sk-" in url for url in seen.asked), "a key in an address"
    unexpected = [told for told in seen.complaints if "401" not in told and "404" not in told]
    assert unexpected == []  # 401: it asked without a key first; 404: what is not configured


def test_without_a_key_or_with_a_wrong_one_it_asks_for_one_and_keeps_it_in_the_tab_alone(
    context: BrowserContext, served: Running
) -> None:
    page = visit(context).page
    page.goto(served.url)
    field = page.get_by_label("Admin key")
    expect(field).to_be_focused()
    expect(page.locator("#figures")).to_be_hidden()
    for wrong in ("sk-alice", "nonsense"):
        field.fill(wrong)
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert").first).to_contain_text("Incorrect API key")
        assert page.evaluate("sessionStorage.length") == 0
    field.fill("sk-root")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#tiles")).to_contain_text("Requests")
    assert page.evaluate("JSON.stringify(localStorage)").count("sk-") == 0
    assert "sk-root" not in page.content()
    page.reload()
    expect(page.locator("#tiles")).to_contain_text("Requests")
    page.get_by_role("button", name="Sign out").click()
    expect(field).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_tiles_show_what_the_gateway_counted_with_intervals_and_n(page: Page, served: Running) -> None:
    told = served.get("/admin/console/data").json()
    assert told["traffic"]["n"] == REQUESTS + 1
    tiles = page.locator("#tiles")
    expect(tiles).to_contain_text(f"Requests{REQUESTS + 1}")
    for one in told["traffic"]["tiers"]:
        expect(tiles).to_contain_text(f"{one['tier']}{100 * one['value']:.1f} % [{100 * one['low']:.1f}, ")
    saved = told["saving"]["figure"]
    expect(tiles).to_contain_text(f"{100 * saved['value']:.1f} %")
    expect(tiles).to_contain_text(f"n = {saved['n']} explored decisions")
    expect(tiles).to_contain_text(re.compile(r"\d ms ?median \[.*\].*p95 \["))


def test_charts_have_names_and_tables_with_the_same_numbers(page: Page, served: Running) -> None:
    told = served.get("/admin/console/data").json()
    routed = next(one for one in told["calibration"] if one["tier"] == "")["drawn"]
    page.get_by_text("Reliability as a table").click()
    table = page.locator("#reliability-table table")
    expect(table.locator("tbody tr")).to_have_count(len(routed["bins"]))
    first = routed["bins"][0]
    expect(table.locator("tbody tr").first).to_contain_text(f"{100 * first['value']:.1f} %")
    expect(page.locator("#reliability svg .dot").first).to_be_visible()
    expect(page.locator("#reliability")).to_contain_text(f"n = {routed['n']}")
    unnamed = page.eval_on_selector_all("svg[role=img]", "all => all.filter(one => !one.getAttribute('aria-label'))")
    assert unnamed == []
    assert page.locator("#histograms svg .right").count() > 0
    page.locator("#labels").select_option("all")
    expect(page.locator("#reliability")).to_contain_text("chooses by the truth")


def test_no_two_places_of_an_axis_have_the_same_number(page: Page) -> None:
    for name in ("Reliability diagram", "cheap: probabilities"):
        picture = page.locator(f'svg[aria-label^="{name}"]').first
        expect(picture).to_be_visible()
        told = [word for word in picture.locator("text").all_text_contents() if re.fullmatch(r"[01]\.\d+", word)]
        at = [float(word) for word in told]
        assert len(at) >= 4, told
        assert np.diff(at) == pytest.approx(at[1] - at[0]), told
        assert at[0] < at[1]


def test_the_slider_replays_another_threshold_and_says_what_is_not_known(page: Page, served: Running) -> None:
    told = served.get("/admin/console/replay", policy="default", tier="cheap").json()
    slider, there = page.get_by_role("slider"), page.locator("svg .there[data-threshold]")
    expect(there).to_have_attribute("data-threshold", "0.8")
    readout = page.locator("#replay-readout tbody")
    before = readout.inner_text()
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(there).to_have_attribute("data-threshold", "0.81")
    page.keyboard.press("Home")
    expect(there).to_have_attribute("data-threshold", "0")
    lowest = told["points"][0]
    assert lowest["shares"] == [1.0, 0.0]
    expect(readout.locator("tr", has_text="answered by cheap").locator("td").last).to_have_text("100.0 %")
    known = f"{100 * lowest['most']['value']:.1f} % [{100 * lowest['least']['low']:.1f}, "
    expect(readout.locator("tr", has_text="accuracy").locator("td").last).to_contain_text(known)
    expect(readout).not_to_have_text(before)
    assert "accuracy" in (slider.get_attribute("aria-valuetext") or "")
    page.keyboard.press("End")
    if told["points"][-1]["unknown"]:
        expect(page.locator("#replay-readout")).to_contain_text("Accuracy is a range where it is not known")
    expect(page.locator("#replay-readout")).to_contain_text(f"Replayed on {told['rows']} explored decisions")
    page.get_by_role("button", name="Back to the policy").click()
    expect(there).to_have_attribute("data-threshold", "0.8")


def test_what_models_and_clients_wrote_stays_text(context: BrowserContext, served: Running) -> None:
    seen = visit(context)
    sign_in(seen.page, served.url)
    seen.page.locator("#decisions button.link").first.click()
    dialog = seen.page.get_by_role("dialog")
    expect(dialog.locator("pre").last).to_have_text(EVIL)
    expect(dialog.locator("pre").first).to_contain_text("<script>")
    expect(dialog).to_contain_text("<img src=x")
    assert dialog.locator("img, script").count() == 0
    assert seen.page.evaluate("window.pwned") is None
    assert not [told for told in seen.complaints if "401" not in told and "404" not in told]
    assert (
        seen.page.evaluate("try { document.body.innerHTML = '<b>x</b>'; 'markup' } catch (error) { error.name }")
        == "TypeError"
    ), "the page's policy forbids making markup of text"


def test_the_live_card_is_shown_as_it_is_now(page: Page) -> None:
    page.get_by_role("button", name="Live card of default").click()
    expect(page.get_by_role("dialog")).to_contain_text("cheap@")
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_alarms_are_told_as_they_come(page: Page, served: Running) -> None:
    report = served.get("/admin/monitors").json()
    assert report["alarms"] == []
    alarms = page.locator("#alarms[aria-live=polite]")
    expect(alarms).to_contain_text("None, as of")
    alarm = {"since": report["at"], "kind": "overconfident", "tier": "cheap", "slice": "default", "page": True}
    told = report | {"alarms": [alarm | {"why": "claimed 95 %, right 71 % <b>of</b> 500"}]}
    page.route("**/admin/monitors", lambda route: route.fulfill(json=told))
    page.get_by_role("button", name="Pause").click()
    words = "Over-confident · cheap · default: claimed 95 %, right 71 % <b>of</b> 500"
    expect(alarms.locator("li")).to_contain_text(words)
    expect(page).to_have_title(re.compile(r"^\(!\)"))
    page.unroute("**/admin/monitors")


def test_drift_is_drawn_over_time_beside_the_distance_that_an_alarm_begins_at(page: Page, served: Running) -> None:
    report = served.get("/admin/monitors").json()
    looks = iter(range(1, 1000))

    def look(route: Route) -> None:
        number = next(looks)
        one = {"policy": "default", "tier": "cheap", "state": "quiet", "n": 200, "n_reference": 400, "drifted": []}
        one |= {"largest_effect": 0.04 * number, "out_of_distribution": 0.01}
        told = report | {"at": f"2026-11-22T12:00:{number:02d}+00:00", "monitors": {"drift": [one], "labels": {}}}
        route.fulfill(json=told)

    page.route("**/admin/monitors", look)
    drawing = page.get_by_role("img", name=re.compile("^Largest effect at default · cheap: "))
    pause = page.get_by_role("button", name="Pause")
    pause.click()
    expect(drawing).to_have_attribute("aria-label", re.compile(r": 0\.04 now, 1 looks .* an alarm needs 0\.1 or more"))
    pause.click()
    expect(drawing.locator(".curve")).to_be_visible()
    expect(drawing.locator(".limit")).to_have_count(1)
    assert wrong(page) == []
    page.unroute("**/admin/monitors")


def test_without_exploration_savings_are_an_estimate_that_names_what_it_supposes(page: Page, served: Running) -> None:
    told = served.get("/admin/console/data").json()
    likely = {"figure": {"value": 0.42, "low": 0.4, "high": 0.44, "n": 61}, "n": 61, "least": 30}
    saving = {"figure": None, "n": 0, "least": 30, "free": False, "likely": likely}
    changed = told | {"saving": saving, "explored_share": None}
    page.route("**/admin/console/data?*", lambda route: route.fulfill(json=changed))
    page.get_by_role("button", name="Pause").click()
    tiles = page.locator("#tiles")
    expect(tiles).to_contain_text("≈ 42.0 %")
    expect(tiles).to_contain_text("supposes that the largest tier would have answered with as many tokens")
    expect(tiles).to_contain_text("Exploration measures it: switch it on")
    page.unroute("**/admin/console/data?*")


def test_a_store_or_a_gateway_that_is_away_is_told_and_what_needs_neither_stays(page: Page) -> None:
    away = {"error": {"message": "The store is away."}}
    page.route("**/admin/console/data?*", lambda route: route.fulfill(status=503, json=away))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#status")).to_contain_text("The store is away.")
    expect(page.locator("#tiles")).to_contain_text("since the start")
    expect(page.locator("#tiers")).to_contain_text("cheap@")
    expect(page.get_by_role("heading", name="Recent decisions")).to_be_hidden()
    page.unroute("**/admin/console/data?*")
    page.route("**/admin/**", lambda route: route.abort())
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#status")).to_contain_text("cannot be reached")
    page.unroute("**/admin/**")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#tiles")).to_contain_text("Saved against always the largest")
    expect(page.get_by_role("heading", name="Recent decisions")).to_be_visible()


def test_a_keyboard_alone_reaches_everything_in_order(page: Page) -> None:
    order = []
    for _ in range(6):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert order == ["skip", "window", "policy", "pause", "sign-out", "theme"]
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('link')"):
            break
    number = page.evaluate("document.activeElement.textContent")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text(number)
    expect(page.get_by_role("dialog")).to_contain_text("Hops in order")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert page.evaluate("document.activeElement.textContent") == number, "the focus comes back"


def test_new_figures_leave_the_focus_and_open_tables_where_they_were(page: Page, served: Running) -> None:
    page.get_by_text("Curve as a table").click()
    page.locator("#decisions button.link").nth(3).focus()
    number = page.evaluate("document.activeElement.dataset.key")
    before = page.locator("#status").inner_text()
    page.get_by_role("button", name="Pause").dispatch_event("click")  # looks at once
    expect(page.locator("#status")).not_to_have_text(before)
    assert page.evaluate("document.activeElement.dataset.key") == number
    expect(page.locator("#replay-table table")).to_be_visible()


def test_without_a_store_the_page_shows_what_the_metrics_tell(
    context: BrowserContext, tmp_path: Path, upstream: Upstream
) -> None:
    write_artifact(tmp_path / "cheap.json")
    plan = planned(upstream.url)
    del plan["store"]
    with running(tmp_path, plan, **SECRETS) as gateway:
        for nats in (SURE, UNSURE):
            body = ask({"nats": nats})
            httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, headers=bearer("alice"), timeout=PATIENCE)
        page = visit(context).page
        page.goto(f"http://127.0.0.1:{plan['admin']['port']}/admin/console/")
        page.get_by_label("Admin key").fill("sk-root")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("No store is configured")
        expect(page.locator("#tiles")).to_contain_text(re.compile("Requests2.*cheap50.0 %.*dear50.0 %"))
        expect(page.locator("#tiers")).to_contain_text("cheap@")
        expect(page.get_by_role("heading", name="Recent decisions")).to_be_hidden()


def test_a_calibrator_is_put_on_trial_made_live_and_rolled_back_by_clicks_and_reasons(
    context: BrowserContext, tmp_path: Path, upstream: Upstream
) -> None:
    good = write_artifact(tmp_path / "cheap.json")
    bad = write_artifact(tmp_path / "bad.json", intercept=12.0)
    Registry(tmp_path / "rollout" / "artefacts").put(
        artifacts.load(tmp_path / "bad.json"), parent=None, who="test", at="2026-01-01T00:00:00+00:00", why=""
    )
    rules = {"folder": "rollout", "poll_seconds": 0.2, "labels_of": "all", "advance": False, "probe": None}
    plan = planned(upstream.url, rollout=rules)
    with running(tmp_path, plan, **SECRETS) as gateway:

        def calibrator() -> str:
            body, key = ask({"nats": SURE}), bearer("alice")
            told = httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, headers=key, timeout=PATIENCE)
            return str(told.headers["x-route-calibrator"])

        page = visit(context).page
        page.goto(f"http://127.0.0.1:{plan['admin']['port']}/admin/console/")
        page.get_by_label("Admin key").fill("sk-root")
        page.keyboard.press("Enter")
        card = page.get_by_role("region", name="Rollout at cheap")
        expect(card).to_contain_text(f"live{good}")
        expect(card.get_by_role("button", name="Roll back")).to_have_count(0)  # there is nothing to go back to yet

        step(page, card, "Start shadow", "it promises more", f"{bad} (platt, by test)")
        expect(card).to_contain_text(f"on trial{bad}, shadow")
        card.get_by_role("button", name="Make live").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Make live").click()
        expect(dialog).to_be_visible()  # not without a reason
        assert calibrator() == good
        page.keyboard.press("Escape")
        step(page, card, "Make live", "<b>in a hurry</b>")
        expect(card).to_contain_text(f"live{bad}")
        until(lambda: calibrator() == bad)

        card.get_by_role("button", name="Roll back").focus()
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text(f"It will be {good}.")
        expect(dialog.get_by_label("Reason")).to_be_focused()
        page.keyboard.type("answers are wrong")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(page.locator("#rollout-told")).to_have_text("Done: roll back at cheap.")
        expect(card).to_contain_text(f"live{good}")
        until(lambda: calibrator() == good)
        card.get_by_text("History").click()
        expect(card.locator("tbody tr").first).to_contain_text("rollbackrootanswers are wrong")
        expect(card.locator("tbody tr").nth(1)).to_contain_text("promoteroot<b>in a hurry</b>")
        assert wrong(page) == []


def step(page: Page, card: Locator, action: str, why: str, artefact: str | None = None) -> None:
    """Ask for a step, say why, and confirm it."""
    card.get_by_role("button", name=action).click()
    dialog = page.get_by_role("dialog")
    if artefact is not None:
        dialog.get_by_label("Artefact").select_option(label=artefact)
    dialog.get_by_label("Reason").fill(why)
    dialog.get_by_role("button", name=action).click()
    expect(dialog).to_be_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_axe_finds_nothing_wrong_and_nothing_sticks_out(
    scheme: Any, width: int, browser: Browser, served: Running
) -> None:
    with browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    ) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = visit(context).page
        page.goto(served.url)
        expect(page.get_by_label("Admin key")).to_be_focused()
        assert wrong(page) == []
        sign_in(page, served.url)
        assert wrong(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.locator("#decisions button.link").first.click()
        expect(page.get_by_role("dialog").locator("table").first).to_be_visible()
        assert wrong(page) == []
        page.keyboard.press("Escape")
        page.get_by_label("Theme").select_option("light" if scheme == "dark" else "dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def wrong(page: Page) -> list[str]:
    """What axe-core complains of, by the rules of WCAG 2.2 AA and good practice."""
    found = Axe().run(page)
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in found.response["violations"]]

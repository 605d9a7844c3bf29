"""The page at /ui in a real browser, where there is one: forms are filled, buttons pressed, plots drawn."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from pipelines.bench.synthetic_towers import clustered, write_towers
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service

TIMEOUT_MS = 60_000
"""A browser on a machine that is busy with other tests is slow to start."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def browser() -> str:
    """Chromium's program: CTRKIT_CHROMIUM, or on the path."""
    named = [os.environ.get("CTRKIT_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell"]
    found = [path for name in named if name and (path := shutil.which(name))]
    if not found:
        pytest.skip("no Chromium here: install one, or name it in CTRKIT_CHROMIUM")
    return found[0]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """The page of a service with a model and two towers; whatever its script or the content security policy complains of fails the test."""
    program = browser()
    make_bundle(tmp_path / "repo")
    write_towers(tmp_path / "repo", "shop", 1, clustered(50, 8, 4, seed=1))
    complaints: list[str] = []
    with service(tmp_path / "repo", ServingSettings(poll_s=0)) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        opened = chromium.new_page()
        opened.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("console", lambda message: complaints.append(message.text))
        opened.goto(f"{address}/ui")
        expect(opened.locator("#times svg")).to_be_visible()
        yield opened
        chromium.close()
    assert not complaints


def test_a_person_scores_a_row_ranks_candidates_and_sees_what_it_took(page: Page) -> None:
    expect(page.locator("#models tr")).to_have_text(["clicks11", "shop11"])
    row = {"user": "u1", "price": 2.5, "tags": ["a", "b"]}
    page.get_by_text("Fill the form").click()
    page.fill("#json", json.dumps(row))
    page.click("#fill")
    expect(page.locator("input[name=tags]")).to_have_value("a, b")
    page.get_by_role("button", name="Score").click()
    expect(page.locator("#result")).to_have_text(f"{probability(row):.5f} (version 1)")

    candidates = [{"price": price} for price in (-3.0, 40.0, 1.0)]
    page.fill("#candidates", "\n".join(json.dumps(candidate) for candidate in candidates))
    page.get_by_role("button", name="Rank").click()
    best = sorted(candidates, key=lambda candidate: -candidate["price"])
    expect(page.locator("#ranked tr td:nth-child(2)")).to_have_text([f"{probability(row | one):.5f}" for one in best])
    expect(page.locator("#ranked tr td:nth-child(4)")).to_have_text(
        [json.dumps({"price": int(one["price"])}).replace(" ", "") for one in best]
    )

    expect(page.locator("#times path").first).to_have_attribute("d", re.compile(r"^M\d"))
    expect(page.locator("#scores svg[role=img]")).to_have_attribute("aria-label", "scores of clicks: probability")
    assert sum(float(rect.get_attribute("height") or 0) > 0 for rect in page.locator("#scores rect").all()) > 1
    page.get_by_text("by stage").click()
    expect(page.locator("#latency tr").first.locator("td").nth(1)).to_have_text("2")


def test_a_person_gets_items_recommended(page: Page) -> None:
    page.select_option("#model", "shop")
    expect(page.locator("#ranking")).to_be_hidden()
    user = page.locator("#row input").first
    user.fill("3")
    page.get_by_role("button", name="Recommend").click()
    expect(page.locator("#result")).to_have_text("10 items (version 1)")
    scores = [float(text) for text in page.locator("#ranked tr td:nth-child(2)").all_inner_texts()]
    assert len(scores) == 10 and scores == sorted(scores, reverse=True)
    expect(page.locator("#times path").first).to_have_attribute("d", re.compile(r"^M\d"))


def test_a_wrong_value_is_told_and_the_page_goes_on(page: Page) -> None:
    page.fill("input[name=price]", "cheap")
    page.get_by_role("button", name="Score").click()
    expect(page.locator("#problem")).to_have_text("price: 'cheap' is no number")
    page.fill("input[name=price]", "1")
    page.get_by_role("button", name="Score").click()
    expect(page.locator("#result")).to_have_text(f"{probability({'price': 1}):.5f} (version 1)")

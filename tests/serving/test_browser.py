"""The page at /ui in a real browser, where there is one: Chromium without a window prints the page as its script has made it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from serving.settings import ServingSettings
from tests.handmade import make_bundle
from tests.serving.live import service


def browser() -> str:
    """Chromium's program: CTRKIT_CHROMIUM, on the path, or one that Playwright has downloaded."""
    named = [os.environ.get("CTRKIT_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell"]
    found = [path for name in named if name and (path := shutil.which(name))]
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH", Path.home() / ".cache" / "ms-playwright"))
    found += [
        str(path) for pattern in ("chrome", "headless_shell", "chrome-headless-shell") for path in cache.glob(f"chromium*/*/{pattern}")
    ]
    if not found:
        pytest.skip("no Chromium here: install one, or name it in CTRKIT_CHROMIUM")
    return found[0]


def test_the_page_runs_under_its_own_content_security_policy(tmp_path: Path) -> None:
    program = browser()
    make_bundle(tmp_path / "repo")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    with service(tmp_path / "repo", ServingSettings(poll_s=0)) as address:
        page = subprocess.run(
            [program, *flags, "--dump-dom", f"{address}/ui"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    assert "<td>clicks</td><td>1</td>" in page and 'name="price"' in page, "the script has asked and filled the page"
    assert "categorical, string" in page and '<p id="problem" class="bad" role="alert"></p>' in page

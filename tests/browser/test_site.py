"""The site is built with warnings as errors, its links lead somewhere, and its pages ask the network for nothing."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("sphinx", "furo", "myst_nb", "sphinx_copybutton"))),
    reason="needs the site's tools: pip install --group docs",
)
# Behind the page's own scripts: what was loaded, and what a search found.
PROBE = """<script>
const errors = [];
window.addEventListener("error", event => errors.push(String(event.message)));
setInterval(() => {
  document.documentElement.dataset.seen = JSON.stringify({
    errors: errors,
    requests: performance.getEntriesByType("resource").map(entry => entry.name),
    found: document.querySelectorAll("#search-results li").length,
  });
}, 100);
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Its own process, as users build it: no type checker hooks into what is imported."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--jobs", "2",
        "--doctree-dir", str(folder / "doctrees"), "--builder", "html", str(ROOT / "docs"), str(folder / "site"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "site"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *what):
        """Nothing: pytest shows what matters."""


@pytest.fixture(scope="module")
def address(site):
    """The site on this machine's own port: a browser lists what a page asked for, which it does not for files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def pages(site):
    return {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}


def test_links_and_images_lead_somewhere(site):
    found = pages(site)
    anchors = {page: set(re.findall(r'\b(?:id|name)="([^"]*)"', text)) for page, text in found.items()}
    for page, text in found.items():
        for target in re.findall(r'\b(?:href|src)="([^"]*)"', text):
            target = html.unescape(target)
            if re.match(r"(https?|data|mailto):", target) or target in ("", "#"):
                continue
            place, _, anchor = target.partition("#")
            there = (page.parent / unquote(place.partition("?")[0])).resolve() if place else page
            assert there.exists(), (page.name, target)
            if anchor and there in anchors:
                assert unquote(anchor) in anchors[there], (page.name, target)


def test_nothing_is_loaded_from_elsewhere(site):
    for page, text in pages(site).items():
        loaded = re.findall(r'<(?:script|img|iframe|source|object|embed)\b[^>]*\b(?:src|data)="(https?:[^"]*)"', text)
        loaded += re.findall(r'<link\b[^>]*\bhref="(https?:[^"]*)"', text)
        assert not loaded, (page.name, loaded)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?https?:", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_page_of_docs_is_there_and_in_the_contents(site):
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert (site / name).exists()
        assert name == "index.html" or f'href="{name}"' in index, name


def test_public_names_are_documented(site):
    text = "".join(text for page, text in pages(site).items() if page.parent.name == "api")
    for name in ("load_model", "patch", "Contrast", "Result", "LCAForCausalLM"):
        assert f'id="lcalens.{name}"' in text
    assert "the patched run’s metric" in text  # a docstring's own words


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("page", ["index.html", "claims/index.html", "search.html?q=patch"])
def test_a_page_asks_nobody_and_complains_of_nothing(site, address, page, tmp_path):
    name, _, query = page.partition("?")
    probed = (site / name).with_name("probed.html")
    text = (site / name).read_text(encoding="utf-8")
    assert "<head>" in text
    probed.write_text(text.replace("<head>", "<head>" + PROBE, 1), encoding="utf-8")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
        "--proxy-server=127.0.0.1:9", "--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom",
        address + probed.relative_to(site).as_posix() + (f"?{query}" if query else ""),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=180)
    dom, log = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    told = re.search(r'data-seen="([^"]*)"', dom)
    assert told, log[-2000:]
    seen = json.loads(html.unescape(told.group(1)))
    assert seen["errors"] == []
    assert seen["requests"]
    assert all(asked.startswith(address) for asked in seen["requests"]), seen["requests"]
    assert "CONSOLE" not in log, log[-2000:]
    assert not query or seen["found"] > 3

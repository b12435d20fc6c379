"""A page opened in headless Chromium, with what happened in it."""

import html
import json
import re
import shutil
import subprocess

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Runs before the page's own script, and keeps what happens: what was drawn, alerts, requests, refused requests, errors.
PROBE = """<script>
const seen = {texts: [], alerts: 0, refused: [], errors: []};
window.alert = () => seen.alerts++;
window.addEventListener("error", event => seen.errors.push(String(event.message)));
document.addEventListener("securitypolicyviolation", event => seen.refused.push(event.blockedURI));
const draw = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  if (!seen.texts.includes(text)) seen.texts.push(text);
  return draw.call(this, text, ...rest);
};
setInterval(() => {
  seen.requests = performance.getEntriesByType("resource").map(entry => entry.name);
  seen.charts = [...document.querySelectorAll("canvas")].map(canvas => canvas.width * canvas.height);
  seen.scripts = document.scripts.length;
  seen.frames = document.querySelectorAll("iframe, img, link, object, embed, [src], [href]").length;
  document.documentElement.dataset.seen = JSON.stringify(seen);
}, 100);
</script>"""


def opened(page, folder, acts="", width=1400):
    """The page's DOM and what the probe saw; whatever asks the network asks a port where nobody listens.

    `acts` is JavaScript that runs once the page is loaded and drawn; what it puts into `seen.acts` comes back.
    """
    at = page.index("<head>") + len("<head>")
    if acts:
        page = page.replace(
            "</body>", f"<script>setTimeout(() => {{ seen.acts = {{}}; {acts} }}, 3000);</script></body>"
        )
    probed = folder / "probed.html"
    probed.write_text(page[:at] + PROBE + page[at:], encoding="utf-8")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--proxy-server=127.0.0.1:9", "--proxy-bypass-list=<-loopback>", f"--window-size={width},1600",
        "--virtual-time-budget=20000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=180)
    dom = done.stdout.decode("utf-8", "replace")
    found = re.search(r'data-seen="([^"]*)"', dom)
    assert found, done.stderr.decode("utf-8", "replace")[-2000:]
    return dom, json.loads(html.unescape(found.group(1)))

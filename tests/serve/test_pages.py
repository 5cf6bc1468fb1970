"""Every page and its JSON twin on a study: they show what the database has, and escape it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from saekit.locks import lock
from saekit.names.ref import Ref
from saekit.tasks import Ranking
from saekit.workspace.workspace import Workspace
from tests.serve.conftest import Client

ROOT = Path(__file__).parents[2]
SITE = "resid_post.2"
PAGES = [
    "/w/study",
    f"/w/study/dictionary:{SITE}",
    "/w/study/features",
    "/w/study/scatter",
    "/w/study/map",
    f"/w/study/feature:{SITE}/7",
    f"/w/study/compare?f={SITE}/7&f={SITE}/9",
    "/w/study/search",
    "/w/study/rankings",
    "/w/study/search?q=happy",
]
SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}"


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the charts in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def charts(self) -> list[dict[str, Any]]:
        return [json.loads(attributes["data-chart"]) for _, attributes in self.elements if "data-chart" in attributes]


def twin(path: str) -> str:
    """The address of a page as data."""
    before, mark, query = path.partition("?")
    return f"{before}.json{mark}{query}"


def data(client: TestClient, path: str) -> Any:
    answer = client.get(twin(path))
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", PAGES)
def test_a_page_and_its_twin(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/html")
    page = Page(answer.text)
    links = [a["href"] for tag, a in page.elements if tag == "link" and a.get("rel") == "alternate"]
    assert links == [twin(path)]
    assert data(client, path) == json.loads(client.get(links[0]).text)
    # nothing is from another host, and no script or handler is in the page itself
    for tag, attributes in page.elements:
        for name in ("src", "href", "action"):
            assert attributes.get(name, "/").startswith(("/", "?", "#")) and not attributes.get(name, "").startswith("//")
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        assert tag != "script" or attributes.get("src", "").startswith("/static/")
    assert len([1 for tag, _ in page.elements if tag == "h1"]) == 1


def test_every_link_of_every_page_leads_somewhere(client: TestClient) -> None:
    seen: set[str] = set()
    for path in PAGES:
        for tag, attributes in Page(client.get(path).text).elements:
            link = attributes.get("href", "")
            if tag == "a" and link.startswith("/"):
                seen.add(link.partition("#")[0])
    feature = re.compile(rf"/w/study/feature:{SITE}/\d+$")
    some = [link for link in sorted(seen) if not feature.match(link)] + sorted(filter(feature.match, seen))[:5]
    assert len(some) > 15
    assert not [link for link in some if client.get(link).status_code != 200]


def test_the_feature_page_has_what_the_database_has(client: TestClient, served_workspace: Path) -> None:
    with Workspace.open(served_workspace).database() as database:
        record = next(each for n in range(50) if len((each := database.feature((SITE, n))).examples) > 3)
    view = data(client, f"/w/study/feature:{SITE}/{record.feature}?show=all&window=0")
    assert (view["density"], view["max"], view["mean"]) == (record.density, record.max, record.mean)
    assert [each["text"] for each in view["labels"]] == [label.text for label in record.labels]
    shown = [each for group in view["examples"] for each in group["examples"]]
    assert len(shown) == len(record.examples)
    by_place = {(each.document, each.position): each for each in record.examples}
    for each in shown:
        example = by_place[each["document"], each["position"]]
        assert "".join(piece["text"] for piece in each["pieces"]) == "".join(example.tokens)
        assert each["value"] == max(example.values)
        fired = [piece for piece in each["pieces"] if piece["shade"]]
        assert [piece["value"] for piece in fired] == [value for value in example.values if value > 0]
        assert all(1 <= piece["shade"] <= 9 for piece in fired)
    assert view["charts"]["activations"]["data"][0]["y"] == record.histogram.counts
    promoted = [(each["token"], each["value"]) for each in view["causes"]["promoted"]]
    assert promoted == [(each.token, each.value) for each in record.promoted[:16]]
    page = Page(client.get(f"/w/study/feature:{SITE}/{record.feature}").text)
    assert record.label in page.text and f"feature:{SITE}/{record.feature}" in page.text
    assert page.charts[0] == view["charts"]["activations"]


def test_a_window_cuts_examples_around_their_strongest_token(client: TestClient) -> None:
    whole, cut = (data(client, f"/w/study/feature:{SITE}/7?window={n}") for n in (0, 6))
    for long, short in zip(whole["examples"][0]["examples"], cut["examples"][0]["examples"]):
        texts = ["".join(piece["text"] for piece in each["pieces"]) for each in (long, short)]
        assert texts[1] in texts[0]
        assert long["value"] == short["value"]  # the strongest token is inside
        assert (len(texts[1]) < len(texts[0])) == (short["cut_before"] or short["cut_after"])


def test_features_side_by_side_with_their_cosines(client: TestClient, served_workspace: Path) -> None:
    view = data(client, f"/w/study/compare?f={SITE}/7&f={SITE}/9&f={SITE}/11")
    with Workspace.open(served_workspace).database() as database:
        vectors = database.vectors(SITE)[[7, 9, 11]].astype("float64")
    lengths = (vectors**2).sum(1) ** 0.5
    assert view["cosines"] == [
        [pytest.approx(a @ b / (m * n), abs=1e-5) for b, n in zip(vectors, lengths)] for a, m in zip(vectors, lengths)
    ]


def test_the_table_filters_and_sorts(client: TestClient, served_workspace: Path) -> None:
    with Workspace.open(served_workspace).database() as database:
        records = database.records(database.dictionary(SITE), range(256))
    view = data(client, "/w/study/features?density_min=0.1%&density_max=0.05&sort=max&down=1&kind=word")
    wanted = [each for each in records if 0.001 <= each.density <= 0.05 and each.count and each.kind == "word"]
    wanted.sort(key=lambda each: (-each.max, each.feature))
    assert view["total"] == len(wanted) > 5
    assert [row["feature"] for row in view["rows"]] == [each.feature for each in wanted[:50]]
    assert [row["label"] for row in view["rows"]] == [each.label for each in wanted[:50]]
    scored = data(client, "/w/study/features?output_score_min=0.05&sort=output_score&down=0")
    scores = [each.output_score for each in records if each.count and (each.output_score or 0) >= 0.05]
    assert [row["output_score"] for row in scored["rows"]] == pytest.approx(sorted(scores)[:50])
    by_source = data(client, "/w/study/features?source=words&sort=number&down=0")
    assert [row["feature"] for row in by_source["rows"]] == [
        each.feature for each in records if each.count and each.labels and each.labels[0].method == "words"
    ][:50]
    conditioned = data(client, "/w/study/features?where=label+like+%27%25a%25%27")
    assert conditioned["total"] == sum("a" in each.label.lower() for each in records if each.count)


def test_the_pages_of_the_table_have_every_feature_once(client: TestClient) -> None:
    path, found = "/w/study/features?dead=1", []
    while path:
        view = data(client, path)
        found += [row["feature"] for row in view["rows"]]
        path = view["next"]
    assert sorted(found) == list(range(256))


def test_the_scatter_and_the_map_open_features(client: TestClient) -> None:
    rows = {row["feature"]: row for n in range(1, 7) for row in data(client, f"/w/study/features?page={n}")["rows"]}
    scatter = data(client, "/w/study/scatter?x=max&y=mean")
    points = [
        (x, y, link) for trace in scatter["chart"]["data"] for x, y, (link, _) in zip(trace["x"], trace["y"], trace["customdata"])
    ]
    assert len(points) == scatter["total"] == scatter["drawn"]
    for x, y, link in points:
        row = rows[int(link.rsplit("/", 1)[1])]
        assert (x, y) == (pytest.approx(row["max"], rel=1e-4), pytest.approx(row["mean"], rel=1e-4))
    assert client.get(points[0][2]).status_code == 200
    assert data(client, "/w/study/map")["drawn"] == scatter["total"]


@pytest.mark.parametrize(
    ("query", "status", "said"),
    [
        ("density_min=abc", 400, "density_min"),
        ("density_min=nan", 400, "density_min"),
        ("sort=secret", 400, "sort"),
        ("where=density+%3C", 400, "condition"),
        ("nothing=1", 400, "nothing"),
        ("dictionary=resid_post.9", 404, "resid_post.9"),
    ],
)
def test_an_impossible_filter_says_so(client: TestClient, query: str, status: int, said: str) -> None:
    for path in ("features", "features.json"):
        answer = client.get(f"/w/study/{path}?{query}")
        assert answer.status_code == status
        assert said in answer.text
    assert client.get(f"/w/study/features.json?{query}").json()["error"]


def test_a_search_says_why(client: TestClient, served_workspace: Path) -> None:
    with Workspace.open(served_workspace).database() as database:
        hits = database.search("happy", k=20)
        promoting = database.search("happy", k=20, by=["promotes"])
        like = database.like((SITE, 7), k=20)
    for query, wanted in (("q=happy", hits), ("q=happy&mode=promotes", promoting), ("q=7&mode=like", like)):
        view = data(client, f"/w/study/search?{query}")
        assert [(each["feature"], each["score"], each["why"]) for each in view["hits"]] == [
            (hit.feature, hit.score, hit.why) for hit in wanted
        ]
        page = Page(client.get(f"/w/study/search?{query}").text)
        assert all(hit.why in page.text for hit in wanted)
    assert all(1 <= len(each["spark"]) <= 16 for each in view["hits"])


@pytest.mark.parametrize(
    "path",
    [
        "/w/nothing",
        "/w/study/feature:resid_post.2/9999",
        "/w/study/feature:resid_post.7/1",
        "/w/study/nothing",
        "/w/study/compare?f=99999",
    ],
)
def test_what_does_not_exist_is_said(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "Traceback" not in answer.text and "<h1>Not found</h1>" in answer.text
    assert client.get(twin(path)).json()["message"]


def test_texts_of_people_corpora_and_requests_are_escaped(own_workspace: Path, open_client: Client) -> None:
    ws = Workspace.open(own_workspace)
    with ws.database() as database:
        database.set_label((SITE, 7), SCRIPT)
        database.add_note((SITE, 7), SCRIPT + "\u202e\x1b[2J")
    client = open_client(own_workspace)
    paths = [*PAGES, "/w/study/features?where=label+like+%27%25script%25%27", "/w/study/search?q=script&mode=label"]
    paths += [f"/w/study/search?q={SCRIPT}&where={SCRIPT}", f"/w/study/features?where={SCRIPT}", f"/w/{SCRIPT}"]
    shown = 0
    for path in paths:
        answer = client.get(path)
        page = Page(answer.text)
        shown += SCRIPT in page.text
        assert not [1 for tag, attributes in page.elements if tag == "img" and attributes.get("src") == "x"]
        assert all(attributes.get("src") for tag, attributes in page.elements if tag == "script")
        assert "\u202e" not in answer.text and "\x1b" not in answer.text
    assert shown >= 4  # the feature, side by side, the table, the search
    names = [
        name for chart in Page(client.get("/w/study/scatter").text).charts for t in chart["data"] for _, name in t["customdata"]
    ]
    assert any(SCRIPT[:20] in name for name in names)


def test_two_workspaces(served_workspace: Path, own_workspace: Path, open_client: Client) -> None:
    client = open_client(served_workspace, own_workspace)
    start = client.get("/")
    assert "/w/study" in start.text and "/w/study-2" in start.text
    assert [each["name"] for each in client.get("/workspaces.json").json()["workspaces"]] == ["study", "study-2"]
    assert client.get("/w/study-2/features").status_code == 200


def test_one_workspace_is_the_first_page(client: TestClient) -> None:
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/w/study")


def test_the_files_of_pages_are_kept_by_browsers(client: TestClient) -> None:
    for name in ("app.css", "app.js", "charts.js", "jobs.js", "plotly.min.js", "icon.svg"):
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
        assert client.get(f"/static/{name}", headers={"if-none-match": answer.headers["etag"]}).status_code == 304


def test_reading_loads_no_torch(served_workspace: Path) -> None:
    """The model's libraries take seconds to load, so that nothing but a request for the model may load them."""
    code = f"""
import sys
from starlette.testclient import TestClient
from saekit.serve.app import create_app
with TestClient(create_app([{str(served_workspace)!r}]), base_url="http://127.0.0.1") as client:
    for path in {PAGES!r}:
        assert client.get(path).status_code == 200, path
        print(path, [name for name in ("torch", "transformers", "plotly") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {line.split(" ", 1)[1] for line in done.stdout.splitlines()} == {"[]"}, done.stdout


def test_rankings_are_tables_and_heat_maps(own_workspace: Path, open_client: Client) -> None:
    scores = {"head:0.0": 0.5, "head:0.1": -1.25, "head:1.0": 2.0, "head:1.1": float("nan"), f"feature:{SITE}/7": 0.25}
    obtained = {"method": "made up", "model": SCRIPT, "n": 3}
    ws = Workspace.open(own_workspace)
    ws.keep_ranking("first", Ranking(list(map(Ref.parse, scores)), list(scores.values()), [], obtained))
    (own_workspace / "rankings" / "damaged.json").write_text("{")
    client = open_client(own_workspace)
    listed = {each["name"]: each for each in data(client, "/w/study/rankings")["rankings"]}
    assert (listed["first"]["objects"], listed["damaged"]["problem"] is None) == (5, False)
    view = data(client, "/w/study/ranking:first")
    assert {row["ref"]: row["score"] for row in view["rows"]} == {ref: None if s != s else s for ref, s in scores.items()}
    (heat,) = [each["chart"]["data"][0] for each in view["maps"]]
    assert (heat["z"], heat["y"], heat["x"]) == ([[0.5, -1.25], [2.0, None]], ["0", "1"], ["0", "1"])
    for path in ("/w/study/rankings", "/w/study/ranking:first"):
        page = Page(client.get(path).text)
        assert SCRIPT in page.text and "img" not in [tag for tag, a in page.elements if a.get("src") == "x"]
    assert f"/w/study/feature:{SITE}/7" in [a.get("href") for _, a in page.elements]
    assert client.get("/w/study/ranking:damaged").status_code == 400
    for name in ("nothing", "..%2f..%2fsaekit", "%2e%2e", "a%20b"):
        assert client.get(f"/w/study/ranking:{name}").status_code in (400, 404, 409)


def test_a_running_command_is_shown_with_its_progress(own_workspace: Path, open_client: Client) -> None:
    client = open_client(own_workspace)
    assert client.get("/w/study/jobs.json").json() == {"job": None, "progress": []}
    folder = own_workspace / "sae" / SITE
    (folder / "cfg.json").rename(folder / "cfg.away")  # as while it is trained
    with lock(own_workspace / ".lock", RuntimeError("busy")):
        found = client.get("/w/study/jobs.json").json()
        page = Page(client.get("/w/study").text)
    assert found["job"]["state"] == "running" and found["job"]["command"] in page.text
    (row,) = found["progress"]
    assert row == {"what": f"training {SITE}", "done": row["of"], "of": 60_000} or row["done"] >= 59_000
    bars = [attributes for tag, attributes in page.elements if tag == "progress"]
    assert [(int(a["value"]), int(a["max"])) for a in bars] == [(row["done"], row["of"])]


def test_a_workspace_without_features_says_what_to_do(own_workspace: Path, open_client: Client) -> None:
    (own_workspace / "features.sqlite").unlink()
    client = open_client(own_workspace)
    assert client.get("/w/study").status_code == 200
    for path in ("/w/study/features", f"/w/study/feature:{SITE}/7", "/w/study/search?q=happy"):
        answer = client.get(path)
        assert answer.status_code == 409 and "saekit index" in answer.text

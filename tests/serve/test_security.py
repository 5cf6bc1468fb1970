"""Requests of other sites, without the token, too large or for other files are refused; no page runs a script of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from saekit.errors import ConfigError
from saekit.serve.settings import ServeSettings
from tests.serve.conftest import HOME, Client

TOKEN = "a-token-of-many-characters"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8391", "127.0.0.1.evil.example", "", "[::2]", "127.0.0.1@evil.example:80"]
)
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    answer = client.get("/w/study", headers={"host": host})
    assert answer.status_code == 421
    assert "study" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8391", "localhost:8391", "[::1]:8391", "LOCALHOST", "localhost:9000"])
def test_the_names_of_this_machine_are_served(client: TestClient, host: str) -> None:
    assert client.get("/w/study", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8391", "", "http://["]
)
def test_a_foreign_origin_is_refused(client: TestClient, origin: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = client.request(method, "/w/study", headers={"origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


def test_the_own_origin_is_served(client: TestClient) -> None:
    assert client.get("/w/study.json", headers={"origin": HOME}).status_code == 200


def test_another_site_can_link_here_and_not_embed_what_is_here(client: TestClient) -> None:
    foreign = {"sec-fetch-site": "cross-site"}
    assert client.get("/w/study", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 200
    assert client.get("/w/study.json", headers=foreign | {"sec-fetch-mode": "no-cors"}).status_code == 403
    assert client.post("/w/study", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/static/../settings.py",
        "/static/..%2f..%2f..%2fpyproject.toml",
        "/static/%2e%2e/settings.py",
        "/static//etc/passwd",
        "/static/..\\settings.py",
        "/w/../../etc/passwd",
        "/w/..%2f..%2fetc%2fpasswd",
        "/w/%2e%2e.json",
        "/w/study%00.json",
    ],
)
def test_no_path_reaches_the_file_system(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "root:" not in answer.text and "[project]" not in answer.text and "dataclass" not in answer.text


def test_no_page_may_run_scripts_of_its_own(client: TestClient) -> None:
    for path in ("/w/study", "/w/study.json", "/nothing", "/static/app.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert "script-src 'self';" in policy and "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe-eval" not in policy


def test_a_large_body_is_not_read(client: TestClient) -> None:
    assert client.post("/w/study", content=b"x" * 50_000_000).status_code == 413
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(50):
            taken += 1
            yield b"x" * 1_000_000

    assert client.post("/w/study", content=chunks()).status_code == 413
    assert client.get("/w/study").status_code == 200


def test_a_length_that_is_no_number_is_refused(client: TestClient) -> None:
    assert client.post("/w/study", content=b"x", headers={"content-length": "-1"}).status_code == 413


def test_other_addresses_need_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ConfigError, match="token"):
            ServeSettings(host=host)
        assert ServeSettings(host=host, token=TOKEN).host == host
    with pytest.raises(ConfigError, match="16"):
        ServeSettings(token="short")
    assert [ServeSettings(host=host).host for host in ("127.0.0.1", "::1", "localhost")]


def test_without_the_token_nothing_is_served(served_workspace: Path, open_client: Client) -> None:
    client = open_client(served_workspace, host="0.0.0.0", token=TOKEN, base_url="http://machine.lan:8391")
    for path in ("/", "/w/study", "/w/study.json", "/openapi.json", "/static/app.js", "/v1/models"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "study" not in answer.text
    for wrong in ("", "wrong", TOKEN + "x", "ümlaut"):
        assert client.get("/w/study", params={"token": wrong}).status_code == 401
        assert client.get("/w/study", headers={"authorization": f"Bearer {wrong}".encode()}).status_code == 401
    assert client.get("/w/study", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_token_in_the_address_becomes_a_cookie(served_workspace: Path, open_client: Client) -> None:
    client = open_client(served_workspace, host="0.0.0.0", token=TOKEN, base_url="http://machine.lan:8391")
    answer = client.get("/w/study", params={"a": "1", "token": TOKEN}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/w/study?a=1")
    assert "HttpOnly" in answer.headers["set-cookie"] and "samesite=strict" in answer.headers["set-cookie"].lower()
    assert TOKEN not in answer.headers["set-cookie"]
    assert client.get("/w/study").status_code == 200  # by the cookie


def test_the_way_back_after_the_token_stays_here(served_workspace: Path, open_client: Client) -> None:
    client = open_client(served_workspace, token=TOKEN)
    answer = client.get(f"{HOME}//evil.example/w", params={"token": TOKEN}, follow_redirects=False)
    assert answer.headers["location"].startswith("/evil.example")

"""`efface serve` answers this machine alone, under its own name, and never with a traceback."""

import http.client
import json
import threading
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest
from site_kit import D_SAE, EVIL, TEXTS, make_site

from efface.base.errors import InputError
from efface.deactivate.inspect.server import LARGEST, Pages, PageServer, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        site, reader = make_site(tmp_path_factory.mktemp("site"), live=True)
        made = PageServer(Pages(site, lambda: reader))
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        yield made
        made.shutdown()
        made.server_close()


def asked(server: PageServer, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, str]:
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    kind = {"Content-Type": "application/json"} if body is not None else {}
    connection.request("POST" if body is not None else "GET", path, body, {**kind, **headers})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), text


def test_rows_features_and_prompts(server: PageServer) -> None:
    query = urlencode({"sae": 0, "sort": "auroc", "desc": 1, "where": "auroc:0.6:0.9", "limit": 5, "offset": 2})
    status, headers, text = asked(server, f"/api/rows?{query}")
    got = json.loads(text)
    assert status == 200
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert got["total"] == 91
    assert [r[0] for r in got["rows"]] == [118, 117, 116, 115, 114]
    assert json.loads(asked(server, "/api/rows?sae=0&text=zzz")[2])["total"] == 0
    status, _, text = asked(server, "/api/feature?sae=0&id=7")
    assert status == 200
    assert json.loads(text)["row"][1] == EVIL
    assert "<" not in text
    got = json.loads(asked(server, "/api/prompt", json.dumps({"text": TEXTS[0]}).encode())[2])
    assert got["gates"][0]["fires"] is True
    assert len(json.loads(asked(server, "/api/map?sae=0")[2])["ids"]) == D_SAE


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/rows?sae=9", "unknown SAE"), ("/api/rows?sort=nope", "unknown column"), ("/api/rows?limit=x", "limit must be a whole number"),
        ("/api/rows?where=auroc:a:", "auroc must be a number"), ("/api/rows?where=label:1:2", "unknown column"),
        ("/api/feature?sae=0&id=150", "0 to 149"), ("/api/contexts?sae=0&text=", "empty"), ("/api/pictures?sae=0&id=1", "draws none"),
        ("/etc/passwd", "there is no"), ("/api/../page.py", "there is no"),
    ],
)  # fmt: skip
def test_bad_questions_are_answered_in_words(server: PageServer, path: str, words: str) -> None:
    status, _, text = asked(server, path)
    assert status in (400, 404)
    assert words in json.loads(text)["error"]


@pytest.mark.parametrize("body", [b"{}", b'{"text": 3}', b"nonsense", b"[]", json.dumps({"text": " "}).encode(), b"x" * (LARGEST + 1)])
def test_bad_prompts_are_refused(server: PageServer, body: bytes) -> None:
    status, _, text = asked(server, "/api/prompt", body)
    assert status == 400
    assert json.loads(text)["error"]


def test_only_its_own_page_is_answered(server: PageServer) -> None:
    port, good = server.server_address[1], json.dumps({"text": TEXTS[0]}).encode()
    assert server.server_address[0] == "127.0.0.1"
    own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert asked(server, "/api/prompt", good, **own)[0] == 200
    assert asked(server, "/", Host=f"127.0.0.1:{port}")[0] == 200
    for headers in ({"Host": "evil.example"}, {"Host": f"evil.example:{port}"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert asked(server, "/", **headers)[0] == 403
        assert asked(server, "/api/prompt", good, **headers)[0] == 403
    assert asked(server, "/api/prompt", good, **{"Content-Type": "text/plain"})[0] == 403


def test_a_taken_port_is_said(server: PageServer) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        serve(server.pages, server.server_address[1])


def test_the_address_is_told_when_the_first_page_is_made(server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, order = Pages(server.pages.site), []
    made = pages.page
    monkeypatch.setattr(pages, "page", lambda: order.append("page") or made())

    def ready(address: str) -> None:
        order.append("told")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(pages, 0, ready)
    assert order == ["page", "told"]

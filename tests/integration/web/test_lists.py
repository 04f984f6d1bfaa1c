"""Listing jobs."""

from __future__ import annotations

from tests.integration.web.client import Client, ask


def test_the_list_pages_newest_first(web: Client) -> None:
    ids = [ask(web)["id"] for _ in range(3)]
    first = web.get("/v1/responses?limit=2").json
    assert [job["id"] for job in first["data"]] == [ids[2], ids[1]]
    assert (first["has_more"], first["last_id"]) == (True, ids[1])
    rest = web.get(f"/v1/responses?limit=2&after={first['last_id']}").json
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == ([ids[0]], False)
    assert web.get("/v1/responses?order=asc&limit=1").json["data"][0]["id"] == ids[0]
    for query in ("limit=0", "limit=x", "limit=101", "order=up"):
        assert web.get(f"/v1/responses?{query}").status_code == 400
    assert web.get("/v1/responses?after=resp_none").status_code == 404

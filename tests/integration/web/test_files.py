"""Files: uploading, reading, listing and deleting them, and what is refused."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import StoredFileNotFoundError
from jobs.models import File, FileChunk, FilePurpose, FileState
from jobs.statements import files as statements
from jobs.statements.files import UPLOAD_LOST_AFTER
from jobs.use_cases import files
from tests.integration.web.client import Client, services_of

TEXT = "".join(f'{{"line": {number}}}\n' for number in range(10)).encode()
_names = (f"{number}.jsonl" for number in itertools.count())


def upload(
    web: Client,
    content: bytes = TEXT,
    name: str = "in.jsonl",
    fields: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    form = {"purpose": "batch", **(fields or {}), "file": (io.BytesIO(content), name)}
    return web.post("/v1/files", data=form, content_type="multipart/form-data", headers=headers)


def sweep(database: Database) -> None:
    while files.sweep_files(database):
        pass


def test_a_reader_occupies_a_slot_until_it_has_read_or_breaks_off(web: Client) -> None:
    """Each has a thread. Without a limit, slow readers would take all of them."""
    path = f"/v1/files/{upload(web, TEXT).json['id']}/content"
    waiter = services_of(web).waiter
    free = waiter._slots._value
    reply = web.get(path, buffered=False)
    assert waiter._slots._value == free - 1
    reply.close()
    assert waiter._slots._value == free
    with web.head(path) as head:
        assert head.headers["Accept-Ranges"] == "none"
    assert waiter._slots._value == free


def stored(database: Database) -> tuple[int, int]:
    """Return the numbers of files and chunks."""
    with database.read() as connection:
        files_, chunks = (
            connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
            for table in (File, FileChunk)
        )
        return files_, chunks


def test_a_file_is_stored_in_chunks_and_read_back(web: Client, database: Database) -> None:
    content = b"".join(b"%d\n" % number for number in range(60_000))
    reply = upload(web, content, "é \u2028.jsonl")
    file = reply.json
    assert reply.status_code == 200
    assert file["id"].startswith("file-")
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(content),
        "created_at": file["created_at"],
        "expires_at": file["created_at"] + files.DEFAULT_EXPIRY,
        "filename": "é \u2028.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert stored(database) == (1, -(-len(content) // files.CHUNK))
    assert web.get(f"/v1/files/{file['id']}").json == file
    downloaded = web.get(f"/v1/files/{file['id']}/content")
    assert downloaded.data == content
    assert downloaded.headers["Content-Length"] == str(len(content))
    for position in (0, 1, files.CHUNK - 1, files.CHUNK, len(content) - 1, len(content)):
        expected = content[position : position + 10]
        assert files.read_file(database, file["id"], position)[:10] == expected


def test_an_idempotency_key_stores_a_file_once(web: Client, database: Database) -> None:
    key = {"Idempotency-Key": "k"}
    first = upload(web, headers=key)
    assert upload(web, headers=key).json == first.json
    policy = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    for changed in ({"content": TEXT + b"\n"}, {"name": "b.jsonl"}, {"fields": policy}):
        reply = upload(web, headers=key, **changed)
        assert (reply.status_code, reply.json["error"]["code"]) == (422, "idempotency_key_reused")
    assert upload(web, headers={"Idempotency-Key": "l"}).json["id"] != first.json["id"]
    assert len(web.get("/v1/files").json["data"]) == 2
    sweep(database)
    assert stored(database) == (2, 2)

    # A key lasts as long as its file.
    web.delete(f"/v1/files/{first.json['id']}")
    second = upload(web, headers=key).json["id"]
    assert second != first.json["id"]
    with database.write() as connection:
        connection.execute(sa.update(File).values(expires_at=utcnow(-1)))
    assert upload(web, headers=key).json["id"] not in (second, first.json["id"])


def test_files_are_listed_in_pages(web: Client) -> None:
    ids = [upload(web, name=next(_names)).json["id"] for _ in range(3)]
    assert [file["id"] for file in web.get("/v1/files").json["data"]] == ids[::-1]
    page = web.get("/v1/files?limit=2&order=asc&purpose=batch").json
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)
    page = web.get(f"/v1/files?order=asc&after={ids[1]}").json
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2:], False)
    assert web.get("/v1/files?purpose=batch_output").json["data"] == []
    for wrong in ("limit=10001", "order=up", "purpose=vision"):
        assert web.get(f"/v1/files?{wrong}").status_code == 400
    assert web.get("/v1/files?after=file-0").status_code == 400


def test_a_deleted_file_is_gone_and_its_content_is_swept(web: Client, database: Database) -> None:
    file_id = upload(web).json["id"]
    reply = web.delete(f"/v1/files/{file_id}")
    assert reply.json == {"id": file_id, "object": "file", "deleted": True}
    for path in (f"/v1/files/{file_id}", f"/v1/files/{file_id}/content"):
        assert web.get(path).status_code == 404
    assert web.delete(f"/v1/files/{file_id}").status_code == 404
    assert web.get("/v1/files").json["data"] == []
    sweep(database)
    assert stored(database) == (0, 0)


def test_a_file_expires(web: Client, database: Database) -> None:
    policy = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(web, fields=policy).json
    assert file["expires_at"] == file["created_at"] + 3600
    sweep(database)
    assert web.get(f"/v1/files/{file['id']}").status_code == 200
    with database.write() as connection:
        connection.execute(sa.update(File).values(expires_at=utcnow(-1)))
    assert web.get(f"/v1/files/{file['id']}").status_code == 404
    sweep(database)
    assert stored(database) == (0, 0)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"purpose": "fine-tune"}, "unsupported_parameter", "purpose"),
        ({"purpose": ""}, "unsupported_parameter", "purpose"),
        ({"surprise": "1"}, "unknown_parameter", "surprise"),
        ({"expires_after[seconds]": "3600"}, "invalid_value", "expires_after"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            "invalid_value",
            "expires_after",
        ),
    ],
)
def test_wrong_fields_are_refused_and_nothing_is_visible(
    web: Client, database: Database, fields: dict[str, str], code: str, param: str
) -> None:
    reply = upload(web, fields=fields)
    assert reply.status_code == 400
    assert (reply.json["error"]["code"], reply.json["error"]["param"]) == (code, param)
    assert web.get("/v1/files").json["data"] == []
    sweep(database)
    assert stored(database) == (0, 0)


def test_forms_that_are_none_are_refused(web: Client) -> None:
    assert web.post("/v1/files", json={}).status_code == 415
    form = "multipart/form-data; boundary=x"
    for body in (b"--x", b"--x\r\n\r\nno name\r\n--x--\r\n", b"\xff" * 100):
        reply = web.post("/v1/files", data=body, content_type=form)
        assert (reply.status_code, reply.json["error"]["code"]) == (400, "invalid_form")
    reply = web.post("/v1/files", data={"purpose": "batch"}, content_type="multipart/form-data")
    assert reply.json["error"]["param"] == "file"
    purpose = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n'
    long = purpose + b"b" * 5000 + b"\r\n--x--\r\n"
    many = (
        purpose + b"batch\r\n" + b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n" * 30
    )
    for body, said in ((long, "A field is larger than 4 KiB."), (many, "more than 20 parts")):
        reply = web.post("/v1/files", data=body, content_type=form)
        assert (reply.status_code, reply.json["error"]["code"]) == (400, "invalid_form")
        assert said in reply.json["error"]["message"]


def test_a_file_without_purpose_is_refused(web: Client, database: Database) -> None:
    form = {"file": (io.BytesIO(TEXT), "in.jsonl")}
    reply = web.post("/v1/files", data=form, content_type="multipart/form-data")
    assert reply.json["error"]["param"] == "purpose"
    sweep(database)
    assert stored(database) == (0, 0)


def test_a_file_has_a_maximum_of_bytes(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_FILE", len(TEXT))
    assert upload(web).status_code == 200
    reply = upload(web, TEXT + b"x")
    assert (reply.status_code, reply.json["error"]["code"]) == (413, "request_too_large")
    assert "MiB" in reply.json["error"]["message"]
    sweep(database)
    assert stored(database)[0] == 1


def test_an_upload_that_was_lost_is_never_visible_and_swept(
    web: Client, database: Database
) -> None:
    file_id = files.begin_upload(database, "anonymous", "lost.jsonl")
    files.append(database, file_id, TEXT)
    assert web.get("/v1/files").json["data"] == []
    assert web.get(f"/v1/files/{file_id}/content").status_code == 404
    sweep(database)
    assert stored(database) == (1, 1), "it may still be going on"
    with database.write() as connection:
        connection.execute(sa.update(File).values(created_at=utcnow(-UPLOAD_LOST_AFTER - 1)))
    sweep(database)
    assert stored(database) == (0, 0)
    with pytest.raises(StoredFileNotFoundError):
        files.append(database, file_id, TEXT)


def test_a_key_can_be_used_again_when_its_file_is_gone(web: Client, database: Database) -> None:
    """Deleted or expired, also while a batch still reads its content."""
    headers = {"Idempotency-Key": "k"}
    first = upload(web, headers=headers).json["id"]
    assert upload(web, headers=headers).json["id"] == first
    web.delete(f"/v1/files/{first}")
    second = upload(web, headers=headers).json["id"]
    with database.write() as connection:
        connection.execute(sa.update(File).values(expires_at=utcnow(-1)))
        statements.hide_old(connection, None)
    third = upload(web, headers=headers).json["id"]
    assert len({first, second, third}) == 3
    assert web.get(f"/v1/files/{third}/content").data == TEXT


def test_deleted_content_goes_a_little_at_a_time(
    web: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "DELETED_CHUNKS", 2)
    monkeypatch.setattr(files, "CHUNK", 10)
    file_id = upload(web, b"x" * 50).json["id"]
    assert stored(database) == (1, 5)
    web.delete(f"/v1/files/{file_id}")
    remaining = []
    while files.sweep_files(database):
        remaining.append(stored(database))
    assert remaining == [(1, 3), (1, 1), (0, 0)]


def test_files_of_batches_are_not_visible_while_they_are_written(
    web: Client, database: Database
) -> None:
    with database.write() as connection:
        connection.execute(
            sa.insert(File).values(
                id="file-1",
                owner="anonymous",
                name="out",
                purpose=FilePurpose.BATCH_OUTPUT,
                state=FileState.WRITING,
            )
        )
    assert web.get("/v1/files/file-1").status_code == 404
    assert web.delete("/v1/files/file-1").status_code == 404

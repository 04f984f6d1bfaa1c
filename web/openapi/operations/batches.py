"""Files and batches."""

from __future__ import annotations

from jobs.models import FilePurpose
from jobs.protocol import schemas
from jobs.protocol.batches import CreateBatch
from jobs.protocol.files import MAX_EXPIRY, MIN_EXPIRY
from web.openapi.operations.description import Operation, Parameter, Reply
from web.openapi.operations.parameters import PAGE, page
from web.v1 import files

_UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"enum": [FilePurpose.BATCH]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_EXPIRY,
            "maximum": MAX_EXPIRY,
        },
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}

OPERATIONS = {
    "v1.upload_file": Operation(
        "Files and batches",
        {200: Reply("The file is stored.", schemas.FileObject)},
        form=_UPLOAD,
    ),
    "v1.list_files": Operation(
        "Files and batches",
        {200: Reply("A page of files.", schemas.FileList)},
        parameters=(
            *page(files.MAX_PAGE_SIZE, files.MAX_PAGE_SIZE),
            Parameter("purpose", {"enum": [*FilePurpose]}),
        ),
    ),
    "v1.retrieve_file": Operation(
        "Files and batches", {200: Reply("The file.", schemas.FileObject)}, errors=(404,)
    ),
    "v1.download_file": Operation(
        "Files and batches",
        {200: Reply("What is in it.", media="application/octet-stream")},
        errors=(404,),
    ),
    "v1.delete_file": Operation(
        "Files and batches", {200: Reply("It is deleted.", schemas.DeletedFile)}, errors=(404,)
    ),
    "v1.create_batch": Operation(
        "Files and batches",
        {200: Reply("The batch was accepted.", schemas.Batch)},
        body=CreateBatch,
    ),
    "v1.list_batches": Operation(
        "Files and batches",
        {200: Reply("A page of batches.", schemas.BatchList)},
        parameters=PAGE,
    ),
    "v1.retrieve_batch": Operation(
        "Files and batches", {200: Reply("The batch.", schemas.Batch)}, errors=(404,)
    ),
    "v1.cancel_batch": Operation(
        "Files and batches", {200: Reply("The batch.", schemas.Batch)}, errors=(404,)
    ),
}

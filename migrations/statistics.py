"""What SQLite's query planner is told about the sizes of tables and indexes.

SQLite chooses plans by statistics that ``ANALYZE`` collects. Without them it guesses, and guesses wrong where it
matters: that most jobs of a long history are queued, or that each of them holds a lease. With those of today
it may choose what is wrong tomorrow: an index that is empty now has no statistics at all. So the statistics
are these, of a service that has run for long and has a long queue, and plans stay the same however
the database grows. SQLite's documentation suggests it: https://www.sqlite.org/optoverview.html, "Manual
Control Of Query Plans Using SQLITE_STAT Tables". PostgreSQL collects statistics by itself.
"""

from __future__ import annotations

import sqlalchemy as sa

#: Of each index: the number of its rows, and then, for its first column, its first two columns and so on,
#: how many rows have the same values there.
STATISTICS = {
    "jobs": {
        None: "1000000",
        # The owner and the idempotency key.
        "sqlite_autoindex_jobs_2": "1000000 10000 1",
        # Many owners have few jobs each, and one may have most.
        "ix_jobs_owner_created_at_id": "1000000 10000 1 1",
        "ix_jobs_owner_status_created_at_id": "1000000 10000 2000 1 1",
        "ix_jobs_created_at_id": "1000000 1 1",
        "ix_jobs_status_created_at_id": "1000000 200000 1 1",
        "ix_jobs_finished_at": "1000000 1",
        # Partial indexes of what is going on now.
        "ix_jobs_queued": "10000 1000 1",
        "ix_jobs_queued_by_key": "5000 500",
        "ix_jobs_queued_lines": "5000 1000",
        "ix_jobs_in_progress": "100 1",
        "ix_jobs_outbox": "100 1",
        "ix_jobs_leased": "100 10 1",
        "ix_jobs_unsealed": "100 1",
        "ix_jobs_unindexed": "100 1",
        "ix_jobs_rating": "100000 30000 1 1",
        "ix_jobs_owner_rating": "100000 1000 300 1 1",
        "ix_jobs_replay_of": "10000 2 1 1",
    },
    "attempts": {
        None: "3000000",
        # The job, the stage and the number.
        "sqlite_autoindex_attempts_1": "3000000 3 2 1",
        "ix_attempts_worker_id": "3000000 300",
    },
    "workers": {
        None: "10000",
        "ix_workers_seen_at": "10000 1",
        "ix_workers_started_at": "10000 1",
        "ix_workers_unstopped": "1000 1",
        "ix_workers_process": "1000 100 1 1",
    },
    "files": {
        None: "10000",
        "ix_files_owner_created_at_id": "10000 100 1 1",
        "ix_files_created_at": "10000 1",
        "ix_files_expires_at": "10000 1",
        "ix_files_unfinished": "10 5 1",
        "ix_files_idempotency_key": "1000 100 1",
    },
    "batches": {
        None: "10000",
        # The owner and the idempotency key.
        "sqlite_autoindex_batches_2": "10000 100 1",
        "ix_batches_owner_created_at_id": "10000 100 1 1",
        "ix_batches_input_file_id": "10000 1",
        "ix_batches_open": "10 1",
        "ix_batches_ended_at": "10000 1",
    },
    "batch_lines": {
        None: "100000",
        # The batch and the number, and the batch and the client's name.
        "sqlite_autoindex_batch_lines_1": "100000 10000 1",
        "sqlite_autoindex_batch_lines_2": "100000 10000 1",
        "ix_batch_lines_submitted": "1000 100 1",
    },
    "webhook_endpoints": {
        None: "100",
        "ix_webhook_endpoints_owner": "100 1",
    },
    "webhook_deliveries": {
        None: "1000000",
        "ix_webhook_deliveries_due": "100 10 1",
        "ix_webhook_deliveries_endpoint_id_created_at_id": "1000000 10000 1 1",
        "ix_webhook_deliveries_status": "1000000 10000 3000 1 1",
        "ix_webhook_deliveries_object_id": "1000000 1",
    },
    "log_entries": {
        None: "1000000",
        "ix_log_entries_job_id": "1000000 1",
    },
    "log_cosignatures": {
        None: "300",
        "ix_log_cosignatures_witness_size": "300 100 1",
    },
    "reviews": {
        None: "100000",
        # The job and the number.
        "sqlite_autoindex_reviews_2": "100000 2 1",
        "ix_reviews_created_at_id": "100000 1 1",
        "ix_reviews_unsealed": "100 1",
    },
    "erasures": {
        None: "10000",
        "ix_erasures_job_id": "10000 1",
        "ix_erasures_unsealed": "10 1",
    },
    "rollups": {
        None: "100000",
        # The primary key: owner, level, start and model.
        "sqlite_autoindex_rollups_1": "100000 5000 2000 3 1",
    },
    "pauses": {
        None: "100",
        "ix_pauses_current": "1 1",
    },
    "keyed_requests": {
        None: "10000",
        # The primary key: owner and key.
        "sqlite_autoindex_keyed_requests_1": "10000 100 1",
        "ix_keyed_requests_created_at": "10000 1",
    },
    "login_sessions": {
        None: "100",
        "ix_login_sessions_expires_at": "100 1",
    },
}


def write(connection: sa.Connection) -> None:
    """Replace a SQLite database's statistics; do nothing on PostgreSQL.

    Connections that are open notice it when the schema changes or they are opened again.

    Args:
        connection: in a transaction that writes.
    """
    if connection.dialect.name != "sqlite":
        return
    # This makes the table of statistics, which only ANALYZE may do.
    connection.exec_driver_sql("ANALYZE sqlite_schema")
    connection.exec_driver_sql("DELETE FROM sqlite_stat1")
    connection.exec_driver_sql(
        "INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES (?, ?, ?)",
        [
            (table, index, numbers)
            for table, indexes in STATISTICS.items()
            for index, numbers in indexes.items()
        ],
    )
    connection.exec_driver_sql("ANALYZE sqlite_schema")  # This reads them.

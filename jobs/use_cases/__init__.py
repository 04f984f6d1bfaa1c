"""Use cases: each function is one unit of work on the database, given as its first argument.

The database is the source of truth. A job exists once `submission.submit` has committed, a stage belongs to
the worker whose `stages.claim` succeeded, and its output counts once `stages.record` has. All times are
the database's.

What belongs together commits together: a function calls statements (`jobs.statements`), which own no
transaction, in one `Database.write` block.
"""

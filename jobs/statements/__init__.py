"""Statements on the tables: functions that run on a connection and own no transaction.

Use cases (`jobs.use_cases`) combine them in one unit of work. Statements that every stage executes are
built once, when the module is imported: SQLAlchemy takes longer to build one than a database to run it.
"""

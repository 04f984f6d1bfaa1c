"""`helixq bench`: measurements against a baseline in the same run. Each command has a module."""

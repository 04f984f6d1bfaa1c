"""The program `helixq`: the only place that joins web, worker and migrations."""

"""The only room that knows a GPU: runs the stages of jobs on one base with three adapters."""

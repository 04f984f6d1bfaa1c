"""The worker: runs the stages of jobs on one base model with three adapters. Only this package uses a GPU."""

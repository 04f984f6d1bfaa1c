"""What the web and the worker share: settings, the pipeline, the tables, the queue."""

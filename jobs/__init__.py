"""What web and worker share: settings, the pipeline, the database, the queue, the API without HTTP."""

"""Forward passes over mixed batches."""

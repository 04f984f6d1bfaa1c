"""Statistics without the database: what a job counts for, sums that can be merged, periods, and intervals."""

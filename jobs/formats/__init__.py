"""Files of rows: JSON Lines, CSV and Parquet, compressed or not, written and read a piece at a time.

It knows rows and bytes, and neither jobs nor HTTP. Parquet needs pyarrow, and zstd the package `zstandard`:
both are in the extra ``export``.
"""

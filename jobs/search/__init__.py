"""Search without the database: words of texts, terms of the index, queries, snippets and ranks."""

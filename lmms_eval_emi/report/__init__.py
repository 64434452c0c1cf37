"""Showing results: reading them from any source, pictures of them, and a page or a table."""

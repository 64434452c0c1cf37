"""Showing results: reading them from any source, images of them, and a page or a table."""

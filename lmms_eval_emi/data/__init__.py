"""Rows, studies, images, tables and files of responses."""

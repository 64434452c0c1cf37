"""Readers of answers that exist, a file format each."""

"""Evaluation harnesses that generate responses and show our scores, one folder each. No maths is here."""

"""Evaluation harnesses that generate responses and show our scores. One folder for each; none has maths of its own."""

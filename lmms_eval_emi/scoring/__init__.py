"""From responses to results: joining responses with rows, embedding, scoring, and what is printed and written.

:func:`lmms_eval_emi.scoring.pipeline.score` is the one way through; a harness, the command line and
Python users call it.
"""

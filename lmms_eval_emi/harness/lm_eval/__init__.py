"""The studies as tasks of lm-evaluation-harness (lm_eval 0.4.13 and later 0.4): rows, responses, scores and files.

``write_tasks`` writes the YAML files, which name the classes here; ``task`` is one split, and ``run``
the groups, what an evaluation has loaded and answered, and the one place where a function of lm_eval is wrapped.
"""

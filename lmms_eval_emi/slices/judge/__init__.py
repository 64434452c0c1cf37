"""A judge model's scores of responses beside their references, as llava-bench asks for them.

``prompt`` writes the prompt and parses the reply, ``ask`` requests missing verdicts from an endpoint, ``verdicts`` is the
file to which each verdict is appended as it arrives, and ``preference`` computes scores from verdicts.
"""

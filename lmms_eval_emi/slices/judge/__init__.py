"""A judge model's scores of responses beside their references, as llava-bench asks for them.

``prompt`` says what is asked and reads what comes back, ``asking`` asks an endpoint for what is missing, ``verdicts`` is
the file that every verdict is in as soon as it is there, and ``preference`` makes scores of verdicts.
"""

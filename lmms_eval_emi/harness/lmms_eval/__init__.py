"""lmms-eval: its task files, the hooks that they name, and the state of a run.

``compat`` holds every assumption about lmms-eval; ``plugin`` makes it find our tasks; ``write_tasks`` writes them; ``hooks`` is
what they name; ``run`` remembers tasks and responses; ``finish`` saves and scores them.
"""

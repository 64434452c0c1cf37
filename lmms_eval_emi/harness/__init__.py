"""The door from lmms-eval: task files, the hooks they name, and a run's session. No maths."""

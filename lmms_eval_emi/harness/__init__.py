"""The door from lmms-eval: task files, the hooks they name, and the state of a run. No maths."""

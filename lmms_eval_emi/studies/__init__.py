"""Studies: which splits there are, their rows, their figures, and the table of them."""

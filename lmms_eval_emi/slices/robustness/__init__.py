"""How much a task's own metrics lose when its inputs shift: ``metrics`` are what rows have, ``comparison`` compares two scorings of them."""

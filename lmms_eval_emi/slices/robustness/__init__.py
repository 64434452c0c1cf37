"""Loss of a task's own metrics when its inputs shift: ``metrics`` are what rows have, ``comparison`` compares two scorings of them."""

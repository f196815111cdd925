"""The machine: board, driver, conditions, what can be tried out on it."""

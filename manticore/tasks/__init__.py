"""Tasks: sequences whose answers are known, made with NumPy alone."""

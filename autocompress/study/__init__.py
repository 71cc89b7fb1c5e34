"""Ask, hand out, tell: the only room with Optuna. It never sees torch."""

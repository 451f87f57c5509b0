"""Distillation: the objective, its divergences, hidden-state terms, the student's own text."""

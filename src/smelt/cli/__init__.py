"""Thin verbs over the rooms; heavy imports inside functions."""

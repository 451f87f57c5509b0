"""Tests of smelt.checkpoint."""

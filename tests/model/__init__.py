"""Tests of smelt.model."""

"""Rows that outlive a process, in SQLite or PostgreSQL: `database` is the door, and each resource has a module."""

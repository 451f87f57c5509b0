"""Scheduler, block manager, prefix cache: plain Python over integers, driving a Runner."""

"""Calls of tools and programs, each started at most once."""

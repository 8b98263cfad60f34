"""Declare a study: its keys and axes, the variants they make, and studies as files."""

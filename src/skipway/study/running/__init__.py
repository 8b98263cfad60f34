"""Run a study: its trials through an engine, its folder, and who watches it."""

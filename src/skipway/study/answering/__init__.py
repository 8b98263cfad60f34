"""Answer a study's question from its records alone."""

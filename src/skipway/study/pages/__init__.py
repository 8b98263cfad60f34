"""The pages of the report: a study's, and that of two compared."""

"""Train one network: how it is built, in which order it sees the examples, by which recipe, and what is kept."""

"""A language model made small: the model, what it reads and writes, and the methods that take its weights and activations below
eight bits."""

"""A grid of models: what is to be done, where it is kept, and the worker that does it."""

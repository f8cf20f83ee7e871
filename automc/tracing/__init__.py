"""A model as it is traced: what its layers are called with, which channels belong together, and what is left alone; see `trace`."""

"""The widgets of the notebooks: one module a notebook, each function returns a widget that also has a still."""

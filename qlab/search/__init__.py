"""Choices made by the machine: how sensitive a layer is to rounding, which bits it gets under a budget, and how its weights are rounded."""

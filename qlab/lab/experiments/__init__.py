"""The experiments behind the records: python -m qlab.lab.experiments.NAME makes records/NAME.json again, from nothing."""

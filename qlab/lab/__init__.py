"""What the notebooks stand on: data, trained networks, measurements, plots and widgets."""

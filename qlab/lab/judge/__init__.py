"""How a quantized network is judged beside the one that it was made of: more than one accuracy says."""

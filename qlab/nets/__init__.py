"""Networks made small: the architectures of the course, and what quantizing a whole network needs."""

"""Where it lies: places, leases, products, and what a later inventory takes over."""

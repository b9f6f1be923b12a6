"""What a run will cost: measured rates and the arithmetic on them."""

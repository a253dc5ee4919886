"""What a run will need, found out without data, weights or GPUs: counts on the meta device, and arithmetic on them."""

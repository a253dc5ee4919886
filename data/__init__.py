"""How images reach the model: shards, their order, their bytes, and the batches made of them."""

"""Measures on features and images; pure arithmetic on tensors, without files and ranks."""

"""How good a model is: sampling, features, measures, protocols and the report."""

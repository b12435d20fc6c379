"""The toy world's data: concepts, exact sampling, and the Bayes-optimal answer."""

"""A TransformerBridge's model as plain functions, and the forward that measurements edit. Knows no contrast."""

"""The one-layer model of the toy world, its closed-form weights, and the model as a TransformerBridge."""

"""What must hold on every model, tried on the user's own: each identity with its error, its effect and a verdict."""

"""What runs on both worlds: contrasts, and the measurements that take a model and a contrast."""

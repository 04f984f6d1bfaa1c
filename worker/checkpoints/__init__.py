"""Base and adapters as folders or on the hub: found, hashed and loaded."""

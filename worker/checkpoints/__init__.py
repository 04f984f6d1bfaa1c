"""Base and adapters as folders or on the hub: find, hash and load them."""

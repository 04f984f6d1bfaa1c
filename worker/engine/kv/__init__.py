"""Keys and values: where they are, and which sequence holds which of that memory."""

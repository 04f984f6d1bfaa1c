"""The demo's HelixNet: a tiny Mistral, its tokenizer and three LoRA adapters."""

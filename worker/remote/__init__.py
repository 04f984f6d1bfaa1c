"""An engine elsewhere: servers with OpenAI's completions API, such as vLLM. Nothing here imports torch."""

"""The modules that both processes of a vLLM engine use: what passes between them, and the vLLM release they rely on."""

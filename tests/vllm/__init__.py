"""vLLM itself on memory that vattd lends. Needs an environment with vLLM in it: `make test-vllm`."""

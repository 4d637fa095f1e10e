"""Who generates: specs on one loaded base, or in vLLM."""

"""Verb `serve`: the mixes of a finished sweep by vLLM's server, each made when a request first asks for it."""

"""The control endpoint's parts: who may speak to it, what it reads, and what it says."""

"""Records of what was decided, and where they go."""

"""What a machine can run: each thing that boxes and gates need is tried, in a process that is thrown away."""

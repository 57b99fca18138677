"""What the benchmarks of live policies add to the rig.

The gate's process holds a control endpoint on a unix socket, and follows a policy file. The benchmark
itself, in the gate's namespace, is the operator who changes policies.
"""

"""A gate in the network namespace of what it guards: a container's, or a Kubernetes pod's."""

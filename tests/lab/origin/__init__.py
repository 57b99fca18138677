"""The origin: the process that owns every address but the gate's."""

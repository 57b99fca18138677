"""Loaded by ``mitmdump -s addons/egress_policy.py --set box_policy_file=policy.yaml``."""

from box_policy.control.addon import PolicyControl
from box_policy.gate.addon import EgressPolicy

egress_policy = EgressPolicy()
addons = [egress_policy, PolicyControl(egress_policy)]

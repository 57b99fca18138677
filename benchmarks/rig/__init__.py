"""The network on which the lane is measured: three namespaces in a row, with no route out.

::

    box ----veth---- gate ----veth---- origin
    load generator   proxy under test  answers, and serves DNS

The benchmark itself lives in the gate's namespace. The gate redirects what is bound for
``plan.ALLOWED`` to the proxy's port; ``plan.DIRECT`` is the same origin, reached without a proxy.
"""

"""One module for each hypervisor: how its guests' memory and registers are reached.

Nothing here knows what runs inside a guest.  What a hypervisor says is trusted (it is in the
trusted base), but still parsed strictly: a format that we do not know must not become a wrong
register.
"""

"""Write traps: a vCPU that writes to a protected frame stops until we answer.

=============  =====================================================================
module         what
=============  =====================================================================
``inject``     one system call made by another process, through ptrace
``uffd``       userfaultfd: register, protect, read faults, let go
``writetrap``  both together on a running hypervisor: protect guest frames, see writes
=============  =====================================================================

The hypervisor is stock and keeps running; the guest is unchanged.  Nothing here decides whether
a write is lawful.
"""

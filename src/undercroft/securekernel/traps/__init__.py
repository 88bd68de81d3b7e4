"""Write traps: a vCPU that writes to a protected frame stops until we answer.

=============  =====================================================================
module         what
=============  =====================================================================
``inject``     one system call made by another process, through ptrace
``uffd``       userfaultfd: register, protect, read faults, let go
``writetrap``  both together on a running hypervisor: protect guest frames, see writes
``channels``   who else could write to guest RAM, around the traps
``regions``    what of a located kernel is protected
``pages``      the protected pages and their content as the traps know it
``sites``      where text may change, and which bytes may stand there
``explain``    does the replay explain what stands there now
``judge``      who judges a write to code, and what comes and goes
``watch``      a thread that looks for what comes and goes
``modules``    covers modules as they come and go
``processes``  covers the code of chosen processes
``answer``     the answer to one write, and what became of it
``guard``      the answering thread, and what others may ask of it
``journal``    the chain of epochs
``sampling``   registers, looked at when nobody can foresee it
``freeze``     stop or end a hypervisor whose vCPU waits for us
``snapshot``   guest RAM in a file
``threads``    the hypervisor's threads
``attach``     all of it over a located kernel
=============  =====================================================================

The hypervisor is stock and keeps running; the guest is unchanged.
"""

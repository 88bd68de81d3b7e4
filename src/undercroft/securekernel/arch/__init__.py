"""What the processor defines: page tables, descriptor tables, control registers.

Nothing here knows an operating system.
"""

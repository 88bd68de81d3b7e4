"""x86-64 in long mode: paging with 4 and 5 levels, descriptor tables, register bits."""

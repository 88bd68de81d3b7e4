"""undercroft: is that machine running what it should, right now?

The folders are the pipeline in order: ``formats`` parse, ``verify`` decides what is authentic,
``reference`` knows what good looks like, ``appraise`` decides what is acceptable.  Those are
pure.  ``securekernel`` watches a guest from outside; ``guests`` and ``packages`` build and
describe one; ``cli`` is what a person types.
"""

__version__ = "0.1.0"

"""Use cases: enrol a guest's key, challenge, collect evidence, appraise it, keep the case.

Shells around the pure pipeline.  Nothing here decides; it brings bytes, keys, policy and the
time together and writes down what came out.
"""

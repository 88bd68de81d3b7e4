"""Is it acceptable?  Verified evidence, reference values and a policy in; an Appraisal and its
EAR attestation result out.
"""

"""Ops: schema, autograd and implementations, one file an op. Users call agmh_fast.functional."""

"""Fuzzing of what reads untrusted input: `targets` has the parsers, `inputs` makes what they get.

The suite tries some inputs of each (`tests.unit.test_fuzz`). ``make fuzz`` tries more, guided by which code they
reach.
"""

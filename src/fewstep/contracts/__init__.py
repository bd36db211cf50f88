"""The laws that every training method keeps, one function each, and the trial that they look at.

A law takes a `Trial` and says why the method breaks it, with what was measured; None where it keeps
it. `fewstep check` tries them on anybody's method, the tests on every method of the package.
"""

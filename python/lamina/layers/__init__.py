"""One file tells one op: reference, fakes, autograd.Function, functional form, module, SPEC."""

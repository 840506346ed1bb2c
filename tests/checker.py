"""The type checker of the tests, which accepts an int for a float (PEP 484)."""

import beartype

typechecker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

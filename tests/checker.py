"""The type checker of the tests: an int is a float, as everywhere in Python."""

import beartype

typechecker = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

"""An extension of griffe that shows fields of Linen modules as arguments, and examples as code."""

import re

import griffe

SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", flags=re.MULTILINE)
"""Several arguments described together, `mean, std: description`, with the lines that continue it."""


class Signatures(griffe.Extension):
    """Called by mkdocstrings for every object, which it reads without importing it."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rewrites docstrings for griffe, which knows only the plural "Examples" and needs a line per argument."""

        def split(match: re.Match) -> str:
            indent, names, text = match.groups()
            return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))

        if obj.docstring:
            obj.docstring.value = SEVERAL.sub(split, obj.docstring.value.replace("Example:\n", "Examples:\n"))

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        """Adds the `__init__` of a Linen module, which takes its fields: Linen creates it unseen by griffe."""
        if "__init__" in cls.members or not any(str(base).endswith("nn.Module") for base in cls.bases):
            return
        fields = [
            griffe.Parameter(
                name, annotation=field.annotation, default=field.value, kind=griffe.ParameterKind.positional_or_keyword
            )
            for name, field in cls.members.items()
            if field.is_attribute and field.annotation is not None  # others are set in `setup`
        ]
        init = griffe.Function("__init__", parameters=griffe.Parameters(*fields), parent=cls)
        cls.set_member("__init__", init)

"""What the reference needs to read vidjax's sources: fields of Linen modules as arguments, examples as code."""

import re

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +.*)*)", flags=re.MULTILINE)
"""Arguments that share a line, `mean, std: what they are`, and the lines below it."""


class Signatures(griffe.Extension):
    """Run by mkdocstrings for every object that it reads, without importing it."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Writes docstrings as griffe reads them: "Examples", of which it knows the plural alone, and a line a name."""

        def apart(found: re.Match) -> str:
            indent, names, text = found.groups()
            return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))

        if obj.docstring:
            obj.docstring.value = SHARED.sub(apart, obj.docstring.value.replace("Example:\n", "Examples:\n"))

    def on_class(self, *, cls: griffe.Class, **_: object) -> None:
        """A Linen module is made by its fields, as a dataclass is; Linen does it where griffe does not see it."""
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

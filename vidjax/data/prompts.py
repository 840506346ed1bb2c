"""Prompts from class names: templates with one slot `{}` each.

ActionCLIP (arXiv:2109.08472) distinguishes three kinds by the position of the label: after a prefix, in the middle of a
sentence (cloze), or before a suffix.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vidjax.errors import UserError

ACTIONCLIP = (
    # The label alone, and after a prefix.
    "{}",
    "a clip that shows {}",
    "a short film about {}",
    "a recording of the activity {}",
    "the activity is called {}",
    "footage of somebody {}",
    "here you see {}",
    "watch how they are {}",
    "a person busy with {}",
    "the camera follows {}",
    # In the middle of a sentence.
    "people are {} in this clip",
    "the scene, with {} in it, was filmed",
    "is {} what happens here?",
    # Before a suffix.
    "{} is what happens here",
    "{}, seen in a clip",
    "{}, filmed from start to end",
)
"""Sixteen templates of the same three kinds as in the released code (utils/Text_Prompt.py), in different words."""
PLAIN = ("{}",)
"""The class name alone."""


def read_templates(name: str) -> tuple[str, ...]:
    """Reads prompt templates.

    Args:
      name: `actionclip`, `plain`, a text file with one template per line, or a single template such as "a {}".

    Raises:
      UserError: the file does not exist or is empty, or a template is repeated or does not have exactly one slot.
    """
    if name in ("actionclip", "plain"):
        return ACTIONCLIP if name == "actionclip" else PLAIN
    if "{}" in name:
        _check_templates((name,), "templates")
        return (name,)
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"templates {name} is not a text file: save it as UTF-8") from error
    except OSError as error:
        raise UserError(
            f"templates {name} cannot be read ({error.strerror}): give actionclip, plain, a text file with one "
            "template per line, or a template with a slot {}"
        ) from error
    templates = tuple(line.strip() for line in lines if line.strip())
    _check_templates(templates, f"templates {name}")
    return templates


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Fills class names into templates; underscores become spaces.

    Returns:
      For each template, one prompt per class.

    Raises:
      UserError: a template is repeated or does not have exactly one slot, or class names repeat.
    """
    _check_templates(templates, "the templates")
    check_names(class_names)
    return [[template.replace("{}", spoken(name)) for name in class_names] for template in templates]


def check_names(class_names: Sequence[str]) -> None:
    """Raises UserError if class names are equal up to case and underscores, as their prompts would be equal too."""
    counts = Counter(spoken(name).casefold() for name in class_names)
    if repeated := [name for name in class_names if counts[spoken(name).casefold()] > 1]:
        raise UserError(
            f"{len(repeated)} class names repeat, up to case and underscores, such as "
            f"{' and '.join(repr(name) for name in _alike(repeated))}: give each class a distinct name"
        )


def spoken(class_name: str) -> str:
    """A class name as written in a sentence, with spaces for underscores."""
    return class_name.replace("_", " ")


def _alike(names: Sequence[str]) -> list[str]:
    return [name for name in names if spoken(name).casefold() == spoken(names[0]).casefold()][:2]


def _check_templates(templates: Sequence[str], where: str) -> None:
    if not templates:
        raise UserError(f"{where} is empty: give one template per line, each with a slot {{}} for the class name")
    for template in templates:
        if (count := template.count("{}")) != 1:
            raise UserError(f"{where}: '{template}' has {count or 'no'} slots {{}} for the class name: use exactly one")
    if repeated := [template for template, count in Counter(templates).items() if count > 1]:
        raise UserError(f"{where}: '{repeated[0]}' is repeated: remove one of them")

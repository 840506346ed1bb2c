"""Sentences made of class names: templates with one slot `{}` each.

ActionCLIP (arXiv:2109.08472) tells three kinds by where the label stands: at the end of a prefix, in the middle of a
sentence to be filled in (cloze), or at the start, before a suffix.
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
"""Sixteen, as many as the released code has (utils/Text_Prompt.py), of its three kinds, in words of our own."""
PLAIN = ("{}",)
"""The class name and nothing else."""


def read_templates(name: str) -> tuple[str, ...]:
    """The templates `actionclip` or `plain`, those in a text file, one a line, or one that is given itself ("a {}").

    Raises:
      UserError: no such file, no template in it, one without a slot or with two, or one that is there twice.
    """
    if name in ("actionclip", "plain"):
        return ACTIONCLIP if name == "actionclip" else PLAIN
    if "{}" in name:
        _check_templates((name,), "templates")
        return (name,)
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"templates {name} is no text file: write it in UTF-8") from error
    except OSError as error:
        raise UserError(
            f"templates {name} cannot be read ({error.strerror}): give actionclip, plain, a text file with one "
            "template a line, or one template with a slot {}"
        ) from error
    templates = tuple(line.strip() for line in lines if line.strip())
    _check_templates(templates, f"templates {name}")
    return templates


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """The prompts: a list for each template, with one for each class, whose underscores become blanks.

    Raises:
      UserError: a template without a slot or given twice, or class names that repeat.
    """
    _check_templates(templates, "the templates")
    check_names(class_names)
    return [[template.replace("{}", spoken(name)) for name in class_names] for template in templates]


def check_names(class_names: Sequence[str]) -> None:
    """Refuses class names that read the same, whatever their case and underscores: no text could tell them apart."""
    readings = Counter(spoken(name).casefold() for name in class_names)
    if repeated := [name for name in class_names if readings[spoken(name).casefold()] > 1]:
        raise UserError(
            f"{len(repeated)} class names repeat, up to case and underscores, such as "
            f"{' and '.join(repr(name) for name in _alike(repeated))}: give each class a name of its own"
        )


def spoken(class_name: str) -> str:
    """A class name as it stands in a sentence."""
    return class_name.replace("_", " ")


def _alike(names: Sequence[str]) -> list[str]:
    return [name for name in names if spoken(name).casefold() == spoken(names[0]).casefold()][:2]


def _check_templates(templates: Sequence[str], where: str) -> None:
    if not templates:
        raise UserError(f"{where} is empty: give one template a line, each with a slot {{}} for the class name")
    for template in templates:
        if (count := template.count("{}")) != 1:
            raise UserError(f"{where}: '{template}' has {count or 'no'} slots {{}} for the class name: give it one")
    if repeated := [template for template, count in Counter(templates).items() if count > 1]:
        raise UserError(f"{where}: '{repeated[0]}' is there twice, leave one out")

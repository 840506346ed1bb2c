"""Records recipes_19428ce.json, the configs that recipes of vidjax 19428ce write into a work directory.

In a checkout of that commit: PYTHONPATH=.:experiments python record_recipes.py recipes_19428ce.json

Stored: for each script its default config, and for each recipe the fields that differ from it, by dotted name.
"""

import importlib
import json
import sys
from pathlib import Path

from vidjax import cli

SCRIPTS = "mae_pretrain", "finetune", "contrastive_pretrain"


def flatten(config: dict, prefix: str = "") -> dict:
    """The fields of a nested config by dotted name."""
    fields = {}
    for name, value in config.items():
        fields |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return fields


def main(out: str) -> None:
    """Writes the file."""
    recorded = {}
    for script in SCRIPTS:
        module = importlib.import_module(script)
        default = flatten(cli.as_dict(module.Config()))
        recipes = {name: flatten(cli.as_dict(config)) for name, config in module.RECIPES.items()}
        changed = {
            name: {field: value for field, value in fields.items() if value != default[field]}
            for name, fields in recipes.items()
        }
        recorded[script] = {"default": default, "recipes": changed}
    Path(out).write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])

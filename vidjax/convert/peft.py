"""LoRA and DoRA in peft's files (huggingface/peft): `adapter_config.json` and `adapter_model.safetensors`, both ways.

Modules are named as in the publisher's model, most often transformers', below `base_model.model.`; the rules of the
model's layouts map them to ours. `lora_A.weight` is `(r, in)` and `lora_B.weight` `(out, r)`, also for GPT-2, whose
kernels are `(in, out)` (`fan_in_fan_out`); of a convolution, A has its kernel and B one of size 1.

Where a publisher has query, key and value in one linear layer, A is shared by the three. Ours, which differ, are
written as one of higher rank (`rank_pattern`), with A stacked and B block by block.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert import checkpoint, conversion, files, recognition
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout, Rule
from vidjax.errors import UserError
from vidjax.layers import low_rank
from vidjax.models import variable_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


def is_adapter(path: Path) -> bool:
    """Whether `path` is a directory that peft has written."""
    return (path / CONFIG).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of LoRA or DoRA.

    Raises:
      UserError: it is damaged, or of another method.
    """
    try:
        config = json.loads((path / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path / CONFIG} cannot be read ({error}): give a directory that peft has written") from error
    if config.get("peft_type") != "LORA":
        raise UserError(f"{path} has an adapter of the type {config.get('peft_type')}: only LORA can be merged")
    return config


def load_adapter(path: str | Path, model: nn.Module, variables: dict) -> dict:
    """The variables of a model with an adapter of peft merged into its kernels.

    Args:
      path: a directory with `adapter_config.json` and `adapter_model.safetensors`.
      variables: those of the base; the head is replaced if the adapter has one.

    Raises:
      UserError: the directory cannot be read, or the adapter is of another model.

    Example:
      >>> model, variables = vidjax.load_pretrained("MCG-NJU/videomae-base", num_classes=174)
      >>> variables = vidjax.load_adapter("adapter", model, variables)
    """
    path = Path(path).expanduser()
    few, scale = convert(model, read_config(path), files.read(path / WEIGHTS))
    shapes = flatten_dict(variables["params"], sep="/")
    for name, value in few.items():
        if name in shapes and shapes[name].shape != value.shape:
            raise UserError(f"{path}: {name} is {shapes[name].shape} in the model and {value.shape} in the adapter")
    return merged(variables, few, scale)


def merged(variables: dict, few: Mapping[str, np.ndarray], scale: float) -> dict:
    """The variables of the adapted model, from those of the base and what `convert` returns."""
    base = {path: leaf for path, leaf in flatten_dict(variables["params"], sep="/").items() if path not in few}
    params = low_rank.merge(unflatten_dict(base, sep="/"), unflatten_dict(dict(few), sep="/"), scale)
    return variables | {"params": params}


def convert(model: nn.Module, config: Mapping[str, Any], weights: Weights) -> tuple[dict[str, np.ndarray], float]:
    """The few parameters of an adapter by our paths (`layers.low_rank`), and their scale.

    Ranks and scales of single layers are multiplied into their B.

    Raises:
      UserError: the model has no such layers.
    """
    weights = {name.removeprefix(PREFIX).replace(".base_layer.", "."): value for name, value in weights.items()}
    stabilized, alpha, rank = config.get("use_rslora", False), config["lora_alpha"], config["r"]
    scale, few = low_rank.scale_of(rank, alpha, stabilized), {}
    modules = {name.removesuffix(B) for name in weights if name.endswith(B)}
    factors = {module: [weights.pop(module + part, None) for part in (A, B, MAGNITUDE)] for module in modules}
    # As weights, B and the norms beside it get the order of rows that the layout's weights get.
    rows = {f"{module}.weight": _rows(b, norms) for module, (_, b, norms) in factors.items()}
    layout, renamed = _layout_of(model, rows | weights)
    for name, module in zip(renamed, [*modules, *(None for _ in weights)], strict=True):
        for rule, path in ((rule, path) for rule in layout.rules if (path := rule.path(name)) is not None):
            if module is None:
                few[path] = rule.transform(renamed[name])
                continue
            (a, b, magnitude), outputs = factors[module], renamed[name]
            its_alpha = _of_layer(config.get("alpha_pattern"), module, alpha)
            own = low_rank.scale_of(_of_layer(config.get("rank_pattern"), module, rank), its_alpha, stabilized)
            inner = path.removesuffix("kernel")
            few[inner + low_rank.A] = a.T if a.ndim == 2 else rule.transform(a).reshape(-1, len(a))
            few[inner + low_rank.B] = _outputs(layout, rule, outputs[:, : b.shape[1]]) * np.float32(own / scale)
            if magnitude is not None:
                few[inner + low_rank.MAGNITUDE] = _outputs(layout, rule, outputs[:, b.shape[1] :])[0]
    return few, scale


def _of_layer(pattern: Mapping[str, Any] | None, module: str, usual: Any) -> Any:
    """The value of a layer in `rank_pattern` or `alpha_pattern`, whose names are regular expressions."""
    return next((value for name, value in (pattern or {}).items() if re.search(rf"(^|\.)({name})$", module)), usual)


def _rows(b: np.ndarray, norms: np.ndarray | None) -> np.ndarray:
    """B, of a linear layer or a convolution, and the norms of DoRA if there are any, as one matrix `(out, columns)`."""
    matrices = [b] if norms is None else [b, norms]
    return np.concatenate([matrix.reshape(len(b), -1) for matrix in matrices], axis=1)


def _outputs(layout: Layout, rule: Rule, value: np.ndarray) -> np.ndarray:
    """Those of one of our layers `(r, out)`, from those of the publisher's layer `(out, r)`."""
    return np.array_split(value, _parts(layout, rule))[rule.transform.part].T


def _parts(layout: Layout, rule: Rule) -> int:
    """The number of our layers that the publisher has in one."""
    return len({other.transform.part for other in layout.rules if other.source == rule.source})


def _layout_of(model: nn.Module, weights: Weights) -> tuple[Layout, Weights]:
    """The layout that has all of these names, and the entries under the names of its rules."""
    for layout in recognition.layouts(model):
        for entries in recognition.unwrapped(weights):
            prepared = layout.prepare(entries)
            if len(prepared) == len(weights) and all(map(layout.matches, prepared)):
                return layout, prepared
    raise UserError(
        f"no known layout of {type(model).__name__} has the adapter's layers, such as {next(iter(weights))}: choose "
        "the model that it was trained for"
    )


def export_adapter(
    out: str | Path,
    model: nn.Module,
    few: Mapping[str, np.ndarray],
    *,
    rank: int,
    alpha: float,
    stabilized: bool = False,
    base: str | None = None,
) -> Path:
    """Writes an adapter for peft, and returns the path of its weights.

    Args:
      out: a new or empty directory.
      model: the adapted model; its layout of transformers gives the names, or else its first that can be exported.
      few: the few parameters by path, as `layers.low_rank` names them.
      base: name of the weights that are adapted.

    Raises:
      UserError: the layout has no entry for a parameter; or DoRA of a part of the publisher's layer.
    """
    from safetensors.numpy import save_file

    layout = _exported(model)
    shapes = {path: leaf.shape for path, leaf in flatten_dict(variable_shapes(model)["params"], sep="/").items()}
    whole = {path: value for path, value in few.items() if path.rpartition("/")[2] not in low_rank.NAMES}
    weights = layout.restore(conversion.invert(layout, unflatten_dict(whole, sep="/")))
    saved = sorted({name.rpartition(".")[0] for name in weights})
    layers: dict[str, list[tuple[Rule, str]]] = {}
    for module in sorted(path.removesuffix(low_rank.B) for path in few if path.endswith(f"/{low_rank.B}")):
        rule, name = _entry(layout, f"{module}kernel")
        layers.setdefault(name, []).append((rule, module))
    rows = {}
    for name, ours in layers.items():
        rule, width = ours[0][0], shapes[f"{ours[0][1]}kernel"][-1]
        parts, norms = _parts(layout, rule), None
        outputs = np.zeros((parts, width, len(ours), rank), np.float32)
        for column, (own, module) in enumerate(ours):
            outputs[own.transform.part, :, column] = few[module + low_rank.B].T
        if ours[0][1] + low_rank.MAGNITUDE in few:
            if len(ours) < parts:
                layer = name.removesuffix(".weight")
                raise UserError(f"peft's DoRA needs all {parts} parts of {layer}: adapt them too, or use LoRA")
            in_order = sorted(ours, key=lambda each: each[0].transform.part)
            norms = np.concatenate([few[module + low_rank.MAGNITUDE] for _, module in in_order])
        rows[name] = _rows(outputs.reshape(parts * width, -1), norms)
    ranks, alphas, turned = {}, {}, False
    for ours, (restored, outputs) in zip(layers.values(), layout.restore(rows).items(), strict=True):
        layer, columns = restored.removesuffix(".weight"), len(ours) * rank
        rule, kernel = ours[0][0], shapes[f"{ours[0][1]}kernel"]
        factors = [few[module + low_rank.A] for _, module in ours]
        if len(kernel) > 2:
            weights[layer + A] = rule.transform.inverse(factors[0].reshape(*kernel[:-1], rank))
        else:
            weights[layer + A] = np.concatenate([factor.T for factor in factors])
            turned |= rule.transform.inverse(np.zeros((2, 3))).shape == (2, 3)
        ones = (1,) * (len(weights[layer + A].shape) - 2)
        weights[layer + B] = outputs[:, :columns].reshape(-1, columns, *ones)
        if outputs.shape[1] > columns:
            weights[layer + MAGNITUDE] = outputs[:, columns]
        if len(ours) > 1:
            ranks[layer] = columns
            alphas[layer] = alpha * (len(ours) ** 0.5 if stabilized else len(ours))
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": stabilized,
        "use_dora": any(name.endswith(MAGNITUDE) for name in weights),
        "fan_in_fan_out": turned,
        "bias": "none",
        "target_modules": [name.removesuffix(A) for name in weights if name.endswith(A)],
        "modules_to_save": saved or None,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "task_type": None,
    }
    out = Path(out)
    checkpoint.require_empty(out)
    checkpoint.make(out)
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    arrays = {PREFIX + name: np.array(value, np.float32, order="C") for name, value in weights.items()}
    save_file(arrays, out / WEIGHTS, metadata={"format": "pt"})
    return out / WEIGHTS


def _exported(model: nn.Module) -> Layout:
    """The layout whose names peft gets: that of transformers, or else the first that can be exported."""
    layouts = [layout for layout in recognition.layouts(model) if layout.restore is not None]
    if not layouts:
        raise UserError(
            f"{type(model).__name__} has no published layout, whose names peft needs: use the layout vidjax"
        )
    return next((layout for layout in layouts if layout.key == "transformers"), layouts[0])


def _entry(layout: Layout, path: str) -> tuple[Rule, str]:
    """The last rule of our parameter, and its published name: names in memory follow those of files."""
    found = [(rule, name) for rule in layout.rules if (name := rule.entry(path)) is not None]
    if not found:
        raise UserError(f"{layout.name} has no entry for {path}: adapt other layers, or use the layout vidjax")
    return found[-1]

"""Every variant has exactly its published number of parameters, and its published cost within 2 %.

They are in the `COUNTS` of each family's test, from SYSTEMS.md (part C and the sheets), for 400 classes unless the row
has others. GMACs are multiply-accumulates of convolutions and matrix products in the traced program, for one clip.
Unpublished numbers are our own counts, to detect changes.

Also, weights load in every layout that `list_models.py` lists.
"""

import ast
import re
from functools import cache
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import scope
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.convert import conversion, layouts, rules
from vidjax.convert.checkpoint import describe
from vidjax.models import create_model, example_inputs
from vidjax.models.resnet3d import planes_between
from vidjax.training.cost import count_macs


def read_counts(name: str) -> dict:
    """The merged dictionaries of this name in the tests of all families."""
    counts = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
                counts |= eval(compile(ast.Expression(node.value), str(path), "eval"), {"__builtins__": {}})
    return counts


COUNTS, WITH_FIELDS = read_counts("COUNTS"), read_counts("COUNTS_WITH_FIELDS")
ROWS = WITH_FIELDS | {name: (name, *COUNTS[name][:2], (*COUNTS[name], {})[2]) for name in COUNTS}


@pytest.fixture(autouse=True)
def signatures_are_checked_elsewhere(unchecked):
    """Checking them takes a third of the time of tracing models of full size."""


def zeros(self, name, init_fn, *init_args, unbox=True, **init_kwargs):
    """Stands for Flax's `Scope.param`: a new parameter is zero; tracing random numbers takes a third of the time."""
    if self.has_variable("params", name):
        return PARAM(self, name, init_fn, *init_args, unbox=unbox, **init_kwargs)
    self.reserve(name, "params")
    shapes = scope.jax.eval_shape(lambda: init_fn(jax.random.key(0), *init_args, **init_kwargs))  # see conftest.py
    self.put_variable("params", name, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    return self.get_variable("params", name)


PARAM = scope.Scope.param


@cache
def shapes_of(row: str):
    name, _, _, overrides = ROWS[row]
    model = create_model(name, **overrides)
    inputs = example_inputs(model)
    # The forward pass is part of initialisation: one trace for shapes and cost, unless a text tower is initialised too.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope.Scope, "param", zeros)
        traced, shapes = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0), *inputs)
    macs = count_macs(model.apply, shapes, *inputs) if hasattr(model, "text") else count_macs(traced)
    return model, shapes, macs


@pytest.mark.long
@pytest.mark.parametrize("row", [*vidjax.list_models(), *WITH_FIELDS])
def test_parameters_and_cost_are_as_published(row):
    _, parameters, gmacs, _ = ROWS[row]
    _, shapes, macs = shapes_of(row)
    flat = {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    assert not [path for path in flat if re.search(r"(^|/)[A-Z]\w*_\d+(/|$)", path)]  # no automatic names
    assert sum(map(prod, flat.values())) == parameters
    if gmacs:
        assert macs / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_every_variant_has_counts():
    missing = sorted(set(vidjax.list_models()) - COUNTS.keys())
    assert not missing, f"COUNTS in the test of their family lacks {missing}"
    assert sorted(COUNTS) == vidjax.list_models()


def test_tables_in_the_documentation_have_these_numbers():
    """In rows as printed by `list_models.py --markdown`, on any page; docs/models.md lists all models."""
    root = Path(__file__).resolve().parents[2]
    rows = re.compile(r"^\| `(\w+)` \| [\d x]+ \| ([\d,]+) \| ([\d,.]+) \| ", re.MULTILINE)
    for page in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        for name, parameters, gmacs in rows.findall(page.read_text()):
            assert name in COUNTS, f"{page.name}: there is no model {name}"
            assert parameters == f"{COUNTS[name][0]:,}", f"{page.name}: {name}"
            if COUNTS[name][1] and len(COUNTS[name]) == 2:
                assert float(gmacs.replace(",", "")) == pytest.approx(COUNTS[name][1], rel=0.02), page.name


# Shapes of entries in published files that cannot be derived from our rules. Groups of blocks are numbered from zero,
# as after `prepare`.
STEM_45 = {"stem.0.weight": (45, 3, 1, 7, 7), "stem.3.weight": (64, 45, 3, 1, 1)}
AS_PUBLISHED = {
    "torchvision": {"stem.0.weight": (64, 3, 3, 7, 7)},
    "torchvision's R(2+1)D": STEM_45 | {"layer1.0.conv2.0.0.weight": (230, 128, 1, 3, 3)},
    "VMZ's R(2+1)D": STEM_45 | {"layer1.0.conv2.0.0.weight": (288, 128, 1, 3, 3)},
    "mmaction2's R(2+1)D": {
        "conv1.conv.conv_s.weight": (83, 3, 1, 7, 7),
        "layer1.0.downsample.conv.conv_s.weight": (planes_between(64, 128, (3, 1, 1)), 64, 1, 1, 1),
    },
    "torchvision's 2-D ResNet": {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (128, 64, 3, 3)},
    "torchvision's s3d": {"features.0.0.0.weight": (64, 3, 1, 7, 7), "classifier.1.weight": (400, 1024, 1, 1, 1)},
    "kylemin/S3D": {"base.0.conv_s.weight": (64, 3, 1, 7, 7), "fc.0.weight": (400, 1024, 1, 1, 1)},
    "TengdaHan/CoCLR": {"Conv_1a.conv1.weight": (64, 3, 1, 7, 7)},
    "TengdaHan/CoCLR with gates": {"Mixed_3b.gating_b1.fc.weight": (128, 128)},
    "piergiaj/pytorch-i3d": {"Conv3d_2c_3x3.conv3d.weight": (192, 64, 3, 3, 3)},
    "kinetics-i3d": {"Conv3d_2c_3x3/conv_3d/w": (3, 3, 3, 64, 192)},
    "pseudo-3d-pytorch": {"conv1_custom.weight": (64, 3, 1, 7, 7)},
    "SlowFast's X3D": {"s1.pathway0_stem.conv.weight": (24, 1, 5, 1, 1), "head.lin_5.weight": (2048, 432, 1, 1, 1)},
    "PyTorchVideo's X3D": {
        "blocks.0.conv.conv_t.weight": (24, 3, 1, 3, 3),
        "blocks.1.res_blocks.0.branch2.norm_b.1.block.0.weight": (8, 54, 1, 1, 1),
    },
    "mmaction2's X3D": {"layer3.6.conv2.conv.weight": (432, 1, 3, 3, 3), "cls_head.fc1.weight": (2048, 432)},
    "PyTorchVideo's CSN": {"blocks.2.res_blocks.0.branch2.conv_b.weight": (128, 1, 3, 3, 3)},
    "mmaction2's ir-CSN": {"layer1.0.conv2.0.conv.weight": (128, 1, 3, 3, 3)},
    "mmaction2's ip-CSN": {"layer1.0.conv2.0.conv.weight": (128, 128, 1, 1, 1)},
    "PyTorch ports": {"fc6.weight": (4096, 8192)},
    "SlowFast's MViT": {"blocks.0.attn.qkv.weight": (288, 96), "blocks.0.attn.pool_k.weight": (96, 1, 3, 3, 3)},
    "PyTorchVideo's MViT": {"cls_positional_encoding.pos_embed_spatial": (1, 3136, 96)},
    "torchvision's MViT": {"conv_proj.weight": (96, 3, 3, 7, 7), "pos_encoding.class_token": (96,)},
    "mmaction2's MViT": {"blocks.0.attn.rel_pos_h": (111, 96)},
}


def candidates(shape: tuple[int, ...]):
    """Possible shapes of the published entry for a parameter of this shape."""
    if not shape:
        yield shape
        return
    swapped = (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else shape
    yield from (shape, swapped, (3 * swapped[0], *swapped[1:]), (*swapped, 1, 1, 1), (1, 1, 1, *shape), (1, *shape))
    yield (2 * swapped[0], *swapped[1:])  # keys and values in one layer
    yield from ((1, 1 + prod(shape[:-1]), shape[-1]), (1 + prod(shape[:-1]), shape[-1]))  # with the class token
    yield from ((1, 1, shape[-1]), (shape[0], 1, *shape[1:]))  # the class token, which is repeated; a token per frame
    yield shape[-1:]  # a class token without leading axes
    yield (*swapped[:2], *swapped[3:])  # a transposed convolution of images


def takes(rule: rules.Rule, published: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether the rule converts an entry of the published shape to ours."""
    try:
        value = rule.transform(np.broadcast_to(np.float32(0), published))
        return ours in (value.shape, rule.fit and rule.fit(value, ours, "average").shape)
    except (ValueError, IndexError):
        return False


def weights_for(layout: rules.Layout, places: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Prepared weights of the layout, with an entry for every required parameter and the head."""
    sources, goals = {}, {}  # the (first) entry for each parameter, and the parameters for each entry
    for rule in layout.rules:
        pattern = re.compile(rules._pattern(rule.target))
        for path, match in ((path, pattern.fullmatch(path)) for path in places):
            if match:
                source = rule.source.format(**match.groupdict())
                sources.setdefault(path, source)
                goals.setdefault(source, []).append((rule, path))
    weights, covered = {}, set()
    for path, source in sources.items():
        optional = rules.begins(path, layout.optional) and not path.startswith("head/")
        if not optional and path not in covered:
            shapes = (shape for _, goal in goals[source] for shape in candidates(places[goal]))
            fitting = (s for s in shapes if all(takes(rule, s, places[goal]) for rule, goal in goals[source]))
            weights[source] = np.broadcast_to(np.float32(0), next(fitting))
            covered |= {goal for _, goal in goals[source]}
    return weights


def structure(value: object) -> object:
    """Fields without numbers, which change the size of parameters but not their names."""
    if isinstance(value, dict):
        left_out = ("card", "num_classes")
        return tuple((name, structure(inner)) for name, inner in value.items() if name not in left_out)
    if isinstance(value, tuple):
        return tuple(map(structure, value))
    return None if isinstance(value, int | float) and not isinstance(value, bool) else value


def one_of_each() -> list[str]:
    """The first variant of each structure and set of layouts, excluding tiny ones, which have no published widths."""
    rows = {}
    for row in vidjax.list_models():
        model = create_model(row)
        rows.setdefault((structure(describe(model)), *(layout.name for layout in layouts(model))), row)
    return list(rows.values())


@pytest.mark.long
@pytest.mark.parametrize("row", one_of_each())
def test_the_listed_layouts_load(row, monkeypatch):
    """A file with the required entries of the layout fills every parameter; no memory is allocated."""
    monkeypatch.setattr(conversion, "_like", lambda leaf, value: leaf)
    model, shapes, _ = shapes_of(row)
    places = {path.removeprefix("params/"): leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    for layout in layouts(model):
        weights = weights_for(layout, places)
        published = AS_PUBLISHED.get(layout.name, {})
        assert set(published) <= set(weights), layout.name
        weights |= {name: np.broadcast_to(np.float32(0), shape) for name, shape in published.items()}
        assert layout.marker in weights, layout.name
        _, report = conversion.apply(layout, weights, shapes)
        assert not report.unused
        assert all(rules.begins(path, (*layout.optional, *layout.absent)) for path in report.new), layout.name

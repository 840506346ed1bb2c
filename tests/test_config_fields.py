"""Checks of configs that are created in Python rather than from a command line."""

import dataclasses
import importlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import flax.linen as nn
import pytest

from benchmark import commands
from vidjax import cli
from vidjax.data.config import AugmentConfig, ClipConfig
from vidjax.fields import check_values, choices, matters
from vidjax.runs.adapting import AdaptConfig
from vidjax.training.loop import LoopConfig
from vidjax.training.optimizer import OptimizerConfig

SCRIPTS = Path(__file__).resolve().parents[1] / "experiments"
sys.path.insert(0, str(SCRIPTS))

WRONG = [
    (OptimizerConfig, {"kind": "adam"}, "optim.kind is 'adam': choose one of adamw, sgd"),
    (OptimizerConfig, {"learning_rate": float("nan")}, "optim.learning_rate is nan: it must be a finite number"),
    (OptimizerConfig, {"milestones": (1.0, float("inf"))}, "optim.milestones is inf: it must be a finite number"),
    (OptimizerConfig, {"beta1": 1.5}, "optim.beta1 is 1.5: it must be at least 0 and below 1"),
    (
        OptimizerConfig,
        {"milestones": (1.0,), "cosine_from_start": True},
        "optim.cosine_from_start has no effect with optim.milestones: omit one of them",
    ),
    (
        OptimizerConfig,
        {"milestones": (1.0,), "linear": True},
        "optim.linear has no effect with optim.cosine_from_start or milestones: omit one of them",
    ),
    (LoopConfig, {"keep_every": 0}, "loop.keep_every is 0: it must be 1 or more, or omitted"),
    (
        AdaptConfig,
        {"method": "ia3"},
        "adapt.method is 'ia3': choose one of none, lora, dora, bias, adapter, adaptformer, st_adapter, aim, prompt",
    ),
    (AdaptConfig, {"rank": 0}, "adapt.rank is 0: it must be 1 or more"),
    (
        AdaptConfig,
        {"method": "aim", "everywhere": True},
        "adapt.everywhere is for --adapt prompt and st_adapter: omit it",
    ),
    (AdaptConfig, {"alpha": -1.0}, "adapt.alpha is -1.0: it must be above 0, or omitted"),
    (ClipConfig, {"sampling": "tsn"}, "data.sampling is 'tsn': choose one of dense, segments, uniform"),
    (ClipConfig, {"consecutive": 4}, "data.consecutive is for --data.sampling segments, not dense: omit it"),
    (
        ClipConfig,
        {"consecutive": 5, "sampling": "segments"},
        "data.frames is 16: it must be a multiple of data.consecutive, 5",
    ),
    (AugmentConfig, {"crop": None}, "augment.crop is None: choose one of multi_scale, random_resized, center"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "fields", "message"), WRONG)
def test_invalid_values_raise(kind, fields, message):
    with pytest.raises(ValueError) as error:
        kind(**fields)
    assert str(error.value) == message


def test_choices_are_collected_from_nested_types():
    @dataclasses.dataclass
    class Some:
        many: tuple[Literal["a", "b"], ...] = ("a",)
        one: Annotated[Literal["c"] | None, "of the command line"] = None
        number: float | None = None

    assert choices(tuple[Literal["a", "b"], ...]) == ("a", "b") and choices(float) == ()
    check_values(Some(("b", "a"), "c", 1.5))
    for wrong, message in (
        (Some(("a", "x")), "x.many is 'x': choose one of a, b"),
        (Some(one="d"), "x.one is 'd'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_values(wrong, "x.")


LOOP = {f"loop.{field.name}" for field in dataclasses.fields(LoopConfig)}
NEVER = LOOP | {"data.workers", "data.max_bad_share", "remat", "scan", "fsdp", "sequence", "dry_run", "distributed"}
SCRIPTS_THAT_TRAIN = {
    "mae_pretrain": (NEVER, {"init_from"}),
    "jepa_pretrain": (NEVER, {"init_from"}),
    "token_pretrain": (NEVER, {"init_from"}),
    "text_to_image": (NEVER, {"init_from"}),
    "umt_pretrain": (NEVER, {"init_from"}),
    "vatt_pretrain": (NEVER, {"init_from"}),
    "finetune": (NEVER, {"init_from", "keep_head"}),
    "localize": (NEVER, {"init_from", "init_encoder_from", "positives"}),
    "detect": (NEVER, {"init_from", "keep_head"}),
    "ground": (NEVER - {"data.workers"}, {"init_from"}),
    "vision_language_pretrain": (NEVER, {"init_from", "init_video_from", "init_text_from"}),
    "blip2_pretrain": (NEVER, {"init_from", "init_video_from", "init_language_from"}),
    "adaptive": (NEVER | {"budgets"}, {"init_from"}),
    "preference_tune": (NEVER, set()),
    "video_language_pretrain": (NEVER | {"chunk"}, {"init_from", "init_video_from", "init_text_from"}),
    "cross_model": (NEVER, {"init_from", "init_masked_from", "init_contrastive_from"}),
    "contrastive_pretrain": (NEVER | {"chunk"}, {"init_from", "init_video_from", "init_text_from"}),
}


@pytest.mark.parametrize("script", SCRIPTS_THAT_TRAIN)
def test_fields_that_may_change_when_resuming(script):
    config = __import__(script).Config()
    when = {name: matters(config, name) for name in cli._flags(config)}
    names = [{name for name in when if when[name] == kind} for kind in ("never", "at the start")]
    assert names == list(SCRIPTS_THAT_TRAIN[script])


MODULES = [importlib.import_module(path.stem) for path in SCRIPTS.glob("*.py")]
NAMES = [vars(module).values() for module in (*MODULES, commands)]  # `benchmark` is the empty package
SEEN = {each for names in NAMES for each in names if isinstance(each, type)}
CONFIGS = [kind for kind in SEEN if dataclasses.is_dataclass(kind) and not issubclass(kind, nn.Module)]
LITERAL = [kind for kind in CONFIGS if any(choices(f.type) for f in dataclasses.fields(kind))]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("config", sorted(LITERAL, key=str), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_config_of_a_script_checks_its_literal_fields(config):
    literals = [field for field in dataclasses.fields(config) if choices(field.type)]
    needed = {f.name: "x" for f in dataclasses.fields(config) if f.default is f.default_factory is dataclasses.MISSING}
    for field in literals:
        value = ("neither",) if isinstance(field.default, tuple) else "neither"
        with pytest.raises(ValueError, match=f"{field.name} is 'neither': choose one of"):
            config(**needed, **{field.name: value})

"""Training few parameters of a model whose others are frozen: their choice, the run's state and the merged model.

The state's `params` are the few parameters, under the paths of the modules that they change; its `frozen` are those of
the base, which no checkpoint repeats. The loss sees the parameters of the whole model, so that it does not differ.

LoRA, DoRA and the biases change the parameters of any model. Adapters and prompts (`layers.adapters`) are further
modules of a model that has a field for them.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Key, PyTree

from vidjax.convert.checkpoint import NAME, read_model
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.layers import low_rank
from vidjax.layers.adapters import METHODS, Adapter, Method, is_added
from vidjax.models import create_model, variable_shapes

BASE = "base.json"
"""File in a work directory with the norm of the frozen parameters, by which the base is recognised when loading."""


def choose_trained(config: Any, model: nn.Module) -> PyTree[bool] | None:
    """The mask of the trained parameters, of a script's config with `tune`, `tuned_blocks` and `adapt`.

    None if all are trained. A model may freeze some (UniFormerV2).
    """
    from vidjax.training.optimizer import trained_parameters  # reading a run does not need Optax

    frozen = getattr(model, "frozen_parts", ())
    if config.adapt.used or (config.tune == "full" and not frozen):
        return None
    params = variable_shapes(model)["params"]
    if config.tune == "linear_probe":
        return {name: jax.tree.map(lambda _, head=name == "head": head, part) for name, part in params.items()}
    return trained_parameters(params, config.tuned_blocks if config.tune == "partial" else None, frozen)


class Split:
    """Which parameters of a model are trained, in `params` of the state; the others are in its `frozen`.

    Attributes:
      used: false if all are trained, by the optimiser's own mask.
    """

    used: bool

    def split(self, params: PyTree, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """The trained parameters at the start of a run, and the frozen ones."""
        raise NotImplementedError

    def merge(self, few: PyTree, frozen: PyTree) -> dict[str, PyTree]:
        """The parameters of the model."""
        raise NotImplementedError

    def remember(self, workdir: Path, source: str, frozen: PyTree) -> None:
        """Records the frozen parameters, which no checkpoint has, when a run begins or is resumed."""
        raise NotImplementedError

    def loss(self, loss_fn: Callable) -> Callable:
        """The same `training.step.LossFn` of the few parameters; `aux.frozen` is a pair, those frozen and its own."""

        def adapted(few: PyTree, aux: Any, *rest: Any) -> Any:
            frozen, own = aux.frozen
            ema = None if aux.ema is None else self.merge(aux.ema, frozen)
            return loss_fn(self.merge(few, frozen), aux.replace(ema=ema, frozen=own), *rest)

        return adapted


@dataclasses.dataclass(frozen=True)
class AdaptConfig(Split):
    """Training few parameters beside those of init_from, which are frozen and not saved again."""

    method: Literal["none", "lora", "dora", "bias"] | Method = "none"
    """LoRA, DoRA, only the biases, adapters or prompts in the blocks; none trains the model itself (see tune)."""
    rank: int = 8
    """Columns of LoRA's and DoRA's factors, width of an adapter's bottleneck, or number of prompts."""
    everywhere: bool = False
    """Prompts before each block instead of only the first; ST-Adapter before attention too, not only before the MLP."""
    alpha: float | None = None
    """The product of the factors is scaled by alpha / rank (default: twice the rank)."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead."""
    targets: tuple[str, ...] = ("query", "value")
    """Linear layers and convolutions that LoRA and DoRA change: patterns of paths, as block_1?/attention/* or fc1."""
    also: tuple[str, ...] = ("head",)
    """Parameters that are trained themselves, in the same form."""
    frozen_type: Literal["float32", "bfloat16"] = "float32"
    """How frozen kernels and tables are kept; bfloat16 takes half of their memory if it is the compute type too."""

    def __post_init__(self) -> None:
        check_values(self, "adapt.")
        if self.rank < 1:
            raise UserError(f"adapt.rank is {self.rank}: it must be 1 or more")
        if self.everywhere and self.method not in ("st_adapter", "prompt"):
            raise UserError("adapt.everywhere is for --adapt prompt and st_adapter: omit it")
        if self.alpha is not None and self.alpha <= 0:
            raise UserError(f"adapt.alpha is {self.alpha}: it must be above 0, or omitted")
        for field in dataclasses.fields(self):
            of_product = field.name in ("alpha", "rank_stabilized", "targets")
            if of_product and self.method in METHODS and getattr(self, field.name) != field.default:
                raise UserError(f"adapt.{field.name} is for LoRA and DoRA, not for {self.method}: omit it")

    def check(self, config: Any) -> None:
        """Checks this part of a script's config against `init_from` and `tune`.

        Raises:
          UserError: they contradict each other.
        """
        if not self.used:
            set_fields = [each.name for each in dataclasses.fields(self) if getattr(self, each.name) != each.default]
            if set_fields:
                raise UserError(f"adapt.{set_fields[0]} is of few parameters: give --adapt too, such as --adapt lora")
            return
        if not config.init_from:
            raise UserError(f"adapt {self.method} needs the weights that it adapts: give --init_from")
        if config.distributed:
            raise UserError(f"adapt {self.method} trains in one process: omit --distributed")
        if config.tune != "full":
            raise UserError(f"adapt {self.method} chooses the trained parameters itself: omit --tune {config.tune}")

    @property
    def used(self) -> bool:
        """Whether few parameters are trained."""
        return self.method != "none"

    @property
    def adapter(self) -> Adapter | None:
        """What the model is created with."""
        return Adapter(self.method, self.rank, self.everywhere) if self.method in METHODS else None

    def fields(self, name: str, source: str | None) -> dict[str, Adapter]:
        """Fields of the model that is adapted, by its name; it keeps the adapters that the weights of a run have.

        Args:
          source: the weights that training starts from.

        Raises:
          UserError: the model has no place for adapters, or the weights have some already.
        """
        path, has_place = Path(source or "").expanduser(), "adapter" in create_model(name).__dataclass_fields__
        own = getattr(read_model(path), "adapter", None) if has_place and source and (path / NAME).is_file() else None
        if self.adapter is None:
            return {"adapter": own} if own else {}
        if own:
            raise UserError(f"{source} already has adapters: adapt its base, or train it whole, with --adapt none")
        if not has_place:
            raise UserError(
                f"adapt {self.method}: the blocks of {name} have no place for it: use --adapt lora, which any model "
                "can, or a model of ViT, VideoMAE, ViViT or TimeSformer"
            )
        return {"adapter": self.adapter}

    def added(self, params: PyTree) -> list[str]:
        """The paths of the parameters that the base does not have."""
        return [] if self.adapter is None else [path for path in flatten_dict(params, sep="/") if is_added(path)]

    @property
    def scale(self) -> float:
        """The factor of LoRA's product."""
        return low_rank.scale_of(self.rank, self.full_alpha, self.rank_stabilized)

    @property
    def full_alpha(self) -> float:
        """Alpha, or its default."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def split(self, params: PyTree, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        """The few parameters at the start of a run, and the frozen ones.

        Raises:
          UserError: a pattern meets no parameter.
        """
        flat = flatten_dict(params, sep="/")
        trained = set(low_rank.choose(params, self.also, "adapt.also")) | set(self.added(params))
        trained |= set(low_rank.choose(params, ["*"], "adapt.method bias", "bias")) if self.method == "bias" else set()
        few = {path: leaf for path, leaf in flat.items() if path in trained}
        if self.method in ("lora", "dora"):
            chosen = low_rank.choose(params, self.targets, "adapt.targets", "kernel")
            kernels = {path: jnp.asarray(flat[path]) for path in chosen if path not in trained}
            few |= low_rank.start(kernels, self.rank, key, self.method == "dora")
        frozen = {path: self.stored(leaf) for path, leaf in flat.items() if path not in trained}
        return unflatten_dict(few, sep="/"), unflatten_dict(frozen, sep="/")

    def stored(self, leaf: Array | np.ndarray) -> Array | np.ndarray:
        """A frozen parameter as it is kept; biases and norms, of one axis, are as they were."""
        return leaf.astype(jnp.bfloat16) if self.frozen_type == "bfloat16" and leaf.ndim > 1 else leaf

    def merge(self, few: PyTree, frozen: PyTree) -> dict[str, PyTree]:
        """The parameters of the model."""
        return low_rank.merge(frozen, few, self.scale)

    def remember(self, workdir: Path, source: str, frozen: PyTree) -> None:
        """Records where the frozen parameters come from, or checks that they are those of the run's start.

        Raises:
          UserError: the run has begun with others.
        """
        norm = _norm(frozen)
        if not (workdir / BASE).is_file():
            source = str(Path(source).expanduser().absolute()) if Path(source).expanduser().exists() else source
            (workdir / BASE).write_text(json.dumps({"init_from": source, "norm": norm}) + "\n")
        _require_same(workdir, norm)


WHOLE = AdaptConfig()
"""No adaptation: the model itself is trained."""


def read_adaptation(config: Mapping[str, Any]) -> AdaptConfig | None:
    """The adaptation of a run, from its config as saved; None if it has trained a model itself."""
    saved = config.get("adapt", {})
    adapt = AdaptConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()})
    return adapt if adapt.used else None


def require_loaded(config: AdaptConfig, params: PyTree, new: Sequence[str], source: str | Path) -> None:
    """Checks that no parameter stays as it was initialised.

    Args:
      params: those of the model, or their shapes.
      new: paths of those that `source` does not have.

    Raises:
      UserError: one of them would be frozen.
    """
    shapes = jax.eval_shape(lambda params: config.split(params, jax.random.key(0))[1], params)
    frozen = flatten_dict(shapes, sep="/")
    if lost := [path for path in new if path in frozen]:
        parts = " ".join(dict.fromkeys(path.rpartition("/")[0] or path for path in lost))
        raise UserError(
            f"adapt: {source} does not have {lost[0]}, which would stay as it was initialised: train it too, with "
            f"--adapt.also {' '.join(config.also)} {parts}"
        )


def base_of(workdir: Path) -> str:
    """The weights that a run adapts.

    Raises:
      UserError: they are not recorded.
    """
    return str(_read(workdir)["init_from"])


def with_base(
    workdir: Path, config: AdaptConfig, weights: Mapping[str, np.ndarray], base: PyTree
) -> dict[str, np.ndarray]:
    """The variables of the adapted model by path, from those that a run has saved and its base.

    Args:
      weights: the saved variables by path, the few parameters below `params/`.
      base: parameters of the model with those of `base_of`.

    Raises:
      UserError: the base is not the one that the run has adapted.
    """
    few = {path.removeprefix("params/"): value for path, value in weights.items() if path.startswith("params/")}
    others = {path: value for path, value in weights.items() if not path.startswith("params/")}
    frozen = {path: config.stored(leaf) for path, leaf in flatten_dict(base, sep="/").items() if path not in few}
    _require_same(workdir, _norm(frozen))
    merged = flatten_dict(config.merge(unflatten_dict(few, sep="/"), unflatten_dict(frozen, sep="/")), sep="/")
    return {f"params/{path}": np.asarray(leaf, np.float32) for path, leaf in merged.items()} | others


def _read(workdir: Path) -> dict[str, Any]:
    try:
        return json.loads((workdir / BASE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{workdir / BASE} cannot be read ({error}): restore it from a copy") from error


def _require_same(workdir: Path, norm: float) -> None:
    described = _read(workdir)
    if not np.isclose(norm, described["norm"], rtol=1e-8, atol=0):
        raise UserError(
            f"{described['init_from']} no longer has the weights that {workdir} adapts: restore them, the run itself "
            "has only its few parameters"
        )


def _norm(params: PyTree) -> float:
    """The norm of all parameters in double precision, which changes with every step of training."""
    flat = (np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(params))
    return float(np.sqrt(sum(leaf @ leaf for leaf in flat)))

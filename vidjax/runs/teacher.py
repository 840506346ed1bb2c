"""A frozen classifier as the teacher of another one, of the same stream or of another (D3D)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.data.config import LabelledDataConfig
from vidjax.errors import UserError
from vidjax.fields import require_not_negative
from vidjax.objectives.distillation import match
from vidjax.runs.clips import usual_clips
from vidjax.runs.computing import computing_type
from vidjax.runs.config import TrainConfig
from vidjax.runs.weights import keep_classes, load_pretrained, require_source
from vidjax.runs.workdir import is_run
from vidjax.training.sharding import is_main_process
from vidjax.training.step import valid_mean

if TYPE_CHECKING:  # PyAV is imported when it is needed
    from vidjax.data.sources import Source


class Teacher(NamedTuple):
    """A frozen classifier.

    Attributes:
      model: the classifier; its variables are `aux.frozen`.
      stream: the stream of the source whose clips it sees.
      field: the array of a batch with these clips: `video` if the student sees the same stream.
      channels: of the stream.
      weights: of the loss of the logits and of the features.
      dtype: of the stream.
    """

    model: nn.Module
    stream: str
    field: str
    channels: int
    weights: tuple[float, float]
    dtype: Any = jnp.uint8

    def shapes(self, data: LabelledDataConfig) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Shape and type of the field of an example that the teacher sees in addition to those of the student."""
        shape = (data.frames, data.size, data.size, self.channels)
        return {} if self.field == "video" else {self.field: (shape, self.dtype)}

    @property
    def fields(self) -> tuple[str, ...]:
        """The field that batches have for the teacher."""
        return () if self.field == "video" else (self.field,)


@dataclass(frozen=True)
class TaughtConfig(TrainConfig):
    """Base config of a training script whose model can learn from a frozen teacher too."""

    teacher: str | None = None
    """Also learn the logits of this frozen classifier, a run or a published checkpoint of any stream (D3D)."""
    teacher_weight: float = 1.0
    """Weight of the squared difference to the teacher's logits."""
    teacher_features: float = 0.0
    """Weight of the squared difference to the features that the teacher's head sees; 0 disables it."""
    label_weight: float = 1.0
    """Weight of the labels' own loss beside the teacher's; 0 learns from the teacher alone, as of unlabelled clips."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_not_negative(self, "teacher_weight", "teacher_features", "label_weight")
        if self.teacher is None and self.label_weight != 1:
            raise UserError("label_weight weighs labels against a teacher: give --teacher too")
        if self.teacher is None and self.teacher_features:
            raise UserError("teacher_features are those of a teacher: give --teacher too")
        if self.teacher is not None and not (self.teacher_weight or self.teacher_features):
            raise UserError("teacher_weight and teacher_features are 0: raise one of them, or omit --teacher")


def load_teacher(config: Any, model: nn.Module, source: "Source") -> tuple[Teacher, dict]:
    """The teacher of a script's config, and its variables.

    It sees the clips of the stream that it was trained on, at the same times and with the same crop. A published
    checkpoint sees the student's stream if it has as many channels, and otherwise the only stream that does.

    Args:
      model: the student.
      source: the training videos.

    Raises:
      UserError: there are no such weights, they are of no classifier or of other classes, the source has no stream for
        it, it takes no such clips, or the features differ in width.
    """
    name, data, classes = config.teacher, config.data, source.class_names
    require_source("teacher", name)
    settings = {"verbose": is_main_process(), "dtype": computing_type(config.dtype)}
    teacher, variables = load_pretrained(name, **settings)
    if getattr(teacher, "num_classes", None) is None:
        raise UserError(f"teacher {name} has no classes: give a classifier, such as a run of finetune.py")
    if teacher.card.class_names and teacher.card.class_names != classes:
        teacher, variables = keep_classes(teacher, variables, classes, f"teacher {name}")
    if teacher.num_classes != len(classes):
        raise UserError(f"teacher {name} has {teacher.num_classes} classes, the data {len(classes)}: give another")

    channels = len(teacher.card.mean)
    stream = usual_clips(name, teacher)["stream"] if is_run(name) else _stream_of(name, channels, data.stream, source)
    spec = source.specs([stream])[stream]
    if spec.shape != (channels,):
        raise UserError(f"teacher {name} takes {channels} channels, which {stream} of {source.name} does not have")
    if stream == "video" and data.stream != "video":
        raise UserError(
            f"teacher {name} sees frames and data.stream is {data.stream}: choose a teacher of flow or both"
        )
    weights = config.teacher_weight, config.teacher_features
    field = "video" if stream == data.stream else stream
    chosen = Teacher(teacher, stream, field, channels, weights, jnp.dtype(spec.dtype))

    def features_of(module: nn.Module, values: dict | None, channels: int) -> tuple[int, ...] | None:
        clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, channels), jnp.float32)
        values = jax.eval_shape(module.init, jax.random.key(0), clip) if values is None else values
        features = jax.eval_shape(partial(with_features, module.apply), values, clip)[1]
        return None if features is None else features.shape

    try:
        width = features_of(teacher, variables, channels)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"teacher {name} takes no clips of {data.frames}x{data.size}x{data.size}: {reason}") from error
    if config.teacher_features:
        own = features_of(model, None, len(model.card.mean))
        if own is None or own != width:
            raise UserError(f"teacher_features: the teacher's are of shape {width}, the model's {own}: omit it")
    return chosen, variables


def _stream_of(name: str, channels: int, usual: str, source: "Source") -> str:
    """The stream of a source with so many channels, by preference the usual one."""
    fitting = [key for key, spec in source.fields.items() if spec.kind == "frames" and spec.shape == (channels,)]
    if usual in fitting or len(fitting) == 1:
        return usual if usual in fitting else fitting[0]
    raise UserError(
        f"teacher {name} takes {channels} channels, which {len(fitting)} streams of {source.name} have: extract "
        "their flow (extract_flow.py), or fine-tune the teacher on a stream first"
    )


def with_features(apply: Callable, *args: Any, **settings: Any) -> tuple[Any, Float[Array, "b d"] | None]:
    """What a model's `apply` returns, and the features that its head sees; None if it has no single ones."""
    seen = []

    def record(call: Callable, args: tuple, settings: dict, context: Any) -> Any:
        output = call(*args, **settings)
        if context.method_name == "embed" and context.module.path == ():
            seen.append(output)
        return output

    with nn.intercept_methods(record):
        output = apply(*args, **settings)
    return output, seen[0] if len(seen) == 1 else None


def distill(
    teacher: Teacher,
    frozen: dict,
    batch: dict[str, Array],
    mix: Callable,
    logits: Float[Array, "b classes"],
    features: Float[Array, "b d"] | None,
) -> tuple[Float[Array, "b"], dict[str, Array]]:
    """The weighted losses of each clip, and metrics: the losses, and how often both predict the same class.

    Args:
      mix: the mixing that the student's clips have gone through, of pixels in [0, 1] to a pair that begins with pixels.
      logits, features: the student's.
    """
    card, valid = teacher.model.card, batch["valid"]
    clips = card.normalize(mix(card.scale(batch[teacher.field]))[0])
    taught, known = with_features(teacher.model.apply, frozen, clips)
    of_logits, of_features = teacher.weights
    losses = match(logits, taught)
    metrics = {
        "teacher_loss": valid_mean(losses, valid),
        "teacher_agreement": valid_mean(logits.argmax(axis=-1) == taught.argmax(axis=-1), valid),
    }
    total = of_logits * losses
    if of_features:
        losses = match(features, known)
        metrics["teacher_features_loss"] = valid_mean(losses, valid)
        total += of_features * losses
    return total, metrics

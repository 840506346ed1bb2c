"""Pre-train a video and a text tower together on captioned videos (CLIP, arXiv:2103.00020; ActionCLIP, 2109.08472).

Tiny towers on rendered videos, minutes on a laptop: python experiments/contrastive_pretrain.py

Any video model of the library with a text tower of CLIP's size, from scratch:
python experiments/contrastive_pretrain.py --video_model vivit_base_16x2_factorized_encoder --text_model clip_base \
    --tokenizer bpe_simple_vocab_16e6.txt.gz --data.source captions.jsonl --workdir runs/c

ActionCLIP on labelled videos, from CLIP's weights: python experiments/contrastive_pretrain.py actionclip_base_16_k400 \
    --init_from openai/clip-vit-base-patch16 --tokenizer openai/clip-vit-base-patch16 --data.source k400.csv

The same command again goes on where the run stopped. Expected results: docs/results.md.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

import vidjax
from vidjax import cli, convert, matching, runs
from vidjax.convert.checkpoint import read_model, write_model
from vidjax.data.config import AugmentConfig, CaptionedDataConfig
from vidjax.errors import UserError
from vidjax.evaluation.recognition import recognition
from vidjax.evaluation.retrieval import retrieval
from vidjax.evaluation.zero_shot import zero_shot
from vidjax.fields import check_values, free, initial
from vidjax.layers.normalization import valid_clips
from vidjax.matching import clip_encoder, text_encoder
from vidjax.models import create_text_model
from vidjax.models.video_text import Projected, VideoText
from vidjax.objectives import contrastive
from vidjax.report import describe_losses, describe_run, describe_span, describe_speed, describe_starvation, tell_notes
from vidjax.training.checkpoint import has_checkpoint
from vidjax.training.cost import count_macs
from vidjax.training.loop import FitResult, LoopConfig, fit
from vidjax.training.memory import dry_run
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.sharding import (
    check_batch_size,
    jit_step,
    state_sharding,
    this_process,
)
from vidjax.training.state import TrainState, create_state
from vidjax.training.step import make_train_step
from vidjax.visualize.curves import save_curves
from vidjax.visualize.similarity import save_similarity

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source
    from vidjax.data.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class Config:
    """A contrastive pre-training run."""

    video_model: str = "vivit_base_16x2_factorized_encoder"
    """One of vidjax.list_models(); clip_* and actionclip_* bring their text tower along."""
    text_model: str | None = "clip_base"
    """text_tiny, clip_base, clip_large, bert_tiny or bert_base; not for models that bring their own."""
    features: int | None = None
    """Width of the embedding that both towers are projected to (default: the text model's)."""
    tokenizer: str = "bytes"
    """bytes, CLIP's vocabulary (its file, or a directory that holds it), or any tokenizer.json."""
    context: int | None = None
    """Tokens of a caption, start and end included; what is longer is cut (default: as many as the text model has)."""
    init_from: str | None = initial(None)
    """Start from the weights of a whole: a run of this script, a CLIP or an ActionCLIP (file, directory or hub id)."""
    init_video_from: str | None = initial(None)
    """Start the video tower from another run's work directory or from a published checkpoint of its family."""
    init_text_from: str | None = initial(None)
    """Start the text tower likewise."""
    freeze: Literal["none", "video", "text"] = "none"
    """A tower that stays as it is."""
    workdir: str = "runs/contrastive_pretrain"
    """Where everything goes; the same command again resumes."""
    data: CaptionedDataConfig = CaptionedDataConfig()
    """The videos and their captions."""
    objective: Literal["info_nce", "sigmoid", "kl", "kl_normalized"] = "info_nce"
    """CLIP's; SigLIP's; ActionCLIP's for labels, as released (targets softmax(10 gt)) or as in the paper (gt / sum)."""
    chunk: int | None = free(None)
    """Columns of the similarity matrix computed at once, to save memory (default: all)."""
    batch_size: int = 256
    """Pairs a step, over all devices, all compared with each other; the learning rate is scaled by it."""
    epochs: float = 30
    """Passes over the source."""
    steps: int | None = None
    """Steps in all, instead of epochs."""
    optim: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, final_learning_rate=1e-7, warmup_epochs=1, beta2=0.98, weight_decay=0.2
    )
    """Optimiser and schedule."""
    head_factor: float = 1.0
    """Factor of the learning rate of ActionCLIP's temporal head."""
    loop: LoopConfig = free(LoopConfig())
    """Logging, saving, validating, stopping."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of computation (parameters are float32): auto is bfloat16, on a CPU float32."""
    remat: Literal["none", "dots", "blocks"] = free("none")
    """What the backward pass computes again to save memory."""
    scan: bool = free(False)
    """Compile one block for all and run it in a loop, at the cost of a copy of the parameters."""
    ema_decay: float | None = None
    """Keep a moving average of the parameters with this decay; it is what is validated."""
    fsdp: int = free(1)
    """Devices that share one copy of the parameters."""
    sequence: int = free(1)
    """Devices that share the tokens of one clip, for clips too long for one (ring attention)."""
    dry_run: bool = free(False)
    """Only say how much memory each device needs, from the compiled step; nothing is loaded or written."""
    distributed: bool = free(False)
    """Join the other processes of a cluster (jax.distributed); all are given the same command."""
    accept_changes: bool = False
    """Go on with a begun run although flags that change its numbers are other ones; metrics.jsonl says since when."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)
        for name in ("epochs", "steps", "chunk", "features"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name} is {value}: it must be above 0")
        if self.batch_size < 2:
            raise UserError(f"batch_size is {self.batch_size}: a pair is compared with others, so give 2 or more")
        if self.chunk is not None and self.batch_size % self.chunk:
            raise UserError(f"chunk is {self.chunk}: it must divide the batch of {self.batch_size}")
        if self.context is not None and self.context < 3:
            raise UserError(f"context is {self.context}: it must be 3 or more, for a start, a token and an end")
        if self.optim.layer_decay != 1:
            raise UserError("optim.layer_decay counts the layers of one model, and here are two: leave it out")
        if self.data.repeats > 1 and not self.objective.startswith("kl"):
            raise UserError(
                f"data.repeats is {self.data.repeats}: {self.objective} would tell a video from itself, so leave it out"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"ema_decay is {self.ema_decay}: it must lie between 0 and 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: it must be 0 or more")
        if self.objective.startswith("kl") and self.data.templates is None:
            raise UserError(f"objective {self.objective} compares labels: give --data.templates, actionclip say")
        if self.init_from and (self.init_video_from or self.init_text_from):
            raise UserError("init_from is about both towers: give it, or init_video_from and init_text_from")

    @property
    def accumulation(self) -> int:
        """Micro-batches a step: one, as every pair is compared with the whole batch."""
        return 1

    @property
    def model(self) -> str:
        """What a report calls the two towers."""
        return self.video_model + (f" and {self.text_model}" if self.text_model else "")


DEMO = Config(
    video_model="r2plus1d_tiny",
    text_model="text_tiny",
    data=CaptionedDataConfig(
        frames=8,
        size=32,
        short_side=32,
        stride=2,
        augment=AugmentConfig(crop="center"),
        split="compositions_train",
        validation="synthetic:moving_shapes",
        validation_split="compositions_held_out",
        validation_examples=256,
    ),
    batch_size=64,
    steps=340,
    optim=OptimizerConfig(
        learning_rate=4e-3, final_learning_rate=4e-5, warmup_epochs=0.3, beta2=0.98, weight_decay=0.05, clip_norm=1.0
    ),
    loop=LoopConfig(log_every=20, save_every=170, evaluate_every=170),
)
# sallymmx/ActionCLIP, configs/k400 and utils/solver.py: 5e-6 for 128 clips. Its RandAugment and colour jitter change
# every frame by itself, here the clip as a whole; it decays biases and norms too, which here nothing does.
ACTIONCLIP = Config(
    video_model="actionclip_base_16",
    text_model=None,
    objective="kl",
    data=CaptionedDataConfig(
        frames=8,
        sampling="segments",
        short_side=256,
        templates="actionclip",
        augment=AugmentConfig(
            crop="multi_scale", flip=True, color_jitter=0.4, grey=0.2, rand_augment_ops=2, rand_augment_magnitude=9
        ),
    ),
    batch_size=128,
    epochs=50,
    optim=OptimizerConfig(
        learning_rate=1e-5, warmup_learning_rate=0.0, final_learning_rate=0.0, warmup_epochs=5, beta2=0.98,
        weight_decay=0.2,
    ),
    head_factor=10.0,
    loop=LoopConfig(log_every=50),
)  # fmt: skip

RECIPES = {
    "demo": DEMO,
    "videos": Config(),  # one's own
    "actionclip_base_32_k400": dataclasses.replace(ACTIONCLIP, video_model="actionclip_base_32"),  # 78.4, 1x1 views
    "actionclip_base_16_k400": ACTIONCLIP,  # 81.1, 1x1 views, from CLIP's weights
}


def default_recipe(argv: list[str]) -> str:
    """Without a recipe's name: `videos` for one's own source, `demo` for the embedded one."""
    return "videos" if any(word.split("=")[0] == "--data.source" for word in argv) else "demo"


def make_model(config: Config, tokenizer: "Tokenizer") -> VideoText:
    """The two towers for these clips and this tokeniser.

    Raises:
      UserError: towers that do not go together.
    """
    if config.video_model.endswith("_pretrain"):
        raise UserError(f"video_model {config.video_model} is for masked pre-training: give it without _pretrain")
    fields = runs.computing_fields(config, config.video_model)
    video = vidjax.create_model(
        config.video_model, num_frames=config.data.frames, image_size=config.data.size, **fields
    )
    bias = -10.0 if config.objective == "sigmoid" else None
    given = {name: value for name in ("features", "context") if (value := getattr(config, name)) is not None}
    if isinstance(video, VideoText):
        if config.text_model:
            raise UserError(f"video_model {config.video_model} brings its own text tower: give --text_model None")
        for name, value in given.items():
            if value != getattr(video.text, name):
                raise UserError(
                    f"{name} is {value}, but {config.video_model} has {getattr(video.text, name)}: leave it out"
                )
        matching.check_tokenizer(tokenizer, video)
        return video.clone(bias=bias)
    if config.text_model is None:
        raise UserError(f"video_model {config.video_model} needs a text tower: give --text_model")
    video = video.clone(num_classes=None)
    fields.pop("implementation", None)  # of the video's attention; a caption is short
    text = create_text_model(config.text_model, vocabulary=tokenizer.vocabulary, **given, **fields)
    if "end_token" in text.__dataclass_fields__:
        if tokenizer.end is None:
            raise UserError(
                f"tokenizer {tokenizer.name} puts no end token behind a text, where {config.text_model} reads its "
                "feature: give one that does, or a bert_* as --text_model"
            )
        text = text.clone(end_token=tokenizer.end)
    return VideoText(Projected(video, text.features, fields["dtype"]), text, card=video.card, bias=bias)


def open_sources(config: Config) -> tuple["Source", "Source | None"]:
    """Training and validation videos, with captions of their own or made of their classes."""
    from vidjax.data.prompts import check_names, read_templates
    from vidjax.data.sources import draw, open_source, require_captions, with_captions, with_classes

    data = config.data
    templates = None if data.templates is None else read_templates(data.templates)

    def captioned(source: "Source") -> "Source":
        if templates is not None:
            return with_captions(source, templates)
        require_captions(source)
        return source

    source = captioned(open_source(data.source, data.split, data.square_pixels))
    if len(source) < 2:
        raise UserError(f"data.source {data.source} has {len(source)} videos: pairs are compared, so give 2 or more")
    if config.batch_size > len(source) and not config.objective.startswith("kl"):
        raise UserError(
            f"a batch of {config.batch_size} holds some of the {len(source)} videos of {source.name} twice, and "
            f"{config.objective} would tell them from themselves: give --batch_size {len(source)} or less"
        )
    if data.validation is None:
        return source, None
    validation = open_source(data.validation, data.validation_split, data.square_pixels)
    if templates is not None:
        validation = with_classes(validation, source.class_names)
    check_names(validation.class_names)
    return source, draw(captioned(validation), data.validation_examples, config.seed)


def make_loss(config: Config, model: VideoText) -> Callable:
    """The one place where model and objective meet."""

    def loss_fn(params: Any, model_state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
        if config.freeze != "none":
            params = params | {config.freeze: jax.lax.stop_gradient(params[config.freeze])}
        variables, valid = {"params": params, **model_state}, batch["valid"]
        clips = model.card.preprocess(batch["video"])
        with valid_clips(valid):
            video, changed = model.apply(
                variables, clips, config.freeze != "video", method="embed_video", mutable=list(model_state), rngs=keys
            )
        text = model.apply(variables, batch["ids"], config.freeze != "text", method="embed_text", rngs=keys)
        scale = contrastive.clamp_scale(params["logit_scale"])
        settings = {"valid": valid, "chunk": config.chunk}
        if config.objective == "info_nce":
            loss = contrastive.info_nce(video, text, scale, **settings)
        elif config.objective == "sigmoid":
            loss = contrastive.sigmoid(video, text, scale, params["logit_bias"], **settings)
        else:
            normalized = config.objective == "kl_normalized"
            loss = contrastive.multi_positive_kl(video, text, scale, batch["label"], normalized=normalized, **settings)
        return loss, ({**model_state, **changed}, {"logit_scale": scale})

    return loss_fn


def make_validator(
    config: Config, model: VideoText, tokenizer: "Tokenizer", source: "Source", bad_files: Any, mesh: Mesh
) -> Callable:
    """Retrieval among the validation videos by captions of their own, and zero-shot recognition of their classes."""
    from vidjax.data.pipeline import evaluation_batches
    from vidjax.data.prompts import fill, read_templates

    embed_clips, embed_texts = clip_encoder(model, mesh), text_encoder(model, tokenizer, mesh)
    templates = read_templates(config.data.templates or "plain")
    prompts = fill(templates, source.class_names) if source.class_names else []

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params, **state.model_state}
        settings = {"batch_size": config.batch_size, "bad_files": bad_files, "view_counts": (1, 1), **this_process()}
        video, labels, index, valid = embed_clips(variables, evaluation_batches(source, config.data, **settings))
        video, labels, index = video[valid, 0], labels[valid], index[valid]
        numbers: dict[str, float] = {}
        if prompts:
            flat = [prompt for row in prompts for prompt in row]
            texts = embed_texts(variables, flat).reshape(len(prompts), len(source.class_names), -1)
            known = labels >= 0
            found = recognition(zero_shot(video[known], texts, "probabilities"), labels[known])
            numbers |= {"top1": found.top1, "top5": found.top5}
        if config.data.templates is None:
            captions = [source.captions(int(i)) for i in index]
            owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
            texts = embed_texts(variables, [text for each in captions for text in each])
            found = retrieval(video, texts, owner)
            numbers |= {"text_to_video_r1": found.text_to_video.r1, "video_to_text_r1": found.video_to_text.r1}
            numbers["score"] = (found.text_to_video.r1 + found.video_to_text.r1) / 2
            if jax.process_index() == 0:
                first = np.unique(owner, return_index=True)[1][:SHOWN]
                folder = Path(config.workdir) / "similarity"
                folder.mkdir(exist_ok=True)
                names = [captions[i][0] for i in range(len(first))]
                save_similarity(folder / f"step_{step:07d}.png", texts[first] @ video[: len(first)].T, names)
        else:
            numbers["score"] = numbers["top1"]
        return numbers

    return validate


SHOWN = 24
"""Videos in the picture of similarities."""


def start(config: Config, model: VideoText, variables: dict) -> dict:
    """The variables with given weights in their place: of both towers, or of each by itself."""
    chief = jax.process_index() == 0
    if config.init_from:
        without = runs.is_run(config.init_from) and getattr(read_model(Path(config.init_from)), "bias", None) is None
        fresh = ("logit_bias",) if model.bias is not None and without else ()
        variables, report = runs.start_from(config.init_from, model, variables, fresh=fresh)
        if chief:
            print(f"weights   from {config.init_from}: {report}")
    for name, source in (("video", config.init_video_from), ("text", config.init_text_from)):
        if source is None:
            continue
        tower, inner = matching.tower(model, name)
        flat = flatten_dict(variables, sep="/")
        part = unflatten_dict(matching.below(flat, inner), sep="/")
        weights = matching.tower_weights(source, name)
        if weights is None:
            part, report = runs.start_from(source, tower, part)
        else:
            part, report = convert.load_weights(f"the {name} tower of {source}", tower, part, weights=weights)
        part = flatten_dict(part, sep="/")
        variables = unflatten_dict(flat | {path.replace("/", inner, 1): part[path] for path in part}, sep="/")
        if chief:
            print(f"{name:<9} from {source}: {report}")
    return variables


def summarize(config: Config, result: FitResult, macs: int, truncated: int, seen: int) -> dict[str, float]:
    """Says what was reached, where it is, and what to do with it."""
    workdir = Path(config.workdir)
    entries = read_metrics(workdir)
    save_curves(workdir / "curves.png", entries, ("loss", "evaluation/score", "learning_rate"), config.model)
    losses, numbers = describe_losses(entries)
    print(f"\nloss      {losses}")
    if result.steps_taken:
        print("speed     " + describe_speed(result, macs))
    validated = [entry for entry in entries if entry.get("evaluation/score") is not None]
    if validated:
        last = {name.removeprefix("evaluation/"): value for name, value in validated[-1].items()}
        numbers |= {name: last[name] for name in last if name not in ("step", "time")}
        if "text_to_video_r1" in last:
            print(
                f"retrieval R@1 {last['text_to_video_r1']:.1%} of captions find their video first, "
                f"{last['video_to_text_r1']:.1%} of videos a caption of theirs"
            )
        if "top1" in last:
            print(f"zero-shot top-1 {last['top1']:.1%}, top-5 {last['top5']:.1%} of the validation videos' classes")
    if truncated:
        print(f"captions  {truncated:,} of the {seen:,} read since this start were too long and cut")
    if (bad := workdir / "bad_files.jsonl").exists():
        print(f"bad files {len(bad.read_text().splitlines())} could not be read: {bad} says why")
    pictures = "similarity/ (look at the newest PNG first), " if (workdir / "similarity").exists() else ""
    print(
        f"\nMade in {workdir}: {pictures}curves.png, metrics.jsonl, tensorboard/, config.json, vidjax.json and the "
        f"weights, checkpoints/ (the last){' and best/' if validated else ''}.\nWhat to do with it:\n"
        f"  recognise without training  python experiments/zero_shot.py --run {workdir} --data.source VIDEOS\n"
        f"  find videos by sentences    python experiments/retrieve.py --run {workdir} --data.source VIDEOS\n"
        f"  in your own code            model, variables = vidjax.load_pretrained({str(workdir)!r})"
    )
    return numbers


def main(config: Config) -> dict[str, float]:
    """Runs the whole job; returns the first and last loss and the validation's numbers, of a dry run the bytes."""
    return runs.on_mesh(config, train)


def train(config: Config, mesh: Mesh) -> dict[str, float]:
    """The job on this mesh, which is also that in context where devices share a clip's tokens."""
    from vidjax.data.pipeline import BadFiles, train_batches

    chief, data = jax.process_index() == 0, config.data

    # Whatever is wrong with the config or the source is said here, before anything is made.
    check_batch_size(config.batch_size, 1, data.repeats, config.sequence)
    for flag in ("init_from", "init_video_from", "init_text_from"):
        runs.require_source(flag, getattr(config, flag))
    tokenizer = matching.open_given(config.tokenizer)
    model = make_model(config, tokenizer)
    source, validation = open_sources(config)
    if chief:
        tell_notes(source, validation)
    clip = jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, model.text.context), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), clip, ids)
    macs = count_macs(model.apply, shapes, clip, ids)
    trained = None
    if config.freeze != "none":
        towers = shapes["params"].items()
        trained = {name: jax.tree.map(lambda _, kept=name == config.freeze: not kept, part) for name, part in towers}

    per_epoch = len(source) * data.repeats / config.batch_size
    steps = config.steps or math.ceil(config.epochs * per_epoch)
    schedule = config.optim.schedule(config.batch_size, steps, per_epoch)
    tx = make_optimizer(config.optim, schedule, trained, {"video/temporal/": config.head_factor})
    keys = jax.random.split(jax.random.key(config.seed))

    def create(variables: dict) -> TrainState:
        return create_state(variables, tx, keys[1], ema=config.ema_decay is not None)

    state_shapes = jax.eval_shape(create, shapes)
    sharding = state_sharding(mesh, state_shapes)
    step = jit_step(make_train_step(make_loss(config, model), tx, ema_decay=config.ema_decay), sharding, mesh)
    if config.dry_run:
        batch = {
            "video": jax.ShapeDtypeStruct((config.batch_size, *clip.shape[1:]), jnp.uint8),
            "ids": jax.ShapeDtypeStruct((config.batch_size, model.text.context), jnp.int32),
            "label": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
            "valid": jax.ShapeDtypeStruct((config.batch_size,), bool),
        }
        return dry_run(config, step, state_shapes, sharding, batch, mesh)
    variables = jax.jit(model.init)(keys[0], jnp.zeros(clip.shape), jnp.zeros(ids.shape, jnp.int32))
    if validation is not None:
        describe_span(data, validation)  # that it can be read should not come out after hours
    if not has_checkpoint(Path(config.workdir)):
        variables = start(config, model, variables)
    sources = {"source": source} | ({} if validation is None else {"validation": validation})
    workdir = runs.open_workdir(config, state_shapes, **sources)
    if chief:
        write_model(workdir, model)
        matching.keep_tokenizer(config.tokenizer, workdir)
        held = f"{len(validation):,} videos of {validation.name}" if validation else "none"
        more = {
            "text": f"{tokenizer.name}: {tokenizer.vocabulary:,} ids, {model.text.context} tokens a caption; "
            f"the first: {source.captions(0)[0]!r}",
            "train": {"none": "both towers"}.get(config.freeze, f"all but the {config.freeze} tower"),
            "objective": f"{config.objective}; validate with {held}",
        }
        print(describe_run(config, source, shapes["params"], macs, steps, more), flush=True)

    state = jax.jit(create, out_shardings=sharding)(variables)
    del variables  # the state has its own
    suffix = "" if chief else f"_{jax.process_index()}"
    bad_files = BadFiles(source, data.max_bad_share, workdir / f"bad_files{suffix}.jsonl")
    truncated = seen = 0

    def batches_from(n: int) -> Iterator[dict[str, np.ndarray]]:
        nonlocal truncated, seen
        settings = {"batch_size": config.batch_size, "seed": config.seed, "first_batch": n, "bad_files": bad_files}
        text = {"tokenizer": tokenizer, "context": model.text.context}
        for batch in train_batches(source, data, **settings, **text, **this_process()):
            if not truncated and batch["truncated"].any() and chief:
                print(f"note: captions of over {model.text.context} tokens are cut to that; the end says how many")
            truncated, seen = truncated + int(batch["truncated"].sum()), seen + len(batch["truncated"])
            yield {name: batch[name] for name in ("video", "ids", "label", "valid")}

    validate = None
    if validation is not None:
        bad = BadFiles(validation, data.max_bad_share, workdir / f"bad_validation_files{suffix}.jsonl")
        validate = make_validator(config, model, tokenizer, validation, bad, mesh)
    result = fit(
        step,
        state,
        batches_from,
        steps=steps,
        workdir=workdir,
        mesh=mesh,
        loop=config.loop,
        config=cli.as_dict(config),
        schedule=schedule,
        evaluate=validate,
        best=None if validate is None else "score",
        advise=partial(describe_starvation, source.name, data.workers),
    )
    if not result.finished:
        if chief:
            print(f"stopped by SIGTERM with step {int(result.state.step)} saved: the same command goes on from there")
        return {}
    return summarize(config, result, macs, truncated, seen) if chief else {}


if __name__ == "__main__":
    cli.run(main, Config, RECIPES, default_recipe)

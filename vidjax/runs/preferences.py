"""Tuning a captioner by preferences: its losses, rewards, and its evaluation against the frozen reference."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vidjax.errors import UserError
from vidjax.evaluation.generation import sample
from vidjax.models.blip import Blip, Captioner
from vidjax.models.reward import RewardModel
from vidjax.objectives import preferences
from vidjax.runs.captions import caption_writer
from vidjax.runs.computing import computing_type
from vidjax.runs.generation import begin
from vidjax.runs.run import Run
from vidjax.runs.validation import Validator
from vidjax.runs.video_text import tokenizer_of
from vidjax.runs.weights import fingerprint, load_pretrained
from vidjax.runs.workdir import is_run
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import Aux, TrainState
from vidjax.training.step import LossFn, valid_mean

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source
    from vidjax.data.text import Tokenizer

Reward = Callable[[Any, dict[str, Array], Int[Array, "n m"], Int[Array, "n m"]], Float[Array, "n"]]
"""`(variables, batch, ids, chosen) -> rewards` of as many captions of each clip, given a preferred one for each."""


def require_writer(source: str, model: Any) -> Blip | Captioner:
    """Returns the model if it is a captioner that preferences can tune.

    Raises:
      UserError: it is not.
    """
    if not isinstance(model, Captioner) and not getattr(model, "writes", False):
        raise UserError(
            f"{source} is a {type(model).__name__}: give a run of vision_language_pretrain.py with the objective lm, "
            "or a BLIP that writes captions"
        )
    return model


class Attribute(NamedTuple):
    """A property that captions name by one of several phrases, such as the colours.

    Attributes:
      name: of the attribute.
      ids: of the phrases, padded with -1.
    """

    name: str
    ids: Int[np.ndarray, "p n"]

    @classmethod
    def read(cls, text: str, tokenizer: "Tokenizer") -> "Attribute":
        """Parses `NAME=PHRASE|PHRASE`.

        Raises:
          UserError: there are not two phrases or more, or the tokeniser does not know their words.
        """
        name, _, rest = text.partition("=")
        phrases = [phrase.strip() for phrase in rest.split("|")]
        if not name or len(set(phrases)) < max(2, len(phrases)) or not all(phrases):
            raise UserError(f"attributes: '{text}' is not NAME=PHRASE|PHRASE|...: give two different phrases or more")
        ends = {*tokenizer.encode("")}
        rows = [[word for word in tokenizer.encode(phrase) if word not in ends] for phrase in phrases]
        if len({tuple(row) for row in rows}) < len(rows) or not all(rows):
            raise UserError(f"attributes: tokenizer {tokenizer.name} does not tell the phrases of '{name}' apart")
        longest = max(map(len, rows))
        return cls(name, np.array([row + [-1] * (longest - len(row)) for row in rows], np.int32))

    def named(self, ids: Int[Array, "b m"]) -> Int[Array, "b"]:
        """The phrase that each text names: the first one in it, of those there the longest; -1 for none."""
        count, width = ids.shape[1], self.ids.shape[1]
        padded = jnp.pad(ids, ((0, 0), (0, width)))
        windows = padded[:, jnp.arange(count)[:, None] + jnp.arange(width)]
        found = ((windows[:, :, None] == self.ids) | (self.ids < 0)).all(axis=-1)  # b m p
        rank = (count - jnp.arange(count)[:, None]) * (width + 1) + (self.ids >= 0).sum(axis=1)
        best = jnp.where(found, rank, 0).reshape(len(ids), -1)
        return jnp.where(best.max(axis=1) > 0, best.argmax(axis=1) % len(self.ids), -1)

    def agrees(self, ids: Int[Array, "b m"], other: Int[Array, "b n"]) -> Bool[Array, "b"]:
        """Whether texts name the same phrase as others; false if these name none."""
        expected = self.named(other)
        return (self.named(ids) == expected) & (expected >= 0)


def check_attributes(
    attributes: Sequence[Attribute], source: "Source", tokenizer: "Tokenizer", context: int, examples: int = 256
) -> None:
    """Checks that captions name the attributes: a reward that no caption can have would teach nothing.

    Raises:
      UserError: none of the captions of the first examples names one of them.
    """
    from vidjax.data.text import tokenize

    texts = [text for index in range(min(len(source), examples)) for text in source.captions(index)]
    ids = jnp.array([tokenize(tokenizer, text, context)[0] for text in texts])
    for attribute in attributes:
        if not (attribute.named(ids) >= 0).any():
            raise UserError(
                f"attributes: none of {len(texts)} captions of {source.name}, such as '{texts[0]}', names a phrase of "
                f"{attribute.name}: correct the phrases"
            )


def check_reference(workdir: Path, source: str, reference: Any) -> None:
    """Writes into a run's work directory which reference it has, or checks that it is still that one.

    Raises:
      UserError: the weights of the captioner have changed since the run began.
    """
    path, found = workdir / "reference.json", fingerprint(reference)
    if path.exists() and json.loads(path.read_text())["weights"] != found:
        raise UserError(f"{source} has changed since {workdir} began with it: restore it, or give another --workdir")
    if is_main_process():
        path.write_text(json.dumps({"weights": found, "source": source}) + "\n")


def attribute_reward(attributes: Sequence[Attribute]) -> Reward:
    """The share of the attributes of which a caption names the same phrase as the preferred caption."""
    return lambda variables, batch, ids, chosen: jnp.stack([a.agrees(ids, chosen) for a in attributes]).mean(axis=0)


def model_reward(judge: RewardModel) -> Reward:
    """The reward of a model that was trained on preferences."""

    def reward(variables: Any, batch: dict[str, Array], ids: Array, chosen: Array) -> Array:
        seen = judge.apply(variables, judge.card.preprocess(batch["video"]), method="seen")
        seen = jnp.repeat(seen, len(ids) // len(seen), axis=0)
        return preferences.at_the_end(judge.apply(variables, ids, seen, method="rewards"), ids)

    return reward


def _look(model: Blip | Captioner, variables: Any, batch: dict[str, Array], count: int) -> Float[Array, "n t d"]:
    """What captions see: the tokens of each clip, as often as it has captions."""
    return jnp.repeat(model.apply(variables, model.card.preprocess(batch["video"]), method="seen"), count, axis=0)


def _words(model: Blip | Captioner, variables: Any, ids: Array, seen: Array) -> Float[Array, "n m"]:
    """Log-probabilities of the words of captions from the second token."""
    logits = model.apply(
        variables, ids, seen, method=lambda m, *given: m.text.words(m.text.started(given[0]), given[1])
    )
    return preferences.word_log_probabilities(logits, ids)


def _draw(key: Key[Array, ""], pairs: Int[Array, "b k 2 m"]) -> Int[Array, "b 2 m"]:
    """One of the pairs of each clip."""
    number = jax.random.randint(key, (len(pairs),), 0, pairs.shape[1])
    return pairs[jnp.arange(len(pairs)), number]


def _pair_likelihoods(
    model: Blip | Captioner, variables: Any, reference: Any, batch: dict[str, Array], pairs: Array
) -> Float[Array, "2 b 2"]:
    """Log-probabilities of both captions of each pair with the policy, and with the reference."""
    ids = pairs.reshape(-1, pairs.shape[-1])
    answer = preferences.answer_mask(ids)
    texts = [
        preferences.text_log_probability(_words(model, each, ids, _look(model, each, batch, 2)), answer)
        for each in (variables, reference)
    ]
    return jnp.stack(texts).reshape(2, -1, 2)


def dpo_loss(model: Blip | Captioner, beta: float, smoothing: float) -> LossFn:
    """The loss of DPO; `aux.frozen["reference"]` are its variables.

    Neither has dropout, and batch norm keeps its statistics, so that the policy starts as the reference.
    """

    def loss_fn(params: Any, aux: Aux, batch: dict[str, Array], key: Array) -> tuple:
        pairs, valid = _draw(key, batch["pairs"]), batch["valid"]
        variables = {"params": params, **aux.model_state}
        policy, reference = _pair_likelihoods(model, variables, aux.frozen["reference"], batch, pairs)
        losses, margins = preferences.dpo(*policy.T, *reference.T, beta, smoothing)
        rewards = beta * (policy - reference)
        metrics = {"margin": margins, "accuracy": margins > 0, "chosen": rewards[:, 0], "rejected": rewards[:, 1]}
        metrics = {name: valid_mean(value, valid) for name, value in metrics.items()}
        return valid_mean(losses, valid), (aux.model_state, metrics)

    return loss_fn


def _pair_rewards(model: RewardModel, variables: Any, batch: dict[str, Array], pairs: Array) -> Float[Array, "b 2"]:
    """Rewards of both captions of each pair."""
    ids = pairs.reshape(-1, pairs.shape[-1])
    return model_reward(model)(variables, batch, ids, ids).reshape(-1, 2)


def reward_loss(model: RewardModel) -> LossFn:
    """The loss of a reward model."""

    def loss_fn(params: Any, aux: Aux, batch: dict[str, Array], key: Array) -> tuple:
        pairs, valid = _draw(key, batch["pairs"]), batch["valid"]
        chosen, rejected = _pair_rewards(model, {"params": params, **aux.model_state}, batch, pairs).T
        losses = preferences.bradley_terry(chosen, rejected)
        metrics = {"margin": chosen - rejected, "accuracy": chosen > rejected}
        metrics = {name: valid_mean(value, valid) for name, value in metrics.items()}
        return valid_mean(losses, valid), (aux.model_state, metrics)

    return loss_fn


def _write(
    model: Blip | Captioner, variables: Any, seen: Array, key: Array, length: int, end: int
) -> Int[Array, "n m"]:
    """Draws a caption of `length` tokens for each row, with the start token."""
    start = jnp.ones((len(seen), 1), jnp.int32)  # becomes [DEC]
    texts = sample(*begin(model, variables, seen, start, length - 1), key, length=length - 1, end=end)
    return jnp.concatenate([start, texts], axis=1)


def group_loss(model: Blip | Captioner, reward: Reward, end: int, context: int, group: int, beta: float) -> LossFn:
    """The loss of GRPO, of captions that the policy draws in the step: each is used for one update, as in the paper.

    `aux.frozen` are the variables of the `reference` and of the `reward`. See `dpo_loss`.

    Args:
      end: id of the end token.
      context: tokens of a caption.
      group: captions per clip.
      beta: weight of the divergence from the reference.
    """

    def loss_fn(params: Any, aux: Aux, batch: dict[str, Array], key: Array) -> tuple:
        (pair_key, sample_key), valid = jax.random.split(key), batch["valid"]
        chosen = jnp.repeat(_draw(pair_key, batch["pairs"])[:, 0], group, axis=0)
        reference = aux.frozen["reference"]
        variables = {"params": params, **aux.model_state}
        seen = _look(model, variables, batch, group)
        ids = _write(model, *jax.lax.stop_gradient((variables, seen)), sample_key, context, end)
        answer = preferences.answer_mask(ids)
        words = _words(model, variables, ids, seen)
        by_reference = _words(model, reference, ids, _look(model, reference, batch, group))
        rewards = reward(aux.frozen["reward"], batch, ids, chosen).reshape(-1, group)
        advantages = preferences.group_advantages(rewards).ravel()
        losses = preferences.clipped_policy_gradient(words, words, by_reference, advantages, answer, beta=beta)
        kl = jnp.where(answer, preferences.divergence(words, by_reference), 0).sum(axis=1)
        metrics = {"reward": rewards, "kl": kl, "words": answer.sum(axis=1)}
        metrics = {name: valid_mean(value.reshape(-1, group).mean(axis=1), valid) for name, value in metrics.items()}
        return valid_mean(losses.reshape(-1, group).mean(axis=1), valid), (aux.model_state, metrics)

    return loss_fn


def without_gradients(loss_fn: LossFn, trained: PyTree[bool]) -> LossFn:
    """The same loss, which gives no gradient to the parameters that are not trained."""

    def loss(params: Any, *rest: Any) -> tuple:
        return loss_fn(jax.tree.map(lambda p, t: p if t else jax.lax.stop_gradient(p), params, trained), *rest)

    return loss


def check_reward(
    source: str, judge: Any, theirs: "Tokenizer", ours: "Tokenizer", texts: Sequence[str], context: int,
    clips: tuple[int, int],
) -> RewardModel:  # fmt: skip
    """Returns the reward model if it reads the captions that the policy writes, of the same clips.

    Args:
      clips: frames and pixels of the policy's.

    Raises:
      UserError: it is no reward model, takes other clips, reads shorter captions, or has another tokeniser.
    """
    if not isinstance(judge, RewardModel):
        raise UserError(f"reward {source} is a {type(judge).__name__}: give a run of --method reward")
    if (own := (judge.tower.num_frames, judge.tower.image_size)) != clips:
        raise UserError(
            f"reward {source} takes clips of {own[0]}x{own[1]}, the captioner {clips[0]}x{clips[1]}: train one on its "
            "clips"
        )
    if judge.tower.text.context < context:
        raise UserError(f"reward {source} reads {judge.tower.text.context} tokens: give --context with at most as many")
    if theirs.vocabulary != ours.vocabulary or any(theirs.encode(text) != ours.encode(text) for text in texts):
        raise UserError(f"reward {source} has another tokenizer than the captioner: train one with its tokenizer")
    return judge


def load_captioner(config: Any, context: int | None) -> tuple[Blip | Captioner, dict, "Tokenizer", int]:
    """The captioner of a script's config, its variables, its tokeniser, and the tokens per caption.

    Raises:
      UserError: it is none, takes other clips or shorter captions, or the tokeniser is not its own.
    """
    computing = {"dtype": computing_type(config.dtype)}
    model, variables = load_pretrained(config.init_from, strict=True, verbose=is_main_process(), **computing)
    model = require_writer(config.init_from, model)
    clips = {"num_frames": config.data.frames, "image_size": config.data.size}
    if clips != (own := {name: getattr(model, name) for name in clips}):
        raise UserError(
            f"{config.init_from} takes clips of {own['num_frames']}x{own['image_size']}: give --data.frames "
            f"{own['num_frames']} --data.size {own['image_size']}"
        )
    context = context or model.text.context
    if context > model.text.context:
        raise UserError(f"context is {context}, the captioner's {model.text.context}: give at most that")
    tokenizer = tokenizer_of(config.init_from, config.tokenizer)
    if tokenizer.end is None or tokenizer.vocabulary > model.text.vocabulary:
        raise UserError(f"tokenizer {tokenizer.name} is not that of {config.init_from}: give its own")
    return model, jax.tree.map(jnp.asarray, variables), tokenizer, context


def load_reward(
    name: str, attributes: Sequence[Attribute], tokenizer: "Tokenizer", texts: Sequence[str], context: int,
    clips: tuple[int, int], dtype: Any,
) -> tuple[Reward, dict]:  # fmt: skip
    """The reward of captions, by the names of attributes, `motion+color`, or a reward model's run, and its variables.

    Args:
      tokenizer: the captioner's.
      texts: some captions, which the reward model must read alike.
      context: tokens per caption.
      clips: frames and pixels of the captioner's.

    Raises:
      UserError: it is neither, or was trained with another tokeniser or on other clips.
    """
    named = {attribute.name: attribute for attribute in attributes}
    if {*(parts := name.split("+"))} <= named.keys():
        return attribute_reward([named[part] for part in parts]), {}
    if not is_run(name):
        names = ", ".join(named) or "none of which are given"
        raise UserError(f"reward {name} is neither a run nor one of the attributes ({names}): give one")
    judge, variables = load_pretrained(name, strict=True, dtype=dtype)
    judge = check_reward(name, judge, tokenizer_of(name), tokenizer, texts, context, clips)
    return model_reward(judge), variables


def tuning_validator(run: Run, tokenizer: "Tokenizer", attributes: Sequence[Attribute], context: int) -> Validator:
    """What the policy has learnt on the validation videos, and how far it is from the reference.

    `preferred` is the share of pairs in which the policy has raised the preferred caption's probability by more than
    the other's; `kl` the mean of the log-ratio of drawn captions to the reference; and `NAME` of each attribute the
    share of written captions, of those whose video's first caption names the attribute, that name the same.
    """
    model, write = run.model, caption_writer(run.model, tokenizer, length=context - 1)

    @partial(jit_on_mesh, mesh=run.mesh)
    def judge(state: TrainState, batch: dict[str, jax.Array]) -> tuple[dict[str, Array], Array]:
        reference = state.frozen["reference"]
        variables = {"params": state.evaluated_params, **state.model_state}
        pairs, first = batch["pairs"][:, 0], batch["pairs"][:, 0, 0]
        policy, others = _pair_likelihoods(model, variables, reference, batch, pairs)
        seen = _look(model, variables, batch, 1)
        drawn = _write(
            model, variables, seen, jax.random.fold_in(jax.random.key(0), batch["index"][0]), context, tokenizer.end
        )
        ratio = _words(model, variables, drawn, seen) - _words(
            model, reference, drawn, _look(model, reference, batch, 1)
        )
        ids = write(variables, batch["video"])
        values = {
            "preferred": (jnp.sign((policy - others) @ jnp.array([1.0, -1.0])) + 1) / 2,  # a half at the start
            "kl": jnp.where(preferences.answer_mask(drawn), ratio, 0).sum(axis=1),
        }
        values |= {each.name: jnp.where(each.named(first) < 0, jnp.nan, each.agrees(ids, first)) for each in attributes}
        return values, batch["valid"]

    return partial(_validate, run, judge)


def reward_validator(run: Run) -> Validator:
    """`preferred`: the share of validation pairs whose preferred caption has the higher reward."""

    @partial(jit_on_mesh, mesh=run.mesh)
    def judge(state: TrainState, batch: dict[str, jax.Array]) -> tuple[dict[str, Array], Array]:
        variables = {"params": state.evaluated_params, **state.model_state}
        chosen, rejected = _pair_rewards(run.model, variables, batch, batch["pairs"][:, 0]).T
        return {"preferred": chosen > rejected}, batch["valid"]

    return partial(_validate, run, judge)


def _validate(run: Run, judge: Callable, state: TrainState, step: int) -> dict[str, float]:
    """Means over the valid clips, without NaN."""
    parts: list[Mapping[str, np.ndarray]] = []
    for batch in run.validation_batches(fields=("pairs",)):
        used = {name: batch[name] for name in ("video", "pairs", "index", "valid")}
        values, valid = jax.device_get(judge(state, put_batch(used, run.mesh)))
        parts.append({name: np.asarray(value, np.float32)[valid] for name, value in values.items()})
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {name: float(np.nanmean(column)) for name, column in columns.items() if not np.isnan(column).all()}

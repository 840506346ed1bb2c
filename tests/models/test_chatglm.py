"""ChatGLM and VisualGLM against a forward pass in NumPy, which is written from their equations with published names."""

import math

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
from flax.traverse_util import flatten_dict, unflatten_dict
from small_models import perturbed

from vidjax.convert import chatglm, from_state_dict, layouts, load_adapter, peft
from vidjax.convert.export import entries
from vidjax.evaluation.generation import beam_search, sample
from vidjax.layers import low_rank
from vidjax.models import create_model, variable_shapes
from vidjax.models.blip2 import Blip2Language
from vidjax.models.chatglm import ChatGLM
from vidjax.models.qformer import QFormer
from vidjax.models.vit import ViT
from vidjax.runs.generation import begin

# Parameters of each row, and GMACs per clip; see test_published.py.
COUNTS = {
    # The sum of its parts, of which ViT, Q-Former and language model are published; 7.8 billion in the README, which
    # counts the word embeddings twice.
    "visualglm_6b": (985_952_256 + 105_137_664 + 24_576 + 769 * 4096 + 6_173_286_400, None),
    "visualglm_tiny": (876_288, None),
}
WIDTH, DEPTH, HEADS, WORDS, MASK, START, END = 16, 2, 2, 40, 36, 37, 38
QUERIES, SEEN, PATCH = 4, 24, 8
GLM = ChatGLM(WORDS, 32, WIDTH, DEPTH, HEADS, MASK, START, END)
VISUAL = Blip2Language(
    ViT(SEEN, DEPTH, HEADS, 2.0, (1, PATCH, PATCH), image_size=16),
    QFormer(QUERIES, None, width=SEEN, depth=DEPTH, heads=HEADS, mlp_ratio=2.0, writes=False),
    GLM,
)


class Published(dict):
    """The entries of a state dict, each of which is drawn when it is first read."""

    def __call__(self, name: str, *shape: int) -> np.ndarray:
        return self.setdefault(name, recipe.parameter(name, shape)).astype(float)


def linear(weights: Published, name: str, x: np.ndarray, outputs: int) -> np.ndarray:
    return x @ weights(f"{name}.weight", outputs, x.shape[-1]).T + weights(f"{name}.bias", outputs)


def norm(weights: Published, name: str, x: np.ndarray, epsilon: float) -> np.ndarray:
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + epsilon)
    return x * weights(f"{name}.weight", x.shape[-1]) + weights(f"{name}.bias", x.shape[-1])


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray | bool = True) -> np.ndarray:
    scores = np.einsum("qkd,nkd->kqn", query, key) / math.sqrt(query.shape[-1])
    weights = np.exp(np.where(mask, scores, -np.inf))
    return np.einsum("kqn,nkd->qkd", weights / weights.sum(axis=-1, keepdims=True), value).reshape(len(query), -1)


def heads_of(x: np.ndarray, parts: int) -> tuple[np.ndarray, ...]:
    """Those of several layers in one, whose rows follow one another."""
    return tuple(part.reshape(len(x), HEADS, -1) for part in np.split(x, parts, axis=-1))


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turn(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Channels as complex numbers, whose imaginary parts are the second half, times those of the positions."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] * 10000.0 ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def glm_words(weights: Published, x: np.ndarray, prompt: int) -> np.ndarray:
    """Logits from the embeddings of a text, of which `prompt` tokens are before the start token."""
    order, alpha = np.arange(len(x)), math.sqrt(2 * DEPTH)
    positions, within = np.minimum(order, prompt - 1), np.maximum(order - prompt + 1, 0)
    mask = (order <= order[:, None]) | (order < prompt)
    for number in range(DEPTH):
        layer = f"transformer.layers.{number}"
        x = norm(weights, f"{layer}.input_layernorm", x, 1e-5)
        rows = linear(weights, f"{layer}.attention.query_key_value", x, 3 * WIDTH)
        query, key, value = np.moveaxis(rows.reshape(len(x), HEADS, 3, -1), 2, 0)
        halves = (
            (turn(part[0], positions), turn(part[1], within)) for part in (np.split(query, 2, -1), np.split(key, 2, -1))
        )
        query, key = (np.concatenate(both, axis=-1) for both in halves)
        x = alpha * x + linear(weights, f"{layer}.attention.dense", attend(query, key, value, mask), WIDTH)
        x = norm(weights, f"{layer}.post_attention_layernorm", x, 1e-5)
        hidden = tanh_gelu(linear(weights, f"{layer}.mlp.dense_h_to_4h", x, 4 * WIDTH))
        x = alpha * x + linear(weights, f"{layer}.mlp.dense_4h_to_h", hidden, WIDTH)
    return norm(weights, "transformer.final_layernorm", x, 1e-5) @ table(weights).T


def table(weights: Published) -> np.ndarray:
    weights("lm_head.weight", WORDS, WIDTH)
    weights["transformer.word_embeddings.weight"] = weights["lm_head.weight"]
    return weights["lm_head.weight"].astype(float)


def see(weights: Published, image: np.ndarray) -> np.ndarray:
    """Tokens of an image `h w c`."""
    source = "image_encoder.vit."
    kernel = weights(f"{source}mixins.patch_embedding.proj.weight", SEEN, 3, PATCH, PATCH).reshape(SEEN, -1)
    patches = einops.rearrange(image, "(y a) (x b) c -> (y x) (c a b)", a=PATCH, b=PATCH)
    x = patches @ kernel.T + weights(f"{source}mixins.patch_embedding.proj.bias", SEEN)
    x = np.concatenate([weights(f"{source}transformer.word_embeddings.weight", 1, SEEN), x])
    x = x + weights(f"{source}transformer.position_embeddings.weight", len(x), SEEN)
    for number in range(DEPTH):
        layer = f"{source}transformer.layers.{number}"
        normed = norm(weights, f"{layer}.input_layernorm", x, 1e-6)
        parts = heads_of(linear(weights, f"{layer}.attention.query_key_value", normed, 3 * SEEN), 3)
        x = x + linear(weights, f"{layer}.attention.dense", attend(*parts), SEEN)
        normed = norm(weights, f"{layer}.post_attention_layernorm", x, 1e-6)
        hidden = gelu(linear(weights, f"{layer}.mlp.dense_h_to_4h", normed, 2 * SEEN))
        x = x + linear(weights, f"{layer}.mlp.dense_4h_to_h", hidden, SEEN)
    return norm(weights, f"{source}mixins.cls.ln_vision", x, 1e-6)


def look(weights: Published, seen: np.ndarray) -> np.ndarray:
    """Embeddings of the queries for the language model."""
    source = "image_encoder.qformer.transformer."
    x = weights(f"{source}word_embeddings.weight", QUERIES, SEEN)
    for number in range(DEPTH):
        layer = f"{source}layers.{number}"
        x = norm(weights, f"{layer}.input_layernorm", x, 1e-12)
        parts = heads_of(linear(weights, f"{layer}.attention.query_key_value", x, 3 * SEEN), 3)
        x = x + linear(weights, f"{layer}.attention.dense", attend(*parts), SEEN)
        x = norm(weights, f"{layer}.post_attention_layernorm", x, 1e-12)
        if number % 2 == 0:
            cross = f"{layer}.cross_attention"
            query = heads_of(linear(weights, f"{cross}.query", x, SEEN), 1)
            pair = heads_of(linear(weights, f"{cross}.key_value", seen, 2 * SEEN), 2)
            x = x + linear(weights, f"{cross}.dense", attend(*query, *pair), SEEN)
            x = norm(weights, f"{layer}.post_cross_attention_layernorm", x, 1e-12)
        hidden = gelu(linear(weights, f"{layer}.mlp.dense_h_to_4h", x, 2 * SEEN))
        x = x + linear(weights, f"{layer}.mlp.dense_4h_to_h", hidden, SEEN)
    return linear(weights, "image_encoder.glm_proj", norm(weights, f"{source}final_layernorm", x, 1e-12), WIDTH)


IDS = np.array([[0, 0, 5, 31, MASK, START, 9, 14], [7, 20, 33, 26, MASK, START, 2, 30]])
VALID = (IDS != 0) | (np.arange(8) > 1)  # padded at the left
BEGUN = 6  # tokens before the text, with the start token


def expected_of(weights: Published, ids: np.ndarray) -> np.ndarray:
    return glm_words(weights, table(weights)[ids], list(ids).index(START))


def test_equals_the_equations_and_a_cache_gives_the_logits_of_the_whole_text():
    weights = Published()
    expected = [expected_of(weights, row[valid]) for row, valid in zip(IDS, VALID, strict=True)]
    variables = from_state_dict(GLM, weights, strict=True)

    @jax.jit
    def run(variables, ids, valid):
        prompt = GLM.apply(variables, ids[:, :BEGUN], method="embed")
        step, logits, cache = begin(GLM, variables, prompt, valid[:, :BEGUN], 2)
        second, cache = step(ids[:, BEGUN], jnp.int32(0), cache)
        third, _ = step(ids[:, BEGUN + 1], jnp.int32(1), cache)
        return GLM.apply(variables, ids, valid), jnp.stack([logits, second, third], axis=1)

    whole, parts = run(variables, jnp.asarray(IDS, jnp.int32), jnp.asarray(VALID))
    for row, valid, wanted in zip(whole, VALID, expected, strict=True):
        np.testing.assert_allclose(row[valid], wanted, rtol=0, atol=2e-5)
    np.testing.assert_allclose(parts, whole[:, BEGUN - 1 :], rtol=0, atol=2e-5)
    written = entries(layouts(GLM)[0], GLM, variables)
    assert written.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


@pytest.mark.long
def test_writes_the_likeliest_words_of_the_equations():
    """Greedily, by drawing from one word, and with beams, whose score is that of the text."""
    weights = Published()
    expected_of(weights, IDS[1])
    variables = from_state_dict(GLM, weights, strict=True)
    settings = {"length": 5, "end": END}

    @jax.jit
    def write(variables, ids, valid):
        def begun(beams: int) -> tuple:
            return begin(GLM, variables, GLM.apply(variables, ids, method="embed"), valid, 5, beams=beams)

        drawn = sample(*begun(1), jax.random.key(0), **settings, top_k=1)
        return beam_search(*begun(1), **settings)[0], drawn, beam_search(*begun(3), **settings, beams=3)

    ids, valid = IDS[:, :BEGUN], VALID[:, :BEGUN]
    greedy, drawn, (best, scores) = write(variables, jnp.asarray(ids, jnp.int32), jnp.asarray(valid))
    np.testing.assert_array_equal(drawn, greedy)
    for row in range(2):
        begun = ids[row][valid[row]]
        for text, score in ((np.asarray(greedy[row]), None), (np.asarray(best[row]), scores[row])):
            count = list(text).index(END) + 1 if END in text else len(text)
            logits = expected_of(weights, np.concatenate([begun, text[: count - 1]]))[len(begun) - 1 :]
            if score is None:
                np.testing.assert_array_equal(text[:count], logits.argmax(axis=-1))
            else:
                likelihoods = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
                own = likelihoods[np.arange(count), text[:count]].mean()
                np.testing.assert_allclose(score, own, rtol=1e-4)


def test_prompts_that_do_not_fit_are_refused():
    variables = jax.eval_shape(GLM.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="prompt and text have 33 tokens: the language model takes at most 32"):
        jax.eval_shape(GLM.apply, variables, jnp.zeros((1, 33), jnp.int32))
    with pytest.raises(ValueError, match="width 18 cannot be split into 3 heads with two halves of pairs of channels"):
        jax.eval_shape(GLM.clone(width=18, heads=3).init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
    with pytest.raises(ValueError, match="it is a later ChatGLM, which is another model: only ChatGLM-6B and"):
        chatglm.from_config({"model_type": "chatglm", "ffn_hidden_size": 13696})


def visual_ids(answer: list[int]) -> np.ndarray:
    return np.array([[3, *[WORDS - 1] * QUERIES, 4, 11, MASK, START, *answer]])


def test_visualglm_equals_the_equations():
    weights, image, ids = Published(), recipe.floats("image", (16, 16, 3)), visual_ids([8, 21])
    looked = look(weights, see(weights, image))
    embedded = table(weights)[ids[0]]
    embedded[1 : 1 + QUERIES] = looked
    expected = glm_words(weights, embedded, list(ids[0]).index(START))
    variables = from_state_dict(VISUAL, weights, strict=True)

    @jax.jit
    def run(variables, video, text):
        looked = VISUAL.apply(variables, video, method="look")
        ids = VISUAL.placed(text, 1, after=1)
        return VISUAL.apply(variables, ids, looked, jnp.ones(ids.shape, bool), method="words"), looked

    text = jnp.asarray(ids[ids != WORDS - 1][None], jnp.int32)
    actual, seen = run(variables, jnp.asarray(image)[None, None], text)
    np.testing.assert_allclose(seen[0], looked, rtol=0, atol=2e-5)
    np.testing.assert_allclose(actual[0], expected, rtol=0, atol=5e-5)
    written = entries(layouts(VISUAL)[0], VISUAL, variables)
    assert written.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_an_adapter_of_peft_adapts_the_published_rows(tmp_path):
    """Queries, keys and values of a head are next to one another there, and pairs of channels are apart."""
    weights = Published()
    expected_of(weights, IDS[1])
    variables, layer = from_state_dict(GLM, weights, strict=True), "transformer.layers.1.attention.query_key_value"
    a, b = recipe.floats("a", (3, WIDTH)), recipe.floats("b", (3 * WIDTH, 3))
    few, scale = peft.convert(
        GLM, {"lora_alpha": 6, "r": 3}, {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}
    )
    changed = weights | {f"{layer}.weight": weights[f"{layer}.weight"] + 2 * b @ a}
    expected = from_state_dict(GLM, changed, strict=True)
    merged = peft.merged(variables, few, scale)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4), merged, expected)
    few = {path: np.asarray(value) for path, value in few.items() if "key" not in path}  # in another rank
    peft.export_adapter(tmp_path / "a", GLM, few, rank=3, alpha=6.0)
    again = load_adapter(tmp_path / "a", GLM, variables)
    merged = peft.merged(variables, few, scale)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), again, merged)


def factors_of(model, numbers: tuple[int, int], rank: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of LoRA's factors in the attention of these blocks of the language model."""
    shapes = variable_shapes(model)["params"]
    patterns = [f"language/transformer/block_{number}/attention" for number in numbers]
    chosen, leaves = low_rank.choose(shapes, patterns, "adapt.targets", "kernel"), flatten_dict(shapes, sep="/")
    kernels = {path: leaves[path] for path in chosen}
    return jax.eval_shape(lambda kernels: low_rank.start(kernels, rank, jax.random.key(0)), kernels)


@pytest.mark.long
def test_the_published_lora_has_655360_parameters_in_eight_layers():
    factors = factors_of(create_model("visualglm_6b"), (0, 14), rank=10)
    assert len(factors) == 2 * 8 and low_rank.scale_of(10, 1) == 0.1
    assert sum(math.prod(leaf.shape) for leaf in factors.values()) == 655_360


@pytest.mark.long
def test_lora_lowers_the_loss_of_an_answer_about_an_image():
    """In the loss of the published fine-tuning: cross-entropy of the words after the start token."""
    base, factors = perturbed(VISUAL)["params"], factors_of(VISUAL, (0, 1), rank=2)
    ids = jnp.asarray(visual_ids([8, 21, END]), jnp.int32)
    counted = jnp.cumsum(ids == START, axis=1) - (ids == START) == 1
    few = {path: 0.1 * recipe.floats(path, leaf.shape) * path.endswith(low_rank.A) for path, leaf in factors.items()}

    tx = optax.adam(0.3)

    @jax.jit
    def step(few, moments, video):
        def loss_fn(few):
            variables = {"params": low_rank.merge(base, unflatten_dict(few, sep="/"), 0.5)}
            looked = VISUAL.apply(variables, video, method="look")
            words = VISUAL.apply(variables, ids, looked, jnp.ones(ids.shape, bool), method="words")
            losses = optax.losses.softmax_cross_entropy_with_integer_labels(words[:, :-1], ids[:, 1:])
            return (losses * counted[:, 1:]).sum() / counted.sum()

        loss, gradient = jax.value_and_grad(loss_fn)(few)
        updates, moments = tx.update(gradient, moments)
        return optax.apply_updates(few, updates), moments, loss

    losses, moments = [], tx.init(few)
    for _ in range(100):
        few, moments, loss = step(few, moments, jnp.asarray(recipe.floats("image", (1, 1, 16, 16, 3))))
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.3

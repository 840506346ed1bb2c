"""VATT against the original's rules in NumPy, with every parameter perturbed, and its exact counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from scipy.special import erf
from small_models import perturbed

import vidjax
from vidjax.errors import UserError
from vidjax.models.t5 import bucket_table
from vidjax.models.vatt import VideoTransformer
from vidjax.models.vatt_pretraining import AgnosticWords, SoundTower, Vatt, Words

# The video towers are in SYSTEMS-2.md (2.4); the rest is counted here by the original's configs: the towers of sound
# and text have 86,078,976 and 38,699,052.
COUNTS = {
    "vatt_tiny": (262_272, None, {"num_classes": None}),
    "vatt_base": (87_446_016, None, {"num_classes": None}),
    "vatt_medium": (154_343_424, None, {"num_classes": None}),
    "vatt_large": (305_498_112, None, {"num_classes": None}),
    "vatt_tiny_agnostic": (284_000, None, {"num_classes": None}),
    "vatt_medium_agnostic": (156_442_624, None, {"num_classes": None}),
    "vatt_tiny_pretrain": (797_088, None),
    "vatt_base_pretrain": (213_538_092, None),
    "vatt_medium_pretrain": (280_566_572, None),
    "vatt_large_pretrain": (431_721_260, None),
    "vatt_tiny_agnostic_pretrain": (423_824, None),
    "vatt_medium_agnostic_pretrain": (182_651_136, None),
}

FIELDS = {"width": 24, "depth": 2, "heads": 3, "patch_size": (2, 4, 4), "num_frames": 4, "image_size": 8}
SOUND = {"width": 24, "samples": 24, "patch_size": 4}
TEXT = {"vocabulary": 30, "context": 5, "word_width": 10}
SPECIFIC = Vatt(
    VideoTransformer(**FIELDS), SoundTower(depth=1, heads=2, **SOUND), Words(16, 2, 2, **TEXT), fine=12, coarse=8
)
AGNOSTIC = Vatt(
    VideoTransformer(**FIELDS, outputs=20), SoundTower(depth=None, heads=None, outputs=20, **SOUND),
    AgnosticWords(24, 20, **TEXT), fine=12, coarse=8,
)  # fmt: skip
VIDEO, HEARD = recipe.floats("video", (2, 4, 8, 8, 3)), recipe.floats("sound", (2, 24))
IDS = np.array([[4, 7, 2, 0, 0], [1, 0, 0, 0, 0], [5, 6, 7, 8, 9]])  # three texts, two of which are padded


def dense(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def layer_norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def rms_norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"]


def attention(x, p, heads, scale, mask=None, bias=0.0):
    q, k, v = (dense(x, p[name]).reshape(*x.shape[:2], heads, -1).swapaxes(1, 2) for name in ("query", "key", "value"))
    scores = q @ k.swapaxes(2, 3) * scale + bias
    if mask is not None:
        scores = scores - 1e9 * ~mask[:, None, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out = weights / weights.sum(-1, keepdims=True) @ v
    return dense(out.swapaxes(1, 2).reshape(*x.shape[:2], -1), p["out"])


def transformer(x, p, heads, mask=None):
    for _, block in sorted(p["transformer"].items()):
        normed = layer_norm(x, block["norm1"])
        x = x + attention(normed, block["attention"], heads, (x.shape[-1] // heads) ** -0.5, mask)
        x = x + dense(gelu(dense(layer_norm(x, block["norm2"]), block["fc1"])), block["fc2"])
    return layer_norm(x, p["norm"])


def in_front(token, x):
    return np.concatenate([np.broadcast_to(token, (len(x), 1, x.shape[-1])), x], axis=1)


def around(x, p, run):
    """What the agnostic model has before and after the shared transformer."""
    return gelu(dense(run(gelu(dense(x, p["embedding_layer"]))), p["projection"]))


def see(p, agnostic):
    patches = VIDEO.reshape(2, 2, 2, 2, 4, 2, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, 8, 96)
    x = patches @ p["patch_embedding"]["kernel"].reshape(96, 24) + p["patch_embedding"]["bias"]
    t, h, w = (p["position"][name]["table"] for name in ("frames", "rows", "columns"))
    table = (t[:, None, None] + h[:, None] + w).reshape(8, 24)

    def run(x):
        x = x + layer_norm(table, p["position"]["norm"])
        return transformer(in_front(p["position"]["token"], x), p, 3)[:, 0]

    return around(x, p, run) if agnostic else run(x)


def hear(p, shared):
    x = dense(HEARD.reshape(2, 6, 4), p["patch_embedding"])

    def run(x):
        x = in_front(p["position"]["token"], x + layer_norm(p["position"]["time"]["table"], p["position"]["norm"]))
        return transformer(x, shared or p, 3 if shared else 2)[:, 0]

    return around(x, p, run) if shared else run(x)


def read(p, shared):
    words, mask = p["word_embedding"]["embedding"][IDS], np.pad(IDS != 0, ((0, 0), (1, 0)), constant_values=True)
    if shared:

        def run(x):
            x = x + layer_norm(p["position"]["words"]["table"], p["position"]["norm"])
            return transformer(in_front(p["position"]["token"], x), shared, 3, mask)[:, 0]

        return around(words, p, run)
    x = gelu(dense(in_front(p["token"], words), p["embedding_layer"]))
    distance = np.arange(6) - np.arange(6)[:, None]  # of the key; below 8, each has a bucket of its own
    bias = p["position_bias"]["table"][np.where(distance > 0, 16 + distance, -distance)].transpose(2, 0, 1)
    for _, block in sorted(p["transformer"].items()):
        x = x + attention(rms_norm(x, block["norm1"]), block["attention"], 2, 1.0, mask, bias)
        x = x + dense(gelu(dense(layer_norm(x, block["norm2"]), block["fc1"])), block["fc2"])
    return rms_norm(x, p["norm"])[:, 0]


def batch_norm(x, p, statistics):
    mean, var = (x.mean(0), x.var(0)) if statistics is None else (statistics["mean"], statistics["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def expected(variables, statistics):
    p, agnostic = variables["params"], "projection" in variables["params"]["video"]
    shared = p["video"] if agnostic else None
    head, seen = p["head"], see(p["video"], agnostic)

    def norm(x, name):
        return batch_norm(x, head[name], statistics and statistics["head"][name])

    fine = norm(dense(seen, head["video_head_0"]), "video_head_norm_0")
    fine = norm(dense(np.maximum(fine, 0), head["video_head_1"]), "video_head_norm_1")
    coarse = norm(dense(np.maximum(fine, 0), head["coarse_head"]), "coarse_head_norm")
    heard = dense(hear(p["sound"], shared), head["sound_head"])
    return {
        "video_of_sound": fine, "sound": heard,
        "video_of_text": coarse, "text": dense(read(p["text"], shared), head["text_head"]),
    }  # fmt: skip


@pytest.mark.parametrize("model", [SPECIFIC, AGNOSTIC], ids=["specific", "agnostic"])
def test_embeddings_are_those_of_the_rules_of_the_original(model):
    variables = perturbed(model)
    run = jax.jit(model.apply, static_argnames=("train", "mutable"))
    result = run(variables, VIDEO, HEARD, IDS)
    for name, rows in expected(variables, variables["batch_stats"]).items():
        np.testing.assert_allclose(result[name], rows, atol=2e-5 * np.abs(rows).max(), err_msg=name)
    if model is SPECIFIC:  # the head's batch norms in training; the rows have no dropout
        result, changed = run(variables, VIDEO, HEARD, IDS, train=True, mutable=("batch_stats",))
        rows = expected(variables, None)["video_of_text"]
        np.testing.assert_allclose(result["video_of_text"], rows, atol=1e-3 * np.abs(rows).max())
        before, after = (x["batch_stats"]["head"]["video_head_norm_0"] for x in (variables, changed))
        now = dense(see(variables["params"]["video"], False), variables["params"]["head"]["video_head_0"])
        np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * now.mean(0), atol=1e-5)


def test_far_words_share_buckets_up_to_a_distance_of_64():
    table = bucket_table(True, 64)
    assert table[64 + 64] == table.max() == 31 and table[64 + 7] == 16 + 7 and table[0] == 15
    assert bucket_table(True)[128 + 64] < 31  # of T5 itself


def test_half_of_the_tokens_are_dropped_and_the_same_ones_in_all_clips():
    """A clip's output does not depend on what is dropped, which is the same for both clips of a batch."""
    tower = VideoTransformer(**FIELDS, drop_token=0.5)
    variables, clip = jax.tree.map(jnp.asarray, perturbed(tower)), jnp.asarray(VIDEO[:1])

    @jax.jit
    def gradient(video, key):
        def total(video):
            return (tower.apply(variables, video, train=True, rngs={"masking": key}) ** 2).sum()

        return jax.grad(total)(video)

    moved = jnp.abs(gradient(jnp.concatenate([clip, clip]), jax.random.key(1)))
    used = moved.reshape(2, 2, 2, 2, 4, 2, 4, 3).sum(axis=(2, 4, 6, 7)).reshape(2, 8) > 0
    assert used.sum(axis=1).tolist() == [4, 4] and (used[0] == used[1]).all()
    again = jnp.abs(gradient(jnp.concatenate([clip, clip]), jax.random.key(4)))
    assert (again.reshape(2, 2, 2, 2, 4, 2, 4, 3).sum(axis=(2, 4, 6, 7)).reshape(2, 8) > 0)[0].tolist() != used[
        0
    ].tolist()
    assert jax.eval_shape(lambda: tower.apply(variables, clip, train=True, method="encode")).shape == (1, 2, 2, 2, 24)


def test_wrong_combinations_and_lengths_are_one_line():
    mixed = Vatt(AGNOSTIC.video, AGNOSTIC.sound, SPECIFIC.text)
    with pytest.raises(UserError, match="sound and text must either both have a transformer"):
        jax.eval_shape(mixed.init, jax.random.key(0), VIDEO, HEARD, IDS)
    with pytest.raises(UserError, match="22 samples cannot be cut into patches of 4"):
        jax.eval_shape(SPECIFIC.sound.init, jax.random.key(0), HEARD[:, :22])
    assert vidjax.create_model("vatt_medium_pretrain").sound.width == 768  # medium, base and small, as published

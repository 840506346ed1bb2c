"""The text towers: BERT against transformers, attention in both, and names of variants."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import files, from_state_dict, load_pretrained, load_weights
from vidjax.models import TEXT_VARIANTS, create_text_model, example_inputs
from vidjax.models.text import Bert, TextTower

CLOSE = {"rtol": 0, "atol": 1e-4}
SMALL = {"vocabulary": 60, "context": 12, "width": 24, "depth": 2, "heads": 3, "features": 16}
IDS = np.array([[1, 30, 31, 32, 59, 0, 0, 0, 0, 0], [1, *range(40, 48), 59]], np.int32)


def apply(tower, variables, ids, method=None) -> np.ndarray:
    return np.asarray(jax.jit(partial(tower.apply, method=method))(variables, jnp.asarray(ids)))


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM"])
def test_bert_equals_transformers_from_its_directory(kind, tmp_path, capsys):
    transformers = peers.transformers()
    import torch

    config = transformers.BertConfig(
        vocab_size=60, hidden_size=24, intermediate_size=72, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=12, layer_norm_eps=1e-3,
    )  # fmt: skip
    peer = getattr(transformers, kind)(config).eval()
    peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    tower, variables = load_pretrained(tmp_path)
    assert "newly initialised: projection/kernel" in capsys.readouterr().out
    bare = getattr(peer, "bert", peer)
    with torch.no_grad():
        expected = bare(
            torch.from_numpy(IDS).long(), attention_mask=torch.from_numpy(IDS != 0)
        ).last_hidden_state.numpy()
    tokens = apply(tower, variables, IDS, "tokens")
    np.testing.assert_allclose(tokens[IDS != 0], expected[IDS != 0], **CLOSE)
    kernel = variables["params"]["projection"]["kernel"]
    np.testing.assert_allclose(apply(tower, variables, IDS), expected[:, 0] @ kernel, **CLOSE)

    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in files.read(tmp_path).items()
    }
    again = from_state_dict(tower, older | {"embeddings.position_ids": np.arange(12)[None]})
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    shapes = jax.eval_shape(tower.clone(features=7).init, jax.random.key(0), *example_inputs(tower))
    _, report = load_weights(tmp_path, tower.clone(features=7), shapes)
    assert report.new == ("projection/kernel",)


@pytest.fixture(scope="module", params=[TextTower, Bert])
def tower(request):
    return request.param(**SMALL)


@pytest.fixture(scope="module")
def variables(tower):
    shapes = jax.eval_shape(tower.init, jax.random.key(0), *example_inputs(tower))
    names = jax.tree_util.keystr
    return jax.tree_util.tree_map_with_path(lambda p, x: 1 / 3 * jnp.asarray(recipe.floats(names(p), x.shape)), shapes)


def test_padding_has_no_effect(tower, variables):
    """A batch can therefore be truncated to its longest text."""
    short = IDS[:1, :5]
    for padded in (IDS[:1], np.pad(short, ((0, 0), (0, 7)))):
        np.testing.assert_allclose(apply(tower, variables, padded), apply(tower, variables, short), atol=1e-5)
        tokens = apply(tower, variables, padded, "tokens")[:, :5]
        np.testing.assert_allclose(tokens, apply(tower, variables, short, "tokens"), atol=1e-5)


def test_clip_is_causal_and_bert_is_not(tower, variables):
    changed = IDS.copy()
    changed[1, 4] = 50
    before, after = (apply(tower, variables, ids, "tokens")[1] for ids in (IDS, changed))
    moved = np.abs(before - after).max(axis=1) > 1e-4
    causal = isinstance(tower, TextTower)
    np.testing.assert_array_equal(moved, [not causal] * 4 + [True] * 6)


def test_the_feature_is_that_of_the_end_token():
    tower = TextTower(**SMALL)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.asarray(IDS))
    variables = jax.tree.map(lambda x: jnp.asarray(recipe.floats(str(x.shape), x.shape)) / 3, shapes)
    ids = np.array([[1, 7, 59, 7, 0, 0], [1, 7, 30, 59, 59, 0]], np.int32)
    tokens = apply(tower, variables, ids, "tokens") @ np.asarray(variables["params"]["projection"]["kernel"])
    np.testing.assert_allclose(apply(tower, variables, ids), tokens[[0, 1], [2, 3]], atol=1e-5)
    named = tower.clone(end_token=7)  # the first token with this id, which is not the highest
    np.testing.assert_allclose(apply(named, variables, ids), tokens[:, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 13), jnp.int32, "the texts have 13 tokens: the text tower takes 1 to 12"),
        ((2, 0), jnp.int32, "the texts have 0 tokens: the text tower takes 1 to 12"),
    ],
)
def test_texts_of_unsupported_length_are_rejected(tower, shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros(shape, dtype))


TOWER_COUNTS = {
    "text_tiny": 382_080,
    "clip_base": 63_428_097 - 1,  # as published, without the temperature
    "clip_large": 123_650_305 - 1,
    "bert_tiny": 382_272,
    "bert_base": 109_482_240 - (768 + 1) * 768 + 768 * 512,  # as published, with a projection instead of the pooler
}


def test_number_of_parameters_of_every_tower():
    assert TOWER_COUNTS.keys() == TEXT_VARIANTS.keys()
    for name, count in TOWER_COUNTS.items():
        tower = create_text_model(name)
        shapes = jax.eval_shape(tower.init, jax.random.key(0), *example_inputs(tower))
        assert sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count, name


def test_unknown_names_and_fields_are_rejected():
    assert create_text_model("clip_base", features=256, dtype=jnp.bfloat16).features == 256
    with pytest.raises(ValueError, match="there is no text tower 'clip_bas': the nearest names are clip_base"):
        create_text_model("clip_bas")
    with pytest.raises(ValueError, match="model 'bert_tiny' has no field 'end_token': its fields are vocabulary"):
        create_text_model("bert_tiny", end_token=3)

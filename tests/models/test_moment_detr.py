"""Moment-DETR against recorded outputs of its released code: outputs, matching and losses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models import variable_shapes
from vidjax.models.moment_detr import RETRIEVERS, MomentDETR
from vidjax.objectives import moments

PARAMETERS = {"moment_detr_slowfast_clip": 4_823_305, "moment_detr_clip": 4_228_873}  # SYSTEMS-2.md


@pytest.mark.parametrize("name", PARAMETERS)
def test_has_the_published_number_of_parameters(name):
    shapes = variable_shapes(RETRIEVERS[name]())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def until(array: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The array with zeros beyond the lengths."""
    inside = np.arange(array.shape[1]) < lengths[:, None]
    return array * inside.reshape(*inside.shape, *(1,) * (array.ndim - 2))


@pytest.fixture(scope="module", params=["moment_detr", "moment_detr_contrastive"])
def run(request):
    golden, c = recipe.load(request.param), recipe.load(request.param).config
    description = json.loads((recipe.HERE / f"{request.param}.json").read_text())
    model = MomentDETR(
        c["v_feat_dim"], c["t_feat_dim"], c["hidden_dim"], c["nheads"], c["dim_feedforward"], queries=c["num_queries"],
        embeddings=c.get("n_input_proj", 2), text_positions=c.get("use_txt_pos", False),
        pre_norm=c.get("pre_norm", False), align=c["contrastive_hdim"] if c.get("contrastive_align_loss") else None,
    )  # fmt: skip
    variables = from_state_dict(model, golden.weights, strict=True)
    lengths = {name: np.array(value) for name, value in description["lengths"].items()}
    text, video = until(golden.inputs[0], lengths["text"]), until(golden.inputs[1], lengths["video"])
    return (
        golden,
        description,
        model,
        variables,
        jax.jit(model.apply)(variables, video, text, lengths["video"], lengths["text"]),
    )


def test_outputs_equal_the_original(run):
    golden, description, _, _, outputs = run
    lengths = {name: np.array(value) for name, value in description["lengths"].items()}
    results = [outputs.logits[-1], outputs.spans[-1], until(np.asarray(outputs.saliency), lengths["video"])]
    results += [outputs.logits[0], outputs.spans[0]]
    expected = [golden.outputs[f"output{number}"] for number in range(5)]
    expected[2] = until(expected[2], lengths["video"])
    if outputs.queries is not None:
        results += [outputs.queries[-1], until(np.asarray(outputs.words), lengths["text"])]
        expected += [golden.outputs["output5"], until(golden.outputs["output6"], lengths["text"])]
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted, atol=5e-6)


def test_matching_and_losses_equal_the_original(run):
    _, description, model, _, outputs = run
    truth, expected = description["targets"], description["losses"]
    most = max(map(len, truth["spans"])) + 1  # one row that is not annotated
    targets, annotated = np.full((2, most, 2), 0.5, np.float32), np.zeros((2, most), bool)
    for video, spans in enumerate(truth["spans"]):
        targets[video, : len(spans)], annotated[video, : len(spans)] = spans, True
    targets, annotated = jnp.asarray(targets), jnp.asarray(annotated)
    total = 0.0
    for layer, suffix in ((1, ""), (0, "_0")):
        query, matched = jax.jit(moments.match)(outputs.logits[layer], outputs.spans[layer], targets, annotated)
        if layer == 1:
            for video, (queries, rows) in enumerate(description["matching"]):
                assert query[video, np.array(rows)].tolist() == queries
        np.testing.assert_array_equal(matched, annotated)
        result = moments.losses(outputs.logits[layer], outputs.spans[layer], targets, query, matched)
        for value, name in zip(result, ("span", "giou", "label"), strict=True):
            assert value == pytest.approx(expected[f"loss_{name}{suffix}"], rel=1e-5)
        total += result.total()
        if outputs.queries is not None:
            taken = moments.is_taken(query, matched, model.queries)
            aligned = moments.align(outputs.queries[layer], outputs.words, taken)
            assert aligned == pytest.approx(expected[f"loss_contrastive_align{suffix}"], rel=1e-5)
            total += moments.ALIGN * aligned
    ranked = moments.rank_saliency(outputs.saliency, jnp.array(truth["positive"]), jnp.array(truth["negative"]))
    assert ranked == pytest.approx(expected["loss_saliency"], rel=1e-5)
    assert total + ranked == pytest.approx(expected["weighted total"], rel=1e-5)


def test_with_too_few_queries_annotated_moments_come_before_filling_rows():
    targets = jnp.array([[[0.9, 0.1], [0.2, 0.1], [0.5, 0.1]]])
    annotated = jnp.array([[False, True, False]])
    query, matched = moments.match(jnp.zeros((1, 1, 2)), jnp.array([[[0.9, 0.1]]]), targets, annotated)
    assert matched.tolist() == [[False, True, False]] and query[0, 1] == 0


def test_weights_return_to_the_published_names(run):
    golden, _, model, variables, _ = run
    exported = entries(layouts(model)[0], model, variables)
    assert exported.keys() == golden.weights.keys()
    for name, value in golden.weights.items():
        np.testing.assert_array_equal(exported[name], value)

"""The head of a merged data set becomes that of one of them; a classifier starts from a tower of a pair."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import draw_variables

import vidjax
from vidjax import runs
from vidjax.errors import UserError
from vidjax.models import example_inputs
from vidjax.models.text import TextTower
from vidjax.models.video_text import Projected, VideoText

ALL = ("abseiling", "air drumming", "making the bed", "Riding a Bike", "surfing")
SOME = ("riding_a_bike", "abseiling", "making the bed")  # in another order, and as folders would name them
ROWS = [3, 0, 2]


@pytest.fixture(scope="module", params=["r3d_tiny", "videomae_tiny"])
def merged(request):
    """A model of all classes, with batch norm and convolutions or with attention."""
    model = vidjax.create_model(request.param, num_classes=len(ALL), num_frames=2, image_size=32)
    model = model.clone(card=dataclasses.replace(model.card, class_names=ALL))
    return model, draw_variables(model)


def test_the_head_keeps_the_rows_of_the_classes_in_their_order(merged):
    model, variables = merged
    fewer, reduced = runs.keep_classes(model, variables, SOME)
    assert fewer.num_classes == 3 and fewer.card.class_names == SOME
    assert jax.eval_shape(fewer.apply, reduced, *example_inputs(fewer)).shape == (1, 3)
    features = np.random.default_rng(0).standard_normal((2, variables["params"]["head"]["kernel"].shape[0]))
    logits, kept = (
        features @ head["kernel"] + head["bias"] for head in (v["params"]["head"] for v in (variables, reduced))
    )
    np.testing.assert_allclose(kept, logits[:, ROWS], rtol=1e-6)
    rest = [{k: v for k, v in each["params"].items() if k != "head"} for each in (variables, reduced)]
    jax.tree.map(np.testing.assert_array_equal, *rest)


def test_a_run_starts_from_the_rows_of_its_classes(merged, tmp_path, capsys):
    model, variables = merged
    vidjax.convert.save_pretrained(tmp_path / "merged", model, variables)
    fewer = model.clone(num_classes=3, card=dataclasses.replace(model.card, class_names=SOME))
    initial = draw_variables(fewer)
    initial = jax.tree.map(lambda leaf: leaf + 1, initial)
    started = runs.start_classifier(tmp_path / "merged", fewer, initial, keep_head=True)
    assert "head      3 of its 5 classes are kept, by name" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, started, runs.keep_classes(model, variables, SOME)[1])

    other = fewer.clone(card=dataclasses.replace(model.card, class_names=("abseiling", "making bed", "hugging")))
    with pytest.raises(UserError, match=r"keep_head: the head in .*merged lacks 2 of the 3 classes, 'making bed', "):
        runs.start_classifier(tmp_path / "merged", other, initial, keep_head=True)


def test_a_model_without_class_names_has_none_to_keep(merged):
    model, variables = merged
    nameless = model.clone(card=dataclasses.replace(model.card, class_names=()))
    with pytest.raises(UserError, match="has no class names to choose from"):
        runs.keep_classes(nameless, variables, SOME)
    with pytest.raises(UserError, match="has no head of its own: reduce those of its parts"):  # as a CrossModel
        runs.keep_classes(model, {"params": {"masked": variables["params"]}}, SOME)


def test_a_classifier_starts_from_the_video_tower_of_a_pair(tmp_path):
    tower = vidjax.create_model("uniformerv2_tiny", width=16, heads=1, num_frames=2, image_size=16)
    pair = VideoText(Projected(tower, 8), TextTower(259, 7, 16, 1, 1, 8))
    weights, classifier = draw_variables(pair), tower.clone(num_classes=3)
    vidjax.convert.save_pretrained(tmp_path / "pair", pair, weights)
    initial = jax.tree.map(jnp.ones_like, draw_variables(classifier))
    started = runs.start_classifier(tmp_path / "pair", classifier, initial, keep_head=False)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(started["params"].pop("head")))
    jax.tree.map(np.testing.assert_array_equal, started["params"], weights["params"]["video"]["tower"])
    with pytest.raises(UserError, match=r"keep_head: the head in .* does not have the 3 classes of the data"):
        runs.start_classifier(tmp_path / "pair", classifier, initial, keep_head=True)

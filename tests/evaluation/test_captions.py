"""Scores of captions equal those of coco-caption."""

import json

import numpy as np
import pytest
import recipe

from vidjax.errors import UserError
from vidjax.evaluation.captions import caption_scores, plain_words


def test_scores_equal_coco_captions():
    golden = json.loads((recipe.HERE / "eval_captions.json").read_text())
    scores = caption_scores(golden["hypotheses"], golden["references"])
    for name, values in scores._asdict().items():
        np.testing.assert_allclose(values, golden[name], rtol=1e-9, err_msg=name)


def test_a_repeated_reference_is_the_best_caption_and_an_empty_one_the_worst():
    references = [["a red circle moves up"], ["a blue square moves down and left", "a square"], ["two shapes"]]
    best = caption_scores([each[0] for each in references], references)
    worst = caption_scores(["", "", ""], references)
    np.testing.assert_allclose([best.bleu[0], best.rouge_l, best.cider_each[0]], [1, 1, 10], rtol=1e-6)
    assert worst.rouge_l == worst.cider == 0 and worst.bleu.max() < 1e-6


def test_words_are_without_case_and_punctuation():
    assert plain_words("A man's dog, well-fed,  runs; it's 3 o'clock.") == "a man's dog well-fed runs it's 3 o'clock"


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ([], [], "0 captions and 0 lists of references: give one for each"),
        (["a"], [["a"], ["b"]], "1 captions and 2 lists of references"),
        (["a", "b"], [["a"], []], "1 captions have no reference, the first is number 1"),
    ],
)
def test_captions_without_references_are_one_line(captions, references, message):
    with pytest.raises(UserError, match=message):
        caption_scores(captions, references)

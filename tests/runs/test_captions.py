"""Texts that models write after a prompt are those that they predict when they read the whole text at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
import tokenizers
from small_models import FLAN, GLM, OPT, QFORMER, SEES
from small_runs import draw_variables

from vidjax.data.text import Tokenizer
from vidjax.models.blip import Answerer, Captioner, Text
from vidjax.models.blip2 import Blip2Language
from vidjax.models.qformer import QFormer
from vidjax.runs.captions import caption_writer, instruction_tokenizer, read_captions
from vidjax.runs.generation import begin

TEXT = Text(60, 9, 24, 2, 3)
QUERIES = QFormer(**QFORMER | {"vocabulary": None}, writes=False)
INSTRUCTED = Blip2Language(SEES, QFormer(**QFORMER, writes=False), OPT.clone(context=16))
VIDEO = (255 * recipe.floats("video", (2, 2, 16, 16, 3))).clip(0, 255).astype(np.uint8)


def tokenizer(vocabulary=57, end=None):
    """Letters as ids from 11 on; a new line is 10."""
    ends = [] if end is None else [end]
    return Tokenizer(
        "letters",
        vocabulary,
        lambda text: [1, *(10 if letter == "\n" else ord(letter) - ord("a") + 11 for letter in text), *ends],
        end,
        lambda ids: "".join(chr(id - 11 + ord("a")) for id in ids),
    )


def of_opt(model, variables, clips, written):
    looked = model.apply(variables, clips, method="look")
    ids = jnp.concatenate([model.placed(jnp.array([[1, 12, 13]] * 2), 2), written], axis=1)
    words = model.apply(variables, ids, looked, jnp.ones(ids.shape, bool), method="words")
    return words[:, -written.shape[1] - 1 : -1]


def of_instructed(model, variables, clips, written):
    looked = model.apply(variables, clips, jnp.array([[1, 12, 13, 8]] * 2), method="look")
    ids = jnp.concatenate([model.placed(jnp.array([[1, 12, 13]] * 2), 2), written], axis=1)
    words = model.apply(variables, ids, looked, jnp.ones(ids.shape, bool), method="words")
    return words[:, -written.shape[1] - 1 : -1]


def of_t5(model, variables, clips, written):
    looked = model.apply(variables, clips, method="look")
    ids = model.placed(jnp.array([[1, 12, 13, 5]] * 2), 2)  # with the end, as its encoder reads it
    begun = jnp.concatenate([jnp.zeros((2, 1), jnp.int32), written[:, :-1]], axis=1)
    return model.apply(variables, ids, looked, jnp.ones(ids.shape, bool), begun, method="words")


def of_answerer(model, variables, clips, written):
    begun = jnp.concatenate([jnp.ones((2, 1), jnp.int32), written[:, :-1]], axis=1)
    return model.apply(variables, clips, jnp.array([[1, 12, 13, 5]] * 2), begun)


def of_captioner(model, variables, clips, written):
    ids = jnp.concatenate([jnp.array([[1, 12, 13]] * 2), written], axis=1)
    return model.apply(variables, clips, ids)[:, 2:-1]


@pytest.mark.parametrize(
    ("model", "end", "predict"),
    [
        pytest.param(Blip2Language(SEES, QUERIES, OPT.clone(context=16)), None, of_opt, id="blip2 with opt"),
        pytest.param(Blip2Language(SEES, QUERIES, FLAN), 5, of_t5, id="blip2 with t5", marks=pytest.mark.long),
        pytest.param(INSTRUCTED, None, of_instructed, id="instructblip", marks=pytest.mark.long),
        pytest.param(Captioner(SEES, TEXT), 5, of_captioner, id="blip", marks=pytest.mark.long),
        pytest.param(Answerer(SEES, TEXT, TEXT), 5, of_answerer, id="blip for questions", marks=pytest.mark.long),
    ],
)
def test_what_follows_a_prompt_is_what_the_model_predicts(model, end, predict):
    variables, given = draw_variables(model), tokenizer(end=end)
    texts = {"question" if isinstance(model, Answerer) or model is INSTRUCTED else "prompt": "bc"}
    if model is INSTRUCTED:
        texts["instructions"] = tokenizer(end=8)
    written = jax.jit(caption_writer(model, given, **texts, length=4))(variables, jnp.asarray(VIDEO))
    words = jax.jit(lambda v, ids: predict(model, v, model.card.preprocess(jnp.asarray(VIDEO)), ids))(
        variables, written
    )
    stop = 10 if end is None else end
    for row, likeliest in zip(np.asarray(written), np.asarray(words.argmax(axis=-1)), strict=True):
        count = list(row).index(stop) + 1 if stop in row else len(row)
        np.testing.assert_array_equal(row[:count], likeliest[:count])


@pytest.mark.long
def test_the_beams_of_a_video_attend_to_it_and_to_no_other():
    model = Captioner(SEES, TEXT)
    variables, prompts = draw_variables(model), jnp.array([[1, 12]] * 2)

    @jax.jit
    def following(words):
        seen = model.apply(variables, model.card.preprocess(jnp.asarray(VIDEO)), method="seen")
        step, _, cache = begin(model, variables, seen, prompts, 4, beams=3)
        shared, _ = step(words, jnp.int32(0), jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), cache))
        step, _, cache = begin(model, variables, *(jnp.repeat(x, 3, axis=0) for x in (seen, prompts)), 4)
        return shared, step(words, jnp.int32(0), cache)[0]

    shared, alone = following(jnp.array([13, 14, 15] * 2))
    np.testing.assert_allclose(shared, alone, rtol=1e-4, atol=1e-4)
    assert np.abs(alone[:3] - alone[3:]).max() > 1e-2  # the videos differ


@pytest.mark.long
def test_a_visualglm_reads_the_image_between_its_tags():
    model = Blip2Language(SEES, QUERIES, GLM)
    variables, given = draw_variables(model), characters(58)
    written = jax.jit(caption_writer(model, given, question="why", length=4))(variables, jnp.asarray(VIDEO))
    places = [59] * 2 * 4  # of both frames
    read = [*given.encode("<img>")[1:-1], *places, *given.encode("</img>问：why\n答：")[1:-1], 56, 57]
    ids = jnp.concatenate([jnp.array([read] * 2), written], axis=1)

    @jax.jit
    def predict(variables, video):
        looked = model.apply(variables, model.card.preprocess(video), method="look")
        return model.apply(variables, ids, looked, jnp.ones(ids.shape, bool), method="words")

    likeliest = np.asarray(predict(variables, jnp.asarray(VIDEO))[:, len(read) - 1 : -1].argmax(axis=-1))
    for row, wanted in zip(np.asarray(written), likeliest, strict=True):
        count = list(row).index(58) + 1 if 58 in row else len(row)
        np.testing.assert_array_equal(row[:count], wanted[:count])
    with pytest.raises(ValueError, match="tokenizer characters ends texts with the id 55, the model with 58: give its"):
        caption_writer(model, characters(55))


def characters(end: int) -> Tokenizer:
    """Any characters as ids from 1 to 50."""
    return Tokenizer("characters", 59, lambda text: [0, *(1 + ord(c) % 50 for c in text), end], end, str)


def test_a_text_ends_before_the_end_of_its_line():
    assert read_captions(tokenizer(), np.array([[11, 12, 10, 0], [13, 11, 12, 11]])) == ["ab", "caba"]


@pytest.mark.parametrize(
    ("prompt", "given", "message"),
    [
        ("abcdefg", tokenizer(), "the prompt and what is seen have 16 tokens of 16: give a shorter prompt"),
        ("a", tokenizer(60), "tokenizer letters has 60 ids, the model 59: give its own"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(prompt, given, message):
    model = Blip2Language(SEES, QUERIES, OPT.clone(context=16))
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(VIDEO.shape))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(caption_writer(model, given, prompt=prompt), variables, jnp.asarray(VIDEO))


def test_questions_are_for_models_that_answer():
    with pytest.raises(ValueError, match="question: the Captioner answers no question: give a BLIP for questions or a"):
        caption_writer(Captioner(SEES, TEXT), tokenizer(end=5), question="a")
    with pytest.raises(ValueError, match="question: the Answerer needs one: give it"):
        caption_writer(Answerer(SEES, TEXT, TEXT), tokenizer(end=5))


def test_an_instructblip_needs_an_instruction_that_its_q_former_can_read():
    write = partial(caption_writer, INSTRUCTED, tokenizer())
    with pytest.raises(ValueError, match="an InstructBLIP follows an instruction: give a question or a prompt"):
        write(instructions=tokenizer())
    with pytest.raises(ValueError, match="the instruction has 8 tokens, the Q-Former reads 7: shorten it"):
        write(question="abcdefg", instructions=tokenizer())
    with pytest.raises(ValueError, match="of instructions letters has 61 ids, the Q-Former 60: give its own"):
        write(question="a", instructions=tokenizer(61))


def test_the_tokenizer_of_instructions_is_that_of_the_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="has no qformer_tokenizer/: give --instruction_tokenizer, a"):
        instruction_tokenizer(tmp_path, INSTRUCTED)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[pad]": 0, "red": 1}, unk_token="[pad]"))
    (tmp_path / "qformer_tokenizer").mkdir()
    words.save(str(tmp_path / "qformer_tokenizer" / "tokenizer.json"))
    assert instruction_tokenizer(tmp_path, INSTRUCTED).encode("red") == [1]
    assert instruction_tokenizer(tmp_path, Captioner(SEES, TEXT)) is None
    with pytest.raises(ValueError, match="runs/b is no InstructBLIP: omit it"):
        instruction_tokenizer("runs/b", Captioner(SEES, TEXT), "bert")
